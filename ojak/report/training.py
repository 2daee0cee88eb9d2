"""The training runs that a page tells of: settings, results and loss curves, from the folders that `ojak train` leaves.

Their manifests and metrics are read leniently: a number that is missing or none is left out, a folder that a manifest
names outside its own is not looked into.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ojak.report import text
from ojak.report.folders import inside, peek
from ojak.report.measures import as_number, dig
from ojak.report.metrics import HELD_OUT, PROBE

METRICS = "metrics.jsonl"
MAX_RUNS, MAX_NAME = 64, 60
MAX_LINES, MAX_LINE = 500_000, 65_536
MAX_POINTS = 100  # of a curve, after neighbouring steps were put together
MAX_SETTINGS = 40
MAX_CURVES = 20  # of a run: losses in training, on validation rows, on further held-out ones; kinds of facts
CURVES = re.compile(
    r"loss|val_loss(?:_[a-z][a-z0-9_]{0,39})?|probe_[a-z][a-z0-9_-]{0,39}_(?:accuracy|logprob)"
)


@dataclass(frozen=True, slots=True)
class Point:
    """A figure after `step` steps, which had supervised `tokens` tokens by then; None where that is not recorded."""

    step: float
    tokens: float | None
    value: float


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run: `losses` are thinned to means of neighbouring steps, `checks` are the validation losses.

    more: the losses on further held-out rows, by their names. known: what was known by heart, by the kind of the facts
    and the measure ("qa_accuracy").
    """

    arm: str
    seed: str
    folder: Path
    manifest: dict[str, Any]
    result: dict[str, Any]
    losses: list[Point]
    checks: list[Point]
    together: int  # steps that one of `losses` is the mean of
    more: dict[str, list[Point]] = field(default_factory=dict)
    known: dict[str, list[Point]] = field(default_factory=dict)

    @property
    def curves(self) -> list[list[Point]]:
        """All that was measured while it ran."""
        return [self.losses, self.checks, *self.more.values(), *self.known.values()]

    @property
    def config(self) -> dict[str, Any]:
        """The settings that its manifest records."""
        found = self.manifest.get("config")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Training:
    """All runs, in the order of the arms and their seeds; `left_out`: runs that a page has no room for."""

    runs: list[TrainingRun] = field(default_factory=list)
    left_out: int = 0

    @property
    def arms(self) -> dict[str, list[TrainingRun]]:
        """The runs of each arm."""
        found: dict[str, list[TrainingRun]] = {}
        for run in self.runs:
            found.setdefault(run.arm, []).append(run)
        return found


def read_training(folders: Sequence[Path]) -> Training:
    """The runs below `folders`: each of one run (kind "training"), or of arms and seeds (kind "train")."""
    places = [place for folder in folders for place in _places(folder)]
    return Training([_run(*place) for place in places[:MAX_RUNS]], max(0, len(places) - MAX_RUNS))


def _places(folder: Path) -> Iterator[tuple[str, str, Path, dict[str, Any]]]:
    """(arm, seed, folder, result) of each run."""
    manifest = peek(folder)
    if manifest.get("kind") == "training":
        yield folder.name[:MAX_NAME], str(dig(manifest, "config", "seed"))[:20], folder, _result(manifest)
        return
    runs = dig(manifest, "stats", "runs")
    for entry in runs if isinstance(runs, list) else ():
        arm, seed = str(dig(entry, "arm"))[:MAX_NAME], str(dig(entry, "seed"))[:20]
        named = dig(entry, "folder")
        names = [named] if isinstance(named, str) else []
        found = next(filter(None, (inside(folder, name) for name in [*names, f"{arm}/seed-{seed}"])), None)
        if isinstance(entry, dict) and found is not None:
            yield arm, seed, found, _result(entry)


def _result(manifest: dict[str, Any]) -> dict[str, Any]:
    found = manifest.get("result")
    return found if isinstance(found, dict) else {}


def _run(arm: str, seed: str, folder: Path, result: dict[str, Any]) -> TrainingRun:
    manifest = peek(folder)
    curves = read_curves(folder / METRICS)
    losses, checks = curves.pop("loss", []), curves.pop("val_loss", [])
    together = -(-len(losses) // MAX_POINTS) or 1
    return TrainingRun(
        arm, seed, folder, manifest, result or _result(manifest), _thinned(losses, together),
        _some(checks), together, _named(curves, HELD_OUT), _named(curves, PROBE),
    )  # fmt: skip


def _named(curves: dict[str, list[Point]], prefix: str) -> dict[str, list[Point]]:
    """The curves whose names begin so, by the rest of them."""
    return {
        name.removeprefix(prefix): _some(points) for name, points in curves.items() if name.startswith(prefix)
    }


def read_curves(path: Path) -> dict[str, list[Point]]:
    """The curves of a metrics.jsonl by name: "loss", "val_loss", "val_loss_<rows>", and of a probe the accuracy and the
    log-probability, "probe_<kind>_accuracy". In its order.

    Lines that are none are passed over, and so are names beyond `MAX_CURVES`.
    """
    found: dict[str, list[Point]] = {}
    tokens = None
    for line in _lines(path):
        step = as_number(line.get("step"))
        if step is None or step < 0:
            continue
        tokens = as_number(line.get("supervised_tokens", 0 if step == 0 else tokens))
        for name in filter(CURVES.fullmatch, line):
            room = name in found or len(found) < MAX_CURVES
            if room and (value := as_number(line[name])) is not None:
                found.setdefault(name, []).append(Point(step, tokens, value))
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in itertools.islice(iter(lambda: file.readline(MAX_LINE), b""), MAX_LINES):
            try:
                found = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(found, dict):
                yield found


def _some(points: Sequence[Point]) -> list[Point]:
    """At most `MAX_POINTS` of the points, evenly taken, the first and the last among them."""
    last = len(points) - 1
    places = range(len(points)) if last < MAX_POINTS else range(MAX_POINTS)
    return [points[round(place * last / max(1, len(places) - 1))] for place in places]


def _thinned(points: Sequence[Point], together: int) -> list[Point]:
    """The means of so many neighbouring points each."""
    groups = (points[at : at + together] for at in range(0, len(points), together))
    return [_mean(group) for group in groups]


def _mean(points: Sequence[Point]) -> Point:
    tokens = [point.tokens for point in points if point.tokens is not None]
    return Point(
        statistics.fmean(point.step for point in points),
        statistics.fmean(tokens) if len(tokens) == len(points) else None,
        statistics.fmean(point.value for point in points),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """One line of the table of what training took: means over an arm's runs, as text; empty where none is recorded."""

    arm: str
    runs: int
    cells: list[str]


COSTS = (
    ("Steps", "steps", text.number),
    ("Tokens", "tokens", text.number),
    ("Supervised tokens", "supervised_tokens", text.number),
    ("Tokens a second", "tokens_per_s", text.number),
    ("Time of a run", "seconds", text.duration),
    ("Peak memory", "peak_memory_mb", lambda value: text.size(value * 2**20)),
    ("First loss", "loss_first", lambda value: text.fixed(value, 3)),
    ("Last loss", "loss_last", lambda value: text.fixed(value, 3)),
    ("Validation loss", "val_loss", lambda value: text.fixed(value, 3)),
)


def costs(training: Training) -> tuple[list[str], list[Cost]]:
    """The table's columns, those that any run has a number for, and a line for each arm."""
    means = {arm: [_mean_of(runs, name) for _, name, _ in COSTS] for arm, runs in training.arms.items()}
    shown = [at for at in range(len(COSTS)) if any(line[at] is not None for line in means.values())]
    lines = [
        Cost(arm, len(training.arms[arm]), [_shown(COSTS[at][2], line[at]) for at in shown])
        for arm, line in means.items()
    ]
    return [COSTS[at][0] for at in shown], lines


def _shown(show: Callable[[float], str], value: float | None) -> str:
    return "" if value is None else show(value)


def _mean_of(runs: Sequence[TrainingRun], name: str) -> float | None:
    values = [value for run in runs if (value := as_number(run.result.get(name))) is not None and value >= 0]
    return statistics.fmean(values) if values else None


def total(training: Training, name: str) -> float | None:
    """The sum of a number of the results over all runs; None where one has none."""
    values = [as_number(run.result.get(name)) for run in training.runs]
    known = [value for value in values if value is not None and value >= 0]
    return sum(known) if known and len(known) == len(values) else None


def differing_settings(training: Training) -> list[tuple[str, list[str]]]:
    """(setting, its value in each arm) for those in which the arms' first runs are not alike."""
    settings = [_settings(runs[0]) for runs in training.arms.values()]
    names = dict.fromkeys(name for each in settings for name in each)
    lines = [(name, [each.get(name, "\u2013") for each in settings]) for name in names]
    return [line for line in lines if len(set(line[1])) > 1 and line[0] != "seed"][:MAX_SETTINGS]


def _settings(run: TrainingRun) -> dict[str, str]:
    return {name[:120]: value[:400] for name, value in text.flatten(run.config)} if run.config else {}
