"""kill -9 in a training run, within an epoch, at its end, while it saves, twice over: the weights are those of a run
that was never killed, bit for bit. A damaged checkpoint costs the steps since the one before it, and is told of."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from ojak.train import checkpoints
from ojak.train.config import CheckpointConfig, TrainConfig
from ojak.train.run import train
from ojak.train.trackers import read_metrics

STEPS = 6  # two epochs of three


def config(folder: Path, out: str) -> TrainConfig:
    every_other = CheckpointConfig(every_steps=2)
    return tiny_run.config(
        folder, out, epochs=2, dtype="bfloat16", ema=0.9, micro_batch=3, checkpoint=every_other
    )


def dies(run: TrainConfig, *, after: int = STEPS + 1, prepare: Callable[[], object] = lambda: None) -> None:
    """The run in a child that gets SIGKILL when it has made step `after`, before that step's checkpoint."""

    def progress(figures: Mapping[str, Any]) -> None:
        if figures["step"] == after:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        status = 1
        try:
            prepare()
            train(run, progress=progress)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die_before_the_rename(step: int) -> Callable[[], None]:
    """In the child: die when the checkpoint of this step is written and has no name yet."""

    def prepare() -> None:
        put = checkpoints._put_in_place

        def dying(staging: Path, final: Path) -> None:
            if final.name == f"step-{step:07d}":
                os.kill(os.getpid(), signal.SIGKILL)
            put(staging, final)

        checkpoints._put_in_place = dying

    return prepare


def ends_like(run: TrainConfig, straight: TrainConfig) -> list[str]:
    """Let the run end; what it said. Its model and its losses must be those of the straight one."""
    lines: list[str] = []
    assert train(run, notify=lines.append).steps == STEPS
    for path in sorted((straight.out / "model").iterdir()):
        assert (run.out / "model" / path.name).read_bytes() == path.read_bytes(), path.name
    one, two = (
        [item["loss"] for item in read_metrics(each.out / "metrics.jsonl") if "loss" in item]
        for each in (straight, run)
    )
    assert len(one) == STEPS
    assert one == two
    return lines


@pytest.fixture
def straight(folder: Path) -> TrainConfig:
    """A run that nothing happens to."""
    made = config(folder, "straight")
    train(made)
    return made


@pytest.mark.timeout(240)
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6])
def test_a_killed_run_ends_with_the_same_weights(folder: Path, straight: TrainConfig, after: int) -> None:
    run = config(folder, "killed")
    dies(run, after=after)
    lines = ends_like(run, straight)
    begun = (after - 1) // 2 * 2  # the last checkpoint before that step's own
    assert any(line.startswith(f"going on from step-{begun:07d}") for line in lines) is (begun > 0)


@pytest.mark.timeout(240)
def test_killed_twice_and_while_it_saves(folder: Path, straight: TrainConfig) -> None:
    run = config(folder, "killed")
    dies(run, after=3)
    dies(run, prepare=die_before_the_rename(4))
    dies(run, after=4)  # again: the step that was not saved is made once more
    dies(run, after=6)
    lines = ends_like(run, straight)
    assert any(line.startswith("going on from step-0000004") for line in lines)
    assert not list((run.out / "checkpoints").glob(".*"))


@pytest.mark.timeout(240)
def test_a_flipped_byte_costs_two_steps_and_is_told_of(folder: Path, straight: TrainConfig) -> None:
    run = config(folder, "killed")
    dies(run, after=5)
    path = run.out / "checkpoints" / "step-0000004" / "optimizer-rank0of1.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    lines = ends_like(run, straight)
    assert any(
        line.startswith("step-0000004 is passed over: optimizer-rank0of1.safetensors has changed")
        for line in lines
    )
    assert any(line.startswith("going on from step-0000002") for line in lines)
