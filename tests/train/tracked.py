"""Figures to one tracker's real package, and back: `python tracked.py NAME FOLDER`, in a process of its own.

Two runs of two steps, the second going on from the first. What the tracker then holds is printed, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ojak.train.trackers import Metrics, Run

Points = list[tuple[int, float]]


def stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """Ends the process that connects to another machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if host not in {"127.0.0.1", "::1", "localhost"}:
            sys.exit(f"connects to {host}")


def log(name: str, folder: Path) -> None:
    for step in (0, 2):
        run = Run("ojak", "first", folder, {"lr": 1e-3}, step)
        with Metrics(run, (name,), notify=sys.exit) as metrics:
            for number in (step + 1, step + 2):
                metrics.log(number, {"loss": 3.0 - number / 2, "note": "text"})


def tensorboard(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(each.step, each.value) for each in found.Scalars("loss")]


def mlflow(folder: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlflow").as_uri())
    (experiment,) = (each for each in client.search_experiments() if each.name == "ojak")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"lr": "0.001"} and run.info.run_name == "first"
    history = client.get_metric_history(run.info.run_id, "loss")
    return [(each.step, each.value) for each in history]


def trackio(folder: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("ojak", "first")
    return [(each["step"], each["loss"]) for each in logs if "loss" in each]


def wandb(folder: Path) -> Points:
    """Its file is a log of its own form: whether the figures' texts stand in it."""
    held = b"".join(
        path.read_bytes() for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    )
    return [
        (step, value)
        for step, value in ((1, 2.5), (2, 2.0), (3, 1.5), (4, 1.0))
        if b"loss" in held and _text(value) in held
    ]


def _text(value: float) -> bytes:
    return f"{value:g}".encode()


READERS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": tensorboard, "mlflow": mlflow, "trackio": trackio, "wandb": wandb,
}  # fmt: skip

if __name__ == "__main__":
    sys.addaudithook(stay_here)
    log(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps(READERS[sys.argv[1]](Path(sys.argv[2]))))
