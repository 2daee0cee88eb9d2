"""Where a run's figures go: always to metrics.jsonl in its folder, and to the trackers that were asked for.

The file is one JSON object a line, each with its "step". A resumed run first drops the lines after the step that it
goes on from (and a last line that a kill cut off), so that the file reads as if the run had never stopped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from ojak._files import disk_errors, write_atomic
from ojak.errors import TargetExists, UsageError

METRICS = "metrics.jsonl"
MOST_LINE_BYTES = 65_536
INSTALL = 'pip install "ojak[track]"'


@dataclass(frozen=True, slots=True)
class Run:
    """What a tracker is told of the run: names, its folder, its settings, and the step that it goes on from."""

    project: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    step: int

    @property
    def id(self) -> str:
        """The same for as long as the run has its folder, however often it is resumed."""
        return hashlib.sha256(os.fsencode(self.folder.absolute())).hexdigest()[:16]


class Tracker:
    """One tracker: two functions of its package, behind the names that the loop knows."""

    def __init__(self, log: Callable[[int, dict[str, float]], object], close: Callable[[], object]) -> None:
        self.log, self.close = log, close


def _trackio(trackio: Any, run: Run) -> Tracker:
    trackio.init(project=run.project, name=run.name, config=dict(run.config), resume="allow")
    return Tracker(lambda step, values: trackio.log(values, step=step), trackio.finish)


def _tensorboard(tensorboard: Any, run: Run) -> Tracker:
    writer = tensorboard.SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(wandb: Any, run: Run) -> Tracker:
    held = wandb.init(
        project=run.project,
        name=run.name,
        id=run.id,
        resume="allow",
        config=dict(run.config),
        dir=str(run.folder),
    )
    return Tracker(lambda step, values: held.log(values, step=step), held.finish)


def _mlflow(mlflow: Any, run: Run) -> Tracker:
    if not mlflow.is_tracking_uri_set():  # its own place would be a database, which mlflow-skinny cannot open
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((run.folder / "mlflow").absolute().as_uri())
    note = run.folder / ".mlflow-run"  # mlflow names its runs itself
    earlier = note.read_text("utf-8") if run.step and note.is_file() else None
    mlflow.set_experiment(run.project)
    held = mlflow.start_run(run_id=earlier, run_name=run.name)
    if earlier is None:
        note.write_text(held.info.run_id, "utf-8")
        mlflow.log_params({name: str(value)[:500] for name, value in run.config.items()})
    return Tracker(lambda step, values: mlflow.log_metrics(values, step=step), mlflow.end_run)


# name -> the module that is imported, what it is made into a tracker with
TRACKERS: dict[str, tuple[str, Callable[[Any, Run], Tracker]]] = {
    "trackio": ("trackio", _trackio),
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
}


def load_trackers(names: Sequence[str]) -> dict[str, Any]:
    """The trackers' packages, imported: before a run loads its model. Raises UsageError for one that is not there."""
    found: dict[str, Any] = {}
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"there is no tracker {name[:60]!r}", fix=f"use one of {', '.join(TRACKERS)}")
        try:
            found[name] = importlib.import_module(TRACKERS[name][0])
        except ImportError as error:
            raise UsageError(
                f"the tracker {name} is not installed",
                why=str(error),
                fix=f"{INSTALL}, or leave out --track {name}",
            ) from error
    return found


class Metrics:
    """The figures of a run: `log` them a step at a time. A context manager; only the first process has one.

    A tracker that fails is told of once by `notify` and left out from then on: a run is worth more than its curves.
    metrics.jsonl is not: a full disk raises ResourceExhausted.
    """

    def __init__(
        self, run: Run, names: Sequence[str] = (), *, notify: Callable[[str], None] = lambda line: None
    ) -> None:
        packages = load_trackers(names)
        self._notify = notify
        self.path = run.folder / METRICS
        _keep_until(self.path, run.step)
        with disk_errors(self.path):
            self._file = self.path.open(
                "ab", buffering=0
            )  # nothing is left behind that close() could not write
        self._trackers: dict[str, Tracker] = {}
        for name, package in packages.items():
            made = self._guarded(name, lambda name=name, package=package: TRACKERS[name][1](package, run))
            if made is not None:
                self._trackers[name] = made

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """One line: the step and its figures. Texts go to the file alone; trackers take numbers."""
        line = orjson.dumps({"step": step, **values}, option=orjson.OPT_APPEND_NEWLINE)
        with disk_errors(self.path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        numbers = {
            name: float(value)
            for name, value in values.items()
            if not isinstance(value, str) and math.isfinite(value)
        }
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, numbers))

    def _guarded(self, name: str, act: Callable[[], Any]) -> Any:
        try:
            with contextlib.redirect_stdout(
                sys.stderr
            ):  # some of them talk, and stdout is for what was asked for
                return act()
        except Exception as error:  # noqa: BLE001 (each tracker has errors of its own; none is worth the run)
            self._trackers.pop(name, None)
            self._notify(f"{name} is left out from here on: {type(error).__name__}: {str(error)[:200]}")
            return None

    def close(self) -> None:
        """Hands over what trackers still hold, and has the file on the disk."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.close)
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to one that a kill cut off."""
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            item = orjson.loads(line)
        except orjson.JSONDecodeError:
            break
        if not isinstance(item, dict) or not isinstance(item.get("step"), int):
            break
        found.append(item)
    return found


def check_metrics(path: Path) -> None:
    """Raise TargetExists for a file in the place of a run's figures whose first line no run of ojak wrote."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.readline(MOST_LINE_BYTES)
    # Without an end it may be a line that a kill cut off.
    if (first.endswith(b"\n") or len(first) == MOST_LINE_BYTES) and not _is_own(first):
        raise TargetExists(
            f"{path} is there already",
            why="no run of ojak wrote it, and this run's figures would take its place",
            fix="choose another --out",
        )


def _is_own(line: bytes) -> bool:
    """Whether a line is one of a run's: a step's figures, an evaluation's or a probe's."""
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(item, dict) or "step" not in item:
        return False
    return any(name == "supervised_tokens" or name.startswith(("val_loss", "probe_")) for name in item)


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step`; all, where the run begins anew."""
    kept = [item for item in read_metrics(path) if item["step"] <= step] if step else []
    write_atomic(path, b"".join(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE) for item in kept))
