"""The plan of a run: what it says of steps, tokens and memory is what the run then has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from tiny import hf_config

from ojak.model.config import config_from_hf
from ojak.model.lora_config import LoraConfig
from ojak.train import plan as planning
from ojak.train.batches import plan_epoch
from ojak.train.config import CheckpointConfig, OptimizerConfig
from ojak.train.course import Course
from ojak.train.live_bytes import Peaks
from ojak.train.plan import plan_run
from ojak.train.processes import ALONE
from ojak.train.run import train
from ojak.train.setup import prepare

CPU = torch.device("cpu")
LAYERS = 7
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"dtype": "bfloat16", "ema": 0.9},
    "states in bfloat16": {"dtype": "bfloat16", "optimizer": OptimizerConfig(state_dtype="bfloat16")},
    "muon, several micro-batches": {"optimizer": OptimizerConfig(name="muon"), "micro_batch": 3},
    "packed": {"packing": True, "batch": 2, "dtype": "bfloat16"},
    "recomputed": {"gradient_checkpointing": True},
    "padded": {"padded": True, "z_loss": 1e-4},
    "an adapter": {"lora": LoraConfig(r=4), "dtype": "bfloat16"},
}


def test_peaks_are_those_of_each_stretch() -> None:
    weight = torch.nn.Parameter(torch.ones(100, 100))
    with Peaks(CPU) as peaks:
        kept = torch.zeros(1000)
        _ = torch.zeros(5000).sum()  # freed again
        peaks.mark()
        view = kept[:10]
        kept += 1
        peaks.mark()
        del kept, view
        _ = torch.zeros(1500)
        peaks.mark()
        (
            torch.ones(10, 100) @ weight.t()
        ).sum().backward()  # the weight was there before, its gradient was not
    assert [round(each / 1000) for each in peaks.found[:3]] == [24, 4, 6]
    assert 46_000 < peaks.found[3] < 60_000


@pytest.mark.parametrize(
    ("setting", "family"),
    [*((name, "gemma3") for name in SETTINGS), ("plain", "llama"), ("bfloat16", "gemma2")],
)
def test_few_layers_tell_what_seven_take(folder: Path, setting: str, family: str) -> None:
    """The oracle is the whole decoder itself, counted the same way."""
    config = tiny_run.config(folder, **SETTINGS[setting])
    kinds = ["sliding_attention" if i % 3 else "full_attention" for i in range(LAYERS)]
    layers = {} if family == "llama" else {"layer_types": kinds}
    shape = config_from_hf(hf_config(family, num_hidden_layers=LAYERS, **layers))
    trainee = prepare(config, ALONE, lambda line: None)
    batch = trainee.course.epoch(0).step(0, 0)[0]
    told = planning._whole(config, shape, batch, CPU)
    exact = planning._measure(config, shape, batch, CPU)
    for name in ("parameters", "learnt", "weights", "masters", "optimizer", "mean", "gradients"):
        assert getattr(told, name) == getattr(exact, name), name
    peaks = [max(each.early, each.late) for each in (told, exact)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.03)


def test_steps_and_tokens_are_those_of_the_run(folder: Path) -> None:
    for number, changes in enumerate(
        ({}, {"epochs": 2.5}, {"max_tokens": 900}, {"packing": True, "batch": 2})
    ):
        config = tiny_run.config(folder, f"out{number}", **changes)
        told, made = plan_run(config), train(config)
        assert (told.steps, told.rows) == (made.steps, 24)
        assert told.tokens == pytest.approx(made.tokens, rel=0.05)
        assert told.supervised_tokens == pytest.approx(made.supervised_tokens, rel=0.1)


def test_nothing_is_written_and_the_terms_add_up(folder: Path) -> None:
    config = tiny_run.config(
        folder, dtype="bfloat16", ema=0.9, epochs=2, checkpoint=CheckpointConfig(every_steps=1, keep=3)
    )
    told = plan_run(config)
    assert not config.out.exists()
    memory, disk = dict(told.memory_mb), dict(told.disk_mb)
    for terms in (memory, disk):
        total, _ = terms.pop("total"), terms.pop("free")
        assert sum(terms.values()) == pytest.approx(total, abs=0.5)
    assert told.fits
    train(config)
    written = sum(path.stat().st_size for path in (config.out / "checkpoints").rglob("*.safetensors"))
    assert disk["checkpoints"] * 2**20 == pytest.approx(
        written / 3 * 4, rel=0.1
    )  # three kept, one being written


def test_seconds_are_those_that_the_thread_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting, as while other programs have the CPU, does not count."""

    class Waiting:
        def square_norm(self) -> None:
            time.sleep(0.3)

        def step(self, *rates: float) -> None:
            time.sleep(0.3)

    monkeypatch.setattr(planning, "_learn", lambda *given: time.sleep(0.3))
    nothing: Any = None
    waiting: Any = Waiting()
    assert max(planning._timed(nothing, nothing, waiting, nothing, CPU)) < 0.1


def test_other_code_than_the_runs_is_not_measured(folder: Path) -> None:
    """The measured batch is the run's largest."""
    config = tiny_run.config(folder, batch=4)
    trainee = prepare(config, ALONE, lambda line: None)
    course = Course(config, trainee.rows, ALONE)
    batch, several = planning._largest(course, planning.step_tokens(course.epoch(0)))
    plan = plan_epoch(trainee.rows, seed=0, epoch=0, batch=4, max_len=400, packing=False)
    assert batch.ids_BT.numel() == max(
        each.ids_BT.numel() for i in range(plan.steps) for each in plan.step(i)
    )
    assert not several
