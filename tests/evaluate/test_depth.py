"""Which layers a model misses least: against brute force over every gap, planted idle layers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

from ojak.errors import InputRefused, UsageError
from ojak.evaluate.depth import cuts, least_missed
from ojak.model.load import Model, load_model, read_source
from ojak.model.shrink import decoder_with, shrink_model
from ojak.model.source import Source
from ojak.records import Document, Preference

TEXTS = [
    Document(str(i), text)
    for i, text in enumerate(["the cat sat on the mat", "a dog ran", "birds sing at dawn"])
]


def idle(model: Model, layer: int) -> None:
    """The layer adds nothing to the stream."""
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        model.decoder.get_parameter(f"model.layers.{layer}.{part}.weight").zero_()


def test_every_gap_is_measured_and_the_best_comes_first() -> None:
    """The losses are those of the whole model where the layers of the gap add nothing."""
    model = tiny.model("llama", num_hidden_layers=5)
    found = cuts(model, 3, TEXTS)
    assert sorted(cut.layers for cut in found) == [(0, 1, 2), (0, 1, 4), (0, 3, 4), (2, 3, 4)]
    assert [cut.loss for cut in found] == sorted(cut.loss for cut in found)
    whole = {name: weight.clone() for name, weight in model.decoder.named_parameters()}
    for cut in found:
        for layer in set(range(5)) - set(cut.layers):
            idle(model, layer)
        total = tokens = 0.0
        for document in TEXTS:
            ids = model.tokenizer.encode(document.text, special=False)
            if model.tokenizer.adds_bos and model.tokenizer.bos_id is not None:
                ids = [model.tokenizer.bos_id, *ids]
            logits = model.decoder(torch.tensor([ids]))[0].double()
            total += cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").item()
            tokens += len(ids) - 1
        assert cut.loss == pytest.approx(total / tokens, rel=1e-5)
        for name, weight in model.decoder.named_parameters():
            weight.copy_(whole[name])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_idle_layers_go(family: str, tmp_path: Path) -> None:
    """Where two neighbours do nothing, the student without them is the model, and keeps the kinds of its layers."""
    kinds = [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ]
    changes: dict[str, Any] = {"layer_types": kinds} if family == "gemma3" else {}
    model = tiny.model(family, num_hidden_layers=5, **changes)
    for layer in (1, 2):
        idle(model, layer)
    model.save(tmp_path / "whole")
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": t.text}) + "\n" for t in TEXTS), "utf-8"
    )
    said: list[str] = []
    kept = least_missed(read_source(tmp_path / "whole"), 3, tmp_path / "texts.jsonl", notify=said.append)
    assert kept == (0, 3, 4) and "nats a token on 3 rows" in said[-1]
    made = shrink_model(str(tmp_path / "whole"), tmp_path / "small", layers=3, choose=lambda source: kept)
    small = load_model(tmp_path / "small", dtype="float32")
    ids = torch.tensor([[5, 9, 33, 7, 120, 61, 2, 80]])
    assert made.layers == kept and torch.allclose(small.decoder(ids), model.decoder(ids), atol=1e-5)
    if family == "gemma3":
        assert small.config.layer_types == ("sliding_attention", "full_attention", "sliding_attention")


def test_a_decoder_of_some_layers_shares_the_weights() -> None:
    whole = tiny.model(num_hidden_layers=3).decoder
    small = decoder_with(whole, (0, 2))
    assert small.get_parameter("model.layers.1.mlp.up_proj.weight").data_ptr() == (
        whole.get_parameter("model.layers.2.mlp.up_proj.weight").data_ptr()
    )
    for kept in ((), (1, 0), (0, 0), (0, 3), (-1,)):
        with pytest.raises(UsageError, match="of a model that has 3"):
            decoder_with(whole, kept)


def test_what_tells_nothing_is_refused(tmp_path: Path) -> None:
    model = tiny.model(num_hidden_layers=3)
    with pytest.raises(InputRefused, match="no row can tell"):
        cuts(model, 2, [Preference("0", [], [], [])])
    with pytest.raises(UsageError, match="of a model that has 3"):
        cuts(model, 4, TEXTS)
    assert [cut.layers for cut in cuts(model, 3, TEXTS)] == [(0, 1, 2)]
    model.save(tmp_path / "whole")
    with pytest.raises(UsageError, match="nothing at"):
        least_missed(read_source(tmp_path / "whole"), 2, tmp_path / "none.jsonl", notify=print)


def test_losses_that_are_no_numbers_come_last(tmp_path: Path) -> None:
    """A layer that overflows goes, wherever it stands; where nothing finite is left, nothing is chosen."""
    model = tiny.model("llama", num_hidden_layers=4)
    model.decoder.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(3e38)
    found = cuts(model, 3, TEXTS)
    assert found[0].layers == (0, 2, 3) and all(cut.loss == float("inf") for cut in found[1:])
    model.decoder.get_parameter("model.layers.2.mlp.down_proj.weight").fill_(3e38)
    with pytest.raises(InputRefused, match="no finite numbers"):
        cuts(model, 3, TEXTS)


def test_a_place_that_is_taken_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    tiny.model(num_hidden_layers=3).save(tmp_path / "whole")
    asked: list[bool] = []

    def choose(source: Source) -> tuple[int, ...]:
        asked.append(True)
        return (0, 2)

    with pytest.raises(UsageError, match="there already"):
        shrink_model(str(tmp_path / "whole"), tmp_path / "whole", layers=2, choose=choose)
    assert not asked
    made = shrink_model(str(tmp_path / "whole"), tmp_path / "small", layers=2, choose=choose)
    assert asked and made.layers == (0, 2)
