"""A model from nothing: a tokenizer of the texts and a configuration that training begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from ojak._settings import WrongSettings
from ojak.artifact import publish
from ojak.model.load import load_model
from ojak.records import Document
from ojak.train.config import TrainConfig
from ojak.train.run import train
from ojak.train.scratch import ScratchConfig, make_scratch

pytestmark = pytest.mark.usefixtures("folder")
SMALL = ScratchConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)  # fmt: skip


def corpus(folder: Path) -> Path:
    texts = [
        Document(f"d{i}", f"the {i}th text tells of the same things as the others do") for i in range(40)
    ]
    return publish(folder / "corpus", kind="corpus", records=texts, config={}).path


def test_it_is_trained_from_nothing(folder: Path) -> None:
    made = make_scratch(corpus(folder), folder / "out", SMALL)
    config = TrainConfig(
        objective="pretrain", model=str(folder / "out/model"), data=("corpus",), out=folder / "run", dtype="float32",
        peak_flops=1e12, lr=1e-2, epochs=4,
    )  # fmt: skip
    result = train(config)
    assert result.loss_last is not None and result.loss_first is not None
    assert result.loss_last < result.loss_first - 1
    trained = load_model(folder / "run/model", dtype="float32")
    assert sum(weight.numel() for weight in trained.decoder.parameters()) == made.stats["parameters"]
    assert trained.config.vocab_size == made.stats["vocab_size"] <= 300


def test_a_small_text_gives_fewer_tokens_and_a_killed_run_is_made_anew(folder: Path) -> None:
    (folder / "out/model").mkdir(parents=True)
    (folder / "out/model/tokenizer.json").write_text("half")
    said: list[str] = []
    made = make_scratch(
        corpus(folder), folder / "out", SMALL.model_copy(update={"vocab_size": 9_000}), notify=said.append
    )
    assert 259 < made.stats["vocab_size"] < 9_000
    assert any("not 9,000" in line for line in said)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WrongSettings, match="even multiple"):
        ScratchConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(WrongSettings, match="num_key_value_heads"):
        ScratchConfig(num_attention_heads=4, num_key_value_heads=3)
