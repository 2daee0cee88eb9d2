"""A whole run in two processes learns what it learns in one, and goes on in any number of them."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from ojak.errors import Stopped
from ojak.train.config import CheckpointConfig, TrainConfig
from ojak.train.run import train
from ojak.train.trackers import read_metrics

STOPPED = 7


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_in(config: TrainConfig, size: int, *, stop_after: int | None = None) -> None:
    """The run in `size` processes; a SIGTERM to the last of them after a step stops all."""
    variables = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    said = config.out.parent / "said"
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
            os._exit(_child(config, stop_after if rank == size - 1 else None, said))
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [0 if stop_after is None else STOPPED] * size, said.read_text("utf-8")


def _child(config: TrainConfig, stop_after: int | None, said: Path) -> int:
    def progress(figures: Mapping[str, Any]) -> None:
        if figures["step"] == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(config, progress=progress)
    except Stopped:
        return STOPPED
    except BaseException:  # noqa: BLE001 (told in the parent)
        said.write_text(traceback.format_exc(), "utf-8")
        return 1
    return 0


def figures(config: TrainConfig, name: str) -> list[float]:
    return [item[name] for item in read_metrics(config.out / "metrics.jsonl") if "loss" in item]


def losses(config: TrainConfig) -> list[float]:
    return figures(config, "loss")


@pytest.mark.timeout(280)
def test_two_processes_are_as_one_and_a_run_goes_on_in_any_number(folder: Path) -> None:
    changes: dict[str, Any] = {
        "epochs": 2,
        "checkpoint": CheckpointConfig(every_steps=2),
        "val_share": 0.2,
        "lr": 3e-3,
    }
    one, two, mixed = (tiny_run.config(folder, name, **changes) for name in ("one", "two", "mixed"))
    run_in(one, 1)
    run_in(two, 2)
    assert len(losses(one)) == 6
    assert losses(one)[-1] < 0.97 * losses(one)[0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert figures(two, "gradient_norm") == pytest.approx(figures(one, "gradient_norm"), rel=1e-4)
    run_in(mixed, 2, stop_after=2)
    run_in(mixed, 1, stop_after=4)
    run_in(mixed, 2)
    assert losses(mixed) == pytest.approx(losses(one), rel=1e-5)
    whole = load_file(one.out / "model" / "model.safetensors")
    for other in (two, mixed):
        held = load_file(other.out / "model" / "model.safetensors")
        assert held.keys() == whole.keys()
        assert all(torch.allclose(held[name], whole[name], atol=1e-3) for name in whole)
