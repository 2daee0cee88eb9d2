"""Numbers with intervals: area under the ROC curve, correlations, shares. All intervals are of 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ojak._interval import Estimate, Z, wilson

Floats = NDArray[np.float64]


def ranks(values: Sequence[float] | Floats) -> Floats:
    """Ranks from 1, equal values sharing their mean rank."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The probability that a good row has a higher value than a bad one, ties counting a half (Mann and Whitney)."""
    if not len(good) or not len(bad):
        return math.nan
    order = ranks([*good, *bad])[: len(good)]
    return float((order.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def auroc_interval(good: Sequence[float], bad: Sequence[float]) -> Estimate:
    """`auroc` with the score interval of Newcombe (Statistics in Medicine 25, 2006, method 5).

    Its variance is that of Hanley and McNeil (Radiology 143, 1982) with both sizes replaced by their mean, at each
    candidate value instead of at the estimate: so it has a width at 0 and 1, too, where DeLong's has none.
    """
    value = auroc(good, bad)
    if math.isnan(value):
        return (math.nan, math.nan, math.nan)
    m, n = len(good), len(bad)

    def inside(candidate: float) -> bool:
        return abs(value - candidate) <= Z * math.sqrt(_variance(candidate, m, n))

    return value, _edge(inside, value, 0.0), _edge(inside, value, 1.0)


def _variance(area: float, m: int, n: int) -> float:
    spread = (m + n) / 2 - 1
    more = spread * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * (1 + more) / (m * n)


def _edge(inside: Callable[[float], bool], start: float, end: float) -> float:
    """The last point from `start` towards `end` that is inside, by bisection. (At 0 and 1 the variance is none.)"""
    near, far = start, end
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) else (near, middle)
    return near


def mean_auroc(
    groups: Sequence[tuple[Sequence[float], Sequence[int], Sequence[float], Sequence[int]]],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean of several AUROCs over the same sources, each counting the same, with a bootstrap over the sources.

    groups: (good values, their sources, bad values, their sources). Rows of one source go together into a sample.
    """
    groups = [group for group in groups if len(group[0]) and len(group[2])]
    if not groups:
        return (math.nan, math.nan, math.nan)
    value = float(np.mean([auroc(good, bad) for good, _, bad, _ in groups]))
    sources = sorted({source for _, left, _, right in groups for source in (*left, *right)})
    place = {source: i for i, source in enumerate(sources)}
    indexed = [_wins(group, place) for group in groups]
    random = np.random.default_rng(seed)
    drawn = [_resampled(indexed, random, len(sources)) for _ in range(samples)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def _wins(
    group: tuple[Sequence[float], Sequence[int], Sequence[float], Sequence[int]], place: dict[int, int]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """The matrix of wins (good x bad; ties a half), and where the sources of its rows and columns stand."""
    good, left, bad, right = group
    difference = np.asarray(good)[:, None] - np.asarray(bad)[None]
    wins = (np.sign(difference) + 1) / 2
    return wins, np.array([place[s] for s in left]), np.array([place[s] for s in right])


def _resampled(
    groups: Sequence[tuple[Floats, NDArray[np.int64], NDArray[np.int64]]],
    random: np.random.Generator,
    count: int,
) -> float:
    weight = np.bincount(random.integers(count, size=count), minlength=count).astype(np.float64)
    areas = []
    for wins, left, right in groups:
        total = weight[left].sum() * weight[right].sum()
        if total:
            areas.append(float(weight[left] @ wins @ weight[right] / total))
    return float(np.mean(areas)) if areas else math.nan


def pearson(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Pearson's correlation with Fisher's interval; not a number where one side does not vary."""
    value = _correlation(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    return _fisher(value, 1 / math.sqrt(len(x) - 3) if len(x) > 3 else math.inf)


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Spearman's rank correlation; the interval is that of Bonett and Wright (Psychometrika 65, 2000)."""
    value = _correlation(ranks(x), ranks(y))
    width = math.sqrt((1 + value * value / 2) / (len(x) - 3)) if len(x) > 3 else math.inf
    return _fisher(value, width)


def _correlation(x: Floats, y: Floats) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def _fisher(value: float, width: float) -> Estimate:
    """A correlation with its interval on Fisher's scale, where 1 has no width; of three points or fewer, any value."""
    if math.isinf(width) and not math.isnan(value):
        return (value, -1.0, 1.0)
    if math.isnan(value) or abs(value) >= 1:
        return (value, value, value)
    centre = math.atanh(value)
    return value, math.tanh(centre - Z * width), math.tanh(centre + Z * width)


def share(count: float, total: int) -> Estimate:
    """A share with Wilson's interval; not a number where there is nothing to share."""
    return (count / total, *wilson(count, total)) if total else (math.nan, math.nan, math.nan)
