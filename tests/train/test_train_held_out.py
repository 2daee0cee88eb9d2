"""Further held-out rows during training: their losses are told at every check, and change nothing that is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from ojak.errors import UsageError
from ojak.evaluate.comparison import Trained, _of_training  # pyright: ignore[reportPrivateUsage]
from ojak.train.arms import ArmsConfig, arm_runs
from ojak.train.config import EvaluateConfig, TrainConfig
from ojak.train.run import train
from ojak.train.trackers import read_metrics

pytestmark = pytest.mark.usefixtures("folder")


def config(out: str, **changes: object) -> TrainConfig:
    model = Path("model") if Path("model").exists() else tiny.model(scale=0.1).save("model")
    for name, text in (("field", "Ob lies on the Lu."), ("general", "What else is there to say of it?")):
        Path(f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    settings = {
        "objective": "pretrain", "model": str(model), "data": ("field.jsonl",), "out": Path(out), "epochs": 4,
        "lr": 1e-2, "batch": 1, "dtype": "float32", "peak_flops": 1e12, "val_data": "field.jsonl",
        "evaluate": {"every_steps": 2, "more": {"general": "general.jsonl", "again": "field.jsonl"}}, **changes,
    }  # fmt: skip
    return TrainConfig(**settings)  # type: ignore[arg-type]


def test_their_losses_are_those_of_a_run_that_has_them_as_validation_rows() -> None:
    result = train(config("out"))
    lines = [line for line in read_metrics(Path("out/metrics.jsonl")) if "val_loss_general" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(line["val_loss_again"] == line["val_loss"] for line in lines)
    assert result.val_losses == {"again": result.val_loss, "general": lines[-1]["val_loss_general"]}
    train(config("other", val_data="general.jsonl", evaluate={"every_steps": 2}))
    told = [line["val_loss"] for line in read_metrics(Path("other/metrics.jsonl")) if "val_loss" in line]
    assert told == [line["val_loss_general"] for line in lines[1:]]
    one, two = (load_file(f"{name}/model/model.safetensors") for name in ("out", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    measured = _of_training(Trained.read("a", 0, Path("out")))
    assert measured["val_loss_general"] == lines[-1]["val_loss_general"]


def test_rows_that_are_not_there_are_told_first() -> None:
    with pytest.raises(UsageError, match="nothing at"):
        train(config("out", evaluate={"more": {"general": "absent.jsonl"}}))
    with pytest.raises(UsageError, match="General!"):
        config("out", evaluate={"more": {"General!": "general.jsonl"}})
    assert not Path("out").exists()


def test_arms_name_results_and_go_on_from_models_of_their_seeds() -> None:
    config("out")
    made = ArmsConfig(
        model="runs/{seed}/model", data=("field.jsonl",), out=Path("arms"), seeds=(3, 4), objective="pretrain",
        evaluate=EvaluateConfig(more={"general": "@split:test"}), arms={"a": None, "b": {"evaluate": {"more": {"own": "@rows"}}}},
    )  # type: ignore[arg-type]  # fmt: skip
    assert made.sources == ["field.jsonl", "@split:test", "@rows"]
    runs = arm_runs(made, lambda source: f"at {source}")
    assert [run.config.model for run in runs] == ["runs/3/model"] * 2 + ["runs/4/model"] * 2
    assert [dict(run.config.evaluate.more) for run in runs[:2]] == [
        {"general": "at @split:test"}, {"general": "at @split:test", "own": "at @rows"},
    ]  # fmt: skip
