"""Geometry of the training curves: a colour for each arm, its seeds as thin lines and their mean as a thick one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ojak.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Mark, nice_step
from ojak.report.text import fixed, humanize, number, tick
from ojak.report.training import Point, Training, TrainingRun

Curve: TypeAlias = list[tuple[float, float]]
MAX_ARMS = 8  # as many as there are colours
TOP = 12
MEAN_POINTS = 60
TABLE_POINTS = 8
ACCURACY = "accuracy"
KNOWN_UNITS = {ACCURACY: "share of right answers", "logprob": "nats a token"}
KNOWN_NOTES = {
    ACCURACY: "The share of prompts whose right answer is likelier than each of the wrong ones beside it.",
    "logprob": "How likely the right answers are: the log-probability of a token of them.",
}
# Runs that are not alike in these count different things in their losses; comparisons of models have such a rule, too.
SHAPING = ("objective", "distil", "prefer", "reinforce", "style", "mask_roles", "model")


@dataclass(frozen=True, slots=True)
class ArmCurve:
    """An arm's lines as SVG paths: one for each seed (none for a single one), and their mean. `color`: its number.

    `dots`: the losses of checks, where the figure has them as dots.
    """

    arm: str
    color: int
    seeds: list[str]
    mean: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """A figure in a box of `width` x `height`, what it says in words, and its means as a table."""

    what: str
    y_unit: str
    x_unit: str
    summary: str
    arms: list[ArmCurve]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    table: list[tuple[str, list[str]]]
    note: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    base: int = HEIGHT - BOTTOM


def figures(training: Training, colors: dict[str, int]) -> list[CurveFigure]:
    """The loss in training, those on held-out rows that were taken more than once, and what was known by heart; on
    validation rows, a loss taken once is a dot."""
    arms = {arm: runs for arm, runs in training.arms.items() if arm in colors}
    runs = [run for each in arms.values() for run in each]
    by_tokens = all(point.tokens is not None for run in runs for points in run.curves for point in points)
    often = any(len(run.checks) > 1 for run in runs)
    losses = {arm: [_curve(run.losses, by_tokens) for run in each] for arm, each in arms.items()}
    checks = {arm: [_curve(run.checks, by_tokens) for run in each] for arm, each in arms.items()}
    dots = {} if often else checks
    unit = "supervised tokens" if by_tokens else "steps"
    found = [
        _figure(
            "Loss in training", unit, losses, dots, colors, _note(arms.values(), any(map(any, dots.values())))
        )
    ]
    if often:
        found.append(_figure("Loss on validation rows", unit, checks, {}, colors, ""))
    more = _often(arms, lambda run: run.more, by_tokens)
    found += [
        _figure(f"Loss on held-out rows: {humanize(name)}", unit, curves, {}, colors, "")
        for name, curves in more.items()
    ]
    found += _known(_often(arms, lambda run: run.known, by_tokens), unit, colors)
    return [figure for figure in found if figure is not None]


def _often(
    arms: dict[str, list[TrainingRun]], of: Callable[[TrainingRun], dict[str, list[Point]]], by_tokens: bool
) -> dict[str, dict[str, list[Curve]]]:
    """{name: the curves of each arm} of what some run measured more than once."""
    runs = [run for each in arms.values() for run in each]
    names = dict.fromkeys(name for run in runs for name, points in of(run).items() if len(points) > 1)
    return {
        name: {arm: [_curve(of(run).get(name, []), by_tokens) for run in each] for arm, each in arms.items()}
        for name in names
    }


def _known(
    often: dict[str, dict[str, list[Curve]]], unit: str, colors: dict[str, int]
) -> Iterator[CurveFigure | None]:
    """How facts are learnt and forgotten, a figure for each kind of them: the share of right answers, and where there
    are no wrong ones to choose from, how likely the right ones are."""
    for name, curves in often.items():
        kind, _, measure = name.rpartition("_")
        if measure == ACCURACY or f"{kind}_{ACCURACY}" not in often:
            yield _figure(
                f"Facts known by heart: {humanize(kind)}", unit, curves, {}, colors, KNOWN_NOTES[measure],
                y_unit=KNOWN_UNITS[measure],
            )  # fmt: skip


def _curve(points: Sequence[Point], by_tokens: bool) -> Curve:
    """(x, value) in rising order of x."""
    places = [(point.tokens if by_tokens else point.step, point.value) for point in points]
    return sorted((x, value) for x, value in places if x is not None)


def _note(arms: Collection[Sequence[TrainingRun]], dots: bool) -> str:
    runs = [run for each in arms for run in each]
    together = max((run.together for run in runs), default=1)
    parts = [f"Each point is the mean of {number(together)} steps." if together > 1 else ""]
    if dots:
        other = any(run.config.get("objective") in ("distil", "reinforce") for run in runs)
        kind = ", by cross-entropy, whatever a line is learnt by" if other else ""
        parts.append(f"Rings: the loss on validation rows at the end{kind}.")
    if apart := _apart(arms):
        parts.append(f"Not compared with each other: lines of arms that differ in {', '.join(apart)}.")
    return " ".join(filter(None, parts))


def _apart(arms: Collection[Sequence[TrainingRun]]) -> list[str]:
    """In what the arms' first runs differ that makes their losses different things."""
    configs = [runs[0].config for runs in arms if runs[0].config]
    return [name for name in SHAPING if any(each.get(name) != configs[0].get(name) for each in configs)]


def _figure(
    what: str,
    unit: str,
    curves: dict[str, list[Curve]],
    dots: dict[str, list[Curve]],
    colors: dict[str, int],
    note: str,
    y_unit: str = "loss",
) -> CurveFigure | None:
    known = {arm: [curve for curve in each if curve] for arm, each in curves.items()}
    known = {arm: each for arm, each in known.items() if each}
    every = [point for each in (*known.values(), *dots.values()) for curve in each for point in curve]
    if not known or not every:
        return None
    means = {arm: mean_curve(each) for arm, each in known.items()}
    axes = Axes.of(every)
    arms = [
        ArmCurve(
            arm,
            colors[arm],
            [axes.path(curve) for curve in each] if len(each) > 1 else [],
            axes.path(means[arm]),
            [axes.place(point) for curve in dots.get(arm, []) for point in curve],
        )
        for arm, each in known.items()
    ]
    summary = "; ".join(f"{arm}: {_ends(curve)}" for arm, curve in means.items())
    return CurveFigure(what, y_unit, unit, summary, arms, axes.x_ticks(), axes.y_ticks(), _table(means), note)


def _ends(curve: Curve) -> str:
    return f"from {fixed(curve[0][1], 3)} to {fixed(curve[-1][1], 3)}"


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves where all of them are, each taken as straight between its points; a single one is itself."""
    import numpy as np

    if len(curves) == 1:
        return curves[0]
    start, end = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if start > end:  # they never run side by side
        return max(curves, key=len)
    places = np.linspace(start, end, MEAN_POINTS if end > start else 1)
    values = [np.interp(places, [x for x, _ in curve], [y for _, y in curve]) for curve in curves]
    return list(zip(places.tolist(), np.mean(values, axis=0).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Axes:
    """From 0 to `right` across, from `low` to `high` upwards, in steps of `step` thousandths."""

    right: float
    low: float
    high: float
    step: int

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> Axes:
        """Axes with round ends that hold all points."""
        losses = [loss for _, loss in points]
        step = nice_step(max(1.0, 1000 * (max(losses) - min(losses))), 4)
        low = math.floor(1000 * min(losses) / step) * step
        high = max(math.ceil(1000 * max(losses) / step) * step, low + step)
        return cls(max(1.0, *(x for x, _ in points)), low / 1000, high / 1000, step)

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point lies in the figure."""
        across = point[0] / self.right
        up = (point[1] - self.low) / (self.high - self.low)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, curve: Curve) -> str:
        """The curve as an SVG path; a single point has length 0, which round ends make a dot."""
        places = [self.place(point) for point in curve]
        return "M" + "L".join(f"{x:g} {y:g}" for x, y in places) + ("h0" if len(places) == 1 else "")

    def x_ticks(self) -> list[Mark]:
        """At round numbers of tokens or steps; in thousands or millions where the last would be long."""
        step = nice_step(self.right, 5)
        size, unit = (10**6, "M") if step >= 10**6 else (1000, "k") if step >= 1000 else (1, "")
        values = range(0, int(self.right) + 1, step)
        return [
            Mark(self.place((value, self.low))[0], f"{value / size:g}{unit if value else ''}")
            for value in values
        ]

    def y_ticks(self) -> list[Mark]:
        """At round values."""
        digits = (
            0 if self.step % 1000 == 0 else 1 if self.step % 100 == 0 else 2 if self.step % 10 == 0 else 3
        )
        count = round((self.high - self.low) * 1000 / self.step)
        values = [self.low + index * self.step / 1000 for index in range(min(count, 10) + 1)]
        return [Mark(self.place((0, value))[1], tick(value, digits)) for value in values]


def _table(means: dict[str, Curve]) -> list[tuple[str, list[str]]]:
    """The means at a few places, as text; a dash where an arm's curve does not come near."""
    import numpy as np

    start, end = max(curve[0][0] for curve in means.values()), max(curve[-1][0] for curve in means.values())
    places = dict.fromkeys(np.linspace(start, end, TABLE_POINTS).tolist())
    near = (end - start) / TABLE_POINTS / 2
    return [(number(round(x)), [_value(curve, x, near) for curve in means.values()]) for x in places]


def _value(curve: Curve, x: float, near: float) -> str:
    import numpy as np

    if not curve[0][0] - near <= x <= curve[-1][0] + near:
        return "\u2013"
    return fixed(float(np.interp(x, [at for at, _ in curve], [loss for _, loss in curve])), 3)
