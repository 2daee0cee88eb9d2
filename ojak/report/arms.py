"""Models compared: the numbers of an evaluation of several arms, which differences are decided, and what that says.

The manifest (kind "comparison") is read leniently: what is no number is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ojak.report.folders import peek
from ojak.report.measures import as_number, dig
from ojak.report.metrics import Metric, metric
from ojak.report.text import fixed

BASE = "base"
MAX_ARMS, MAX_METRICS, MAX_SEEDS = 24, 24, 64
MAX_NAME = 60
OF_A_SEED = re.compile(r"(.+)-seed-(-?\d{1,20})")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval, and the values of the seeds; None where no interval is known."""

    mean: float
    interval: tuple[float, float] | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean minus that of the arm compared against; `decided`: more than noise."""

    value: float
    interval: tuple[float, float] | None
    decided: bool


@dataclass(frozen=True, slots=True)
class Arms:
    """What was measured: arm -> metric -> estimate, and the differences from the arm `against`."""

    metrics: list[Metric]
    measured: dict[str, dict[str, Estimate]]
    against: str
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The arms, the untrained model first, then the one compared against."""
        return sorted(self.measured, key=lambda name: (name != BASE, name != self.against))

    @property
    def pair(self) -> tuple[str, str] | None:
        """(untrained model, trained one), where these two are all there is."""
        names = self.names
        return (BASE, names[1]) if len(names) == 2 and names[0] == BASE == self.against else None

    @property
    def seeds(self) -> int:
        """How often an arm was trained, at most."""
        return max((len(each.values) for _, line in self._trained() for each in line.values()), default=0)

    def _trained(self) -> Iterator[tuple[str, dict[str, Estimate]]]:
        return ((name, line) for name, line in self.measured.items() if name != BASE)


def read_arms(folder: Path) -> Arms:
    """The comparison in `folder`; measures and arms without a number are left out."""
    stats = peek(folder).get("stats")
    measured = _by_arm(dig(stats, "arms"), _estimate)
    named = dig(stats, "metrics")
    found = dict.fromkeys([*_names(named), *(name for line in measured.values() for name in line)])
    shown = [name for name in found if any(name in line for line in measured.values())]
    differences = _by_arm(dig(stats, "differences"), _difference)
    against = str(dig(stats, "against"))[:MAX_NAME]
    return Arms([metric(name) for name in shown[:MAX_METRICS]], measured, against, differences)


def _names(value: Any) -> list[str]:
    return [name[:MAX_NAME] for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _by_arm(value: Any, read: Any) -> dict[str, dict[str, Any]]:
    """{arm: {metric: what `read` makes of it}}, without what it makes nothing of."""
    found: dict[str, dict[str, Any]] = {}
    for arm, line in list(value.items())[:MAX_ARMS] if isinstance(value, dict) else ():
        items = list(line.items())[: 4 * MAX_METRICS] if isinstance(line, dict) else []
        known = {name[:MAX_NAME]: item for name, each in items if (item := read(each)) is not None}
        if known:
            found[arm[:MAX_NAME]] = known
    return found


def _estimate(value: Any) -> Estimate | None:
    mean = as_number(dig(value, "mean"))
    values = dig(value, "values")
    known = [as_number(each) for each in values[:MAX_SEEDS]] if isinstance(values, list) else []
    seeds = tuple(each for each in known if each is not None)
    return None if mean is None else Estimate(mean, _interval(value), seeds)


def _difference(value: Any) -> Difference | None:
    size = as_number(dig(value, "value"))
    return None if size is None else Difference(size, _interval(value), dig(value, "decided") is True)


def _interval(value: Any) -> tuple[float, float] | None:
    low, high = as_number(dig(value, "low")), as_number(dig(value, "high"))
    return (low, high) if low is not None and high is not None and low <= high else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A difference in words; `kind` is better, worse, other or open."""

    difference: str
    interval: str
    words: str
    kind: str


@dataclass(frozen=True, slots=True)
class Strip:
    """Where the mean, the ends of its interval and its seeds' values lie, in percent of the width."""

    mean: float
    interval: tuple[float, float] | None
    seeds: list[float]


@dataclass(frozen=True, slots=True)
class Line:
    """An arm in the table of one measure; `verdict` is None for the one compared with, and where nothing compares.

    `strip` is None for an untrained model beyond the scale of the trained ones.
    """

    arm: str
    mean: str
    interval: str
    strip: Strip | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Table:
    """One measure over all arms."""

    metric: Metric
    lines: list[Line]


def tables(arms: Arms) -> list[Table]:
    """A table for each measure, its lines in the order of the arms."""
    return [Table(each, _lines(arms, each)) for each in arms.metrics]


def _lines(arms: Arms, each: Metric) -> list[Line]:
    known = {name: arms.measured[name][each.name] for name in arms.names if each.name in arms.measured[name]}
    found = {name: replace(known[name], interval=each.within(known[name].interval)) for name in known}
    trained = [estimate for name, estimate in found.items() if name != BASE]
    # The untrained model is far from the others, which would lie in one place on a scale that holds it.
    ends = [end for estimate in (trained if len(trained) > 1 else found.values()) for end in _ends(estimate)]
    low, high = min(ends), max(ends)
    return [
        Line(
            name,
            each.show(estimate.mean),
            _span(each, estimate.interval),
            _strip(estimate, low, high)
            if low <= min(_ends(estimate)) <= max(_ends(estimate)) <= high
            else None,
            _verdict(arms, name, each),
        )
        for name, estimate in found.items()
    ]


def _ends(estimate: Estimate) -> list[float]:
    return [estimate.mean, *(estimate.interval or ()), *estimate.values]


def _span(each: Metric, interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{each.show(interval[0])} to {each.show(interval[1])}"


def _strip(estimate: Estimate, low: float, high: float) -> Strip:
    def at(value: float) -> float:
        return round(4 + 92 * (value - low) / (high - low), 2) if high > low else 50.0

    ends = estimate.interval
    return Strip(
        at(estimate.mean),
        (at(ends[0]), at(ends[1])) if ends else None,
        [at(each) for each in estimate.values],
    )


def _verdict(arms: Arms, name: str, each: Metric) -> Verdict | None:
    found = arms.differences.get(name, {}).get(each.name)
    if found is None or name == arms.against:
        return None
    ends = found.interval
    interval = f"{each.difference(ends[0])} to {each.difference(ends[1])}" if ends else ""
    difference = each.difference(found.value) + each.unit
    if not found.decided:
        words = "not decided" if ends else "not decided: no interval"
        return Verdict(difference, interval, words, "open")
    word = each.verdict(found.value)
    kind = word if word in ("better", "worse") else "other"
    return Verdict(difference, interval, f"decided: {word}", kind)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the comparison says of noise: how many differences have an interval, and those that are decided, by arm.

    by_arm: for each arm (word, the measures of which it is decided). The untrained model is among them, but not counted
    beside several arms: that training changes a model is not their question. chance: how many of the differences 95 %
    intervals would decide by chance alone, were there no difference at all.
    """

    total: int
    decided: int
    chance: str
    by_arm: list[tuple[str, list[tuple[str, list[str]]]]]


def answer(arms: Arms, *, cost: bool) -> Answer:
    """Of the measures of quality, or of those of cost."""
    total = decided = 0
    by_arm = []
    for name in arms.names:
        line = [
            (each, arms.differences.get(name, {}).get(each.name))
            for each in arms.metrics
            if each.cost == cost
        ]
        found = [(each, item) for each, item in line if item is not None and (item.interval or item.decided)]
        if name == arms.against or not found:
            continue
        words: dict[str, list[str]] = {}
        for each, item in found:
            if item.decided:
                words.setdefault(each.verdict(item.value), []).append(_inner(each.title))
        if name != BASE:
            total, decided = total + len(found), decided + sum(map(len, words.values()))
        by_arm.append((name, list(words.items())))
    return Answer(total, decided, fixed(0.05 * total, 1), by_arm)


def _inner(title: str) -> str:
    """A title within a sentence; chrF keeps its letters."""
    return title[:1].lower() + title[1:]


def arm_of(folder: str) -> tuple[str, int]:
    """(arm, seed) of a folder of answers: `<arm>-seed-<n>`; any other name is the arm's, `base` among them."""
    match = OF_A_SEED.fullmatch(folder)
    return (match[1][:MAX_NAME], int(match[2])) if match else (folder[:MAX_NAME], 0)


def ordered(found: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Names of arms: the untrained model, those of `arms` in their order, the others."""
    places = {name: place for place, name in enumerate(arms)}
    return sorted(found, key=lambda name: (name != BASE, places.get(name, len(places)), name))
