"""The stability gap: how much a loss rises before training mends it again, and how long that takes.

A model that learns on from texts of a field first loses some of what it knew (Guo et al. 2024, arXiv 2406.14833). It is
told from the losses on held-out rows: the first of them was taken before the first step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ojak.report.text import fixed, number, signed
from ojak.report.training import Point, Training, TrainingRun

VALIDATION = "validation"  # what the rows of `val_data` are called


@dataclass(frozen=True, slots=True)
class Gap:
    """before: the loss before the first step. depth: how far the largest later one is above it, 0 where none is.

    worst: the step of the largest. recovered: the steps until the loss is no more than `before` again, on a straight
    line between two checks; 0 where it never rose, None where it did not come back. change: of the last one.
    """

    before: float
    depth: float
    worst: float
    recovered: float | None
    change: float


def stability_gap(points: Sequence[tuple[float, float]]) -> Gap | None:
    """The gap in a loss, from its (step, loss) in rising order of steps. None where there are not two of them, or where
    nothing was measured before the first step."""
    if len(points) < 2 or points[0][0] != 0:
        return None
    before = points[0][1]
    worst = max(range(len(points)), key=lambda place: points[place][1])
    depth = points[worst][1] - before
    recovered = _recovered(points[worst:], before) if depth > 0 else 0.0
    return Gap(before, depth, points[worst][0], recovered, points[-1][1] - before)


def _recovered(points: Sequence[tuple[float, float]], before: float) -> float | None:
    """Where a curve that begins above `before` first comes down to it."""
    for (left, above), (right, below) in pairwise(points):
        if below <= before:
            return left + (right - left) * (above - before) / (above - below)
    return None


@dataclass(frozen=True, slots=True)
class GapLine:
    """One arm's losses on some rows, means over its runs as text. `back`: in how many of `runs` the loss came back."""

    arm: str
    rows: str
    before: str
    depth: str
    recovered: str
    change: str
    back: int
    runs: int


def gap_lines(training: Training) -> list[GapLine]:
    """A line for each arm and each of its held-out rows that were measured before the first step."""
    found: list[GapLine] = []
    for arm, runs in training.arms.items():
        for rows in dict.fromkeys(name for run in runs for name in _curves(run)):
            gaps = [gap for run in runs if (gap := stability_gap(_curves(run).get(rows, [])))]
            found += [_line(arm, rows, gaps)] if gaps else []
    return found


def _curves(run: TrainingRun) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[Point]] = {VALIDATION: run.checks, **run.more}
    return {name: [(point.step, point.value) for point in points] for name, points in curves.items()}


def _line(arm: str, rows: str, gaps: Sequence[Gap]) -> GapLine:
    def mean(of: Callable[[Gap], float]) -> float:
        return statistics.fmean(map(of, gaps))

    back = [gap.recovered for gap in gaps if gap.recovered is not None]
    change = mean(lambda gap: gap.change)
    return GapLine(
        arm,
        rows,
        fixed(mean(lambda gap: gap.before), 3),
        fixed(mean(lambda gap: gap.depth), 3),
        number(statistics.fmean(back)) if back else "not",
        signed(fixed(abs(change), 3), change),
        len(back),
        len(gaps),
    )
