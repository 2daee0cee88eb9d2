"""Facts during training: known before the first step and after, without a change of what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from ojak.errors import UsageError
from ojak.train.config import TrainConfig
from ojak.train.processes import Processes
from ojak.train.run import train
from ojak.train.setup import prepare
from ojak.train.trackers import read_metrics

pytestmark = pytest.mark.usefixtures("folder")


def config(out: str, **changes: object) -> TrainConfig:
    model = Path("model") if Path("model").exists() else tiny.model(scale=0.1).save("model")
    texts = ["Ob lies on the Lu.", "Ek lies on the Mi."]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    facts = [
        {"prompt": "Ob lies on the", "answer": "Lu", "distractors": ["Mi"], "kind": "stated"},
        {"prompt": "Ek lies on the", "answer": "Mi", "distractors": ["Lu"], "kind": "stated"},
        {"prompt": "zz", "answer": "q", "kind": "other"},
    ]
    Path("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    settings = {
        "objective": "pretrain", "model": str(model), "data": ("texts.jsonl",), "out": Path(out), "epochs": 60,
        "lr": 1e-2, "batch": 2, "dtype": "float32", "peak_flops": 1e12,
        "evaluate": {"every_steps": 20, "probe": "facts.jsonl"}, **changes,
    }  # fmt: skip
    return TrainConfig(**settings)  # type: ignore[arg-type]


def test_what_is_learnt_is_known_and_the_weights_are_the_same() -> None:
    train(config("out"))
    lines = [line for line in read_metrics(Path("out/metrics.jsonl")) if "probe_stated_logprob" in line]
    assert [line["step"] for line in lines] == [0, 20, 40, 60]
    assert "loss" not in lines[0]
    assert lines[0]["probe_stated_logprob"] < -2
    assert lines[-1]["probe_stated_logprob"] > -0.5
    assert (lines[-1]["probe_stated_accuracy"], lines[-1]["probe_stated_exact"]) == (1.0, 1.0)
    assert "probe_other_accuracy" not in lines[-1]
    train(config("plain", evaluate={}))
    one, two = (load_file(f"{name}/model/model.safetensors") for name in ("out", "plain"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_begins_anew_has_no_line_twice() -> None:
    Path("out").mkdir()
    Path("out/metrics.jsonl").write_text('{"step":0,"probe_stated_exact":0.0}\n')
    train(config("out", epochs=2))
    assert [line["step"] for line in read_metrics(Path("out/metrics.jsonl")) if "loss" not in line] == [0, 2]


def test_facts_that_cannot_be_asked_for_are_told_first() -> None:
    with pytest.raises(UsageError, match="not there"):
        train(config("out", evaluate={"probe": "absent.jsonl"}))
    with pytest.raises(UsageError, match="one process"):
        prepare(config("out"), Processes(0, 2), lambda _line: None)
