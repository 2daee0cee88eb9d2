"""What several trained models show together: means with intervals over seeds and rows, and differences between arms.

Two kinds of chance stand behind a figure of an arm: another seed would have trained another model, and other rows would
have been easier or harder. The first has a t interval over the seeds, the second a bootstrap over the rows (the same
rows for every model, drawn together, so that differences are paired). An interval here covers both; a difference is
decided where neither reaches 0. All intervals are of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

SAMPLES = 2000  # of the bootstrap
LEVEL = 0.95

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rowwise:
    """A figure that is made of rows: sum(above) / sum(below). `ids` names the rows, in the order of both."""

    ids: tuple[Any, ...]
    above: tuple[float, ...]
    below: tuple[float, ...]

    @property
    def value(self) -> float:
        return math.fsum(self.above) / math.fsum(self.below)


Figure: TypeAlias = float | Rowwise  # of one model


def t_quantile(freedom: int) -> float:
    """The t for which Student's distribution with `freedom` degrees of freedom has 95 % between -t and t."""
    low, high = 0.0, 1.0
    while t_between(high, freedom) < LEVEL:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_between(middle, freedom) < LEVEL else (low, middle)
    return (low + high) / 2


def t_between(t: float, freedom: int) -> float:
    """The probability of Student's distribution between -t and t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """The t interval of the mean of `values`, one for each seed; None for fewer than two."""
    if len(values) < 2:
        return None
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def over_rows(
    ours: Sequence[Figure], theirs: Sequence[Figure] = (), *, seed: int = 0
) -> tuple[float, float] | None:
    """A bootstrap over the rows that all the models have, of the mean of `ours` (less that of `theirs`).

    None for figures that are not made of rows, or have none in common.
    """
    tables = [each for each in (*ours, *theirs) if isinstance(each, Rowwise)]
    if len(tables) < len(ours) + len(theirs) or not tables:
        return None
    others = [set(table.ids) for table in tables[1:]]
    common = [row for row in tables[0].ids if all(row in ids for ids in others)]
    if not common:
        return None
    above, below = (_matrix(tables, common, name) for name in ("above", "below"))
    sign = np.array([1 / len(ours) for _ in ours] + [-1 / len(theirs) for _ in theirs])
    random = np.random.default_rng(seed)
    drawn = [_drawn(above, below, sign, random) for _ in range(SAMPLES)]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _matrix(tables: Sequence[Rowwise], common: Sequence[Any], name: str) -> Floats:
    """float64[models, rows]."""
    columns = [dict(zip(table.ids, getattr(table, name), strict=True)) for table in tables]
    return np.array([[column[row] for row in common] for column in columns], dtype=np.float64)


def _drawn(above: Floats, below: Floats, sign: Floats, random: np.random.Generator) -> float:
    rows = random.integers(above.shape[1], size=above.shape[1])
    return float(sign @ (above[:, rows].sum(axis=1) / below[:, rows].sum(axis=1)))


def summary(figures: Sequence[Figure], *, seed: int = 0) -> dict[str, Any]:
    """{"mean", "low", "high", "values", "over"} of one figure of an arm, from each of its seeds.

    over: what the interval is over, "seeds and rows", "seeds", "rows", or "" where there is none (low and high null).
    """
    values = [_value(figure) for figure in figures]
    interval = _interval(values, over_rows(figures, seed=seed))
    return {"mean": math.fsum(values) / len(values), **interval, "values": values}


def difference(ours: Sequence[Figure], theirs: Sequence[Figure], *, seed: int = 0) -> dict[str, Any]:
    """{"value", "low", "high", "over", "decided"} of ours minus theirs; figures in one place are of one seed.

    One figure stands against each of the others, as that of a base model, which no seed has touched.
    """
    pairs = _pairs([_value(figure) for figure in ours], [_value(figure) for figure in theirs])
    values = [a - b for a, b in pairs]
    found = _interval(values, over_rows(ours, theirs, seed=seed))
    decided = found["low"] is not None and not found["low"] <= 0 <= found["high"]
    return {"value": math.fsum(values) / len(values), **found, "decided": decided}


def _value(figure: Figure) -> float:
    return figure.value if isinstance(figure, Rowwise) else float(figure)


def _pairs(ours: list[float], theirs: list[float]) -> list[tuple[float, float]]:
    longest = max(len(ours), len(theirs))
    both = [each * longest if len(each) == 1 else each for each in (ours, theirs)]
    return list(zip(*both, strict=True))


def _interval(values: Sequence[float], rows: tuple[float, float] | None) -> dict[str, Any]:
    """The interval that covers both kinds of chance."""
    seeds = over_seeds(values)
    found = [each for each in (seeds, rows) if each is not None]
    names = [name for name, each in (("seeds", seeds), ("rows", rows)) if each is not None]
    low = min((each[0] for each in found), default=None)
    high = max((each[1] for each in found), default=None)
    return {"low": low, "high": high, "over": " and ".join(names)}


def compare(
    arms: Mapping[str, Sequence[Mapping[str, Figure]]],
    against: str,
    *,
    comparable: Mapping[str, Mapping[str, object]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every arm with its figures, and the differences of the others to `against`.

    arms: for each the figures by name of each of its seeds, in one order of seeds. comparable: for a figure that is not
    of the same thing everywhere what it is of, by arm: only equal ones are subtracted.
    """
    names = list(dict.fromkeys(name for seeds in arms.values() for figures in seeds for name in figures))
    found: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    differences: dict[str, dict[str, Any]] = {arm: {} for arm in arms if arm != against}
    for name in names:
        having = {
            arm: [figures[name] for figures in seeds]
            for arm, seeds in arms.items()
            if all(name in figures for figures in seeds)
        }
        for arm, figures in having.items():
            found[arm][name] = summary(figures, seed=seed)
        of = (comparable or {}).get(name, {})
        for arm in having.keys() - {against} if against in having else ():
            if of.get(arm) == of.get(against):
                differences[arm][name] = difference(having[arm], having[against], seed=seed)
    return {"metrics": names, "arms": found, "against": against, "differences": differences}
