"""Small models of some of a large one's layers: which stay, what transformers makes of them, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.model.load import load_model
from ojak.model.shrink import shrink_model, spread

IDS = torch.tensor([[256, 5, 9, 33, 7, 120, 61, 2, 80, 90, 41, 17, 256, 3, 66, 71]])


def test_layers_are_spread_evenly_with_both_ends() -> None:
    assert spread(30, 15)[:4] == (0, 2, 4, 6) and spread(30, 15)[-3:] == (25, 27, 29)
    for count in range(2, 40):
        assert spread(count, count) == tuple(range(count)) and spread(count, 1) == (0,)
        for wanted in range(2, count + 1):
            kept = spread(count, wanted)
            gaps = [b - a for a, b in itertools.pairwise(kept)]
            assert (len(kept), kept[0], kept[-1]) == (wanted, 0, count - 1)
            assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    for wanted in (0, 5):
        with pytest.raises(UsageError, match="of a model that has 4"):
            spread(4, wanted)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3"])
def test_the_small_model_is_the_one_that_transformers_loads(family: str, tmp_path: Path) -> None:
    """Its logits are those of the large model with the layers in between taken out, in ojak and in transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
    changes: dict[str, Any] = {"layer_types": kinds} if "gemma" in family else {}
    whole = tiny.model(family, num_hidden_layers=5, **changes)
    whole.chat_template = "{{ messages[0].content }}"
    whole.save(tmp_path / "whole")
    made = shrink_model(str(tmp_path / "whole"), tmp_path / "small", layers=3)
    assert made.layers == (0, 2, 4) and made.parameters < made.parameters_before
    small = load_model(tmp_path / "small", dtype="float32")
    if "gemma" in family:
        assert small.config.layer_types == ("sliding_attention", "full_attention", "full_attention")
    assert (small.chat_template, small.stop_ids) == (whole.chat_template, whole.stop_ids)
    assert small.tokenizer.sha256 == load_model(tmp_path / "whole").tokenizer.sha256
    found = small.decoder(IDS)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    assert torch.allclose(other(IDS).logits, found, atol=2e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "small").chat_template == whole.chat_template
    for layer in (1, 3):  # leaving a layer out: it adds nothing to the stream
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            whole.decoder.get_parameter(f"model.layers.{layer}.{part}.weight").zero_()
    assert torch.allclose(whole.decoder(IDS), found, atol=1e-5)


def test_the_heaviest_neurons_stay(tmp_path: Path) -> None:
    """Where all others are dead, nothing is lost; the width is that of the configuration."""
    whole = tiny.model("llama", num_hidden_layers=2)
    alive = torch.arange(48) % 3 == 1
    for layer in range(2):
        whole.decoder.get_parameter(f"model.layers.{layer}.mlp.down_proj.weight")[:, ~alive] = 0
    whole.save(tmp_path / "whole")
    made = shrink_model(str(tmp_path / "whole"), tmp_path / "small", intermediate=16)
    small = load_model(tmp_path / "small", dtype="float32")
    assert made.intermediate_size == small.config.intermediate_size == 16
    assert torch.allclose(small.decoder(IDS), whole.decoder(IDS), atol=1e-5)
    kept = small.decoder.get_parameter("model.layers.1.mlp.gate_proj.weight")
    assert torch.equal(kept, whole.decoder.get_parameter("model.layers.1.mlp.gate_proj.weight")[alive])


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    tiny.model().save(tmp_path / "whole")
    with pytest.raises(UsageError, match="wider than"):
        shrink_model(str(tmp_path / "whole"), tmp_path / "small", intermediate=49)
    with pytest.raises(UsageError):  # none is not all
        shrink_model(str(tmp_path / "whole"), tmp_path / "small", layers=0)
    with pytest.raises(UsageError):
        shrink_model(str(tmp_path / "whole"), tmp_path / "small", intermediate=0)
    broken = tiny.model()
    broken.decoder.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] = torch.nan
    broken.save(tmp_path / "broken")
    with pytest.raises(
        InputRefused, match="infinities or NaNs"
    ):  # the NaN would have been the heaviest neuron
        shrink_model(str(tmp_path / "broken"), tmp_path / "small", intermediate=8)
    shrink_model(str(tmp_path / "whole"), tmp_path / "small", layers=1)
    with pytest.raises(TargetExists):
        shrink_model(str(tmp_path / "whole"), tmp_path / "small", layers=1)
    path = tmp_path / "whole/config.json"
    path.write_text(
        path.read_text("utf-8").replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'), "utf-8"
    )
    with pytest.raises(InputRefused, match="weights are missing"):
        shrink_model(str(tmp_path / "whole"), tmp_path / "other", layers=2)
    assert not (tmp_path / "other").exists()
