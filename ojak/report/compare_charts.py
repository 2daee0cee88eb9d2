"""Geometry of the comparison's figures: one line, panel or bar for each data set, always in the order of the sets."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ojak.judge.labels import LABELS
from ojak.report.charts import (
    BOTTOM,
    HEAT_LEVELS,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    HeatCell,
    Mark,
    nice_step,
)
from ojak.report.measures import Lengths
from ojak.report.text import number, percent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Curve: TypeAlias = Sequence[tuple[int, float]]
TOP = 12
PANEL = 520
DISTANCE_BINS = 25
MOST_CATEGORIES = 14


@dataclass(slots=True)
class Lines:
    """A figure with a line for each set; `paths` are (set's number, SVG path). `table`: the same as numbers."""

    what: str
    x_unit: str
    y_unit: str
    summary: str
    paths: list[tuple[int, str]]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    table: list[tuple[str, list[str]]]
    note: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    base: int = HEIGHT - BOTTOM


def length_lines(what: str, unit: str, lengths: Sequence[Lengths]) -> Lines | None:
    """Shares of turns over their length, in bins that widen by a factor of about 1.4: sets differ by orders."""
    shown = [each for each in lengths if each.rows]
    if not shown:
        return None
    edges = _edges(max(max(each.counts) for each in shown))
    shares = [_shares(each.counts, edges) for each in lengths]
    names = [_bin_name(low, high) for low, high in itertools.pairwise(edges)]
    bins = len(names)
    ticks = [index for index, edge in enumerate(edges) if edge == 0 or math.log2(edge) % 2 == 0]
    marks = [Mark(_x(index / bins), number(edges[index])) for index in ticks]
    summary = "; ".join(f"median {number(each.quantile(0.5))}" for each in lengths)
    note = "The steps widen by a factor of about 1.4."
    return _stairs_figure(what, unit, "turns", summary, shares, names, marks, note)


def _edges(longest: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, ...: the powers of the root of two, until `longest` is in a bin."""
    edges = [0, 1, 2]
    for half in itertools.count(3):
        if edges[-1] > longest:
            return edges
        edges.append(round(2 ** (half / 2)))
    return edges


def _shares(counts: Counter[int], edges: Sequence[int]) -> list[float]:
    found, total = [0] * (len(edges) - 1), max(counts.total(), 1)
    for value, rows in counts.items():
        found[bisect.bisect_right(edges, value) - 1] += rows
    return [rows / total for rows in found]


def _bin_name(low: int, high: int) -> str:
    return number(low) if high == low + 1 else f"{number(low)} to {number(high - 1)}"


def distance_lines(distances: Sequence[NDArray[np.float32]]) -> Lines:
    """Shares of instructions over the cosine distance to the nearest other one of the same set, from 0 to 1."""
    import numpy as np

    shares = [_distance_shares(each) for each in distances]
    names = [f"{i / DISTANCE_BINS:.2f} to {(i + 1) / DISTANCE_BINS:.2f}" for i in range(DISTANCE_BINS)]
    marks = [Mark(_x(value / 5), f"{value / 5:.1f}") for value in range(6)]
    medians = [f"median {np.median(each):.2f}" if len(each) else "no neighbour" for each in distances]
    return _stairs_figure(
        "Distance to the nearest neighbour",
        "cosine distance",
        "instructions",
        "; ".join(medians),
        shares,
        names,
        marks,
    )


def _distance_shares(distances: NDArray[np.float32]) -> list[float]:
    import numpy as np

    counts, _ = np.histogram(np.clip(distances, 0, 1), bins=DISTANCE_BINS, range=(0, 1))
    return (counts / max(len(distances), 1)).tolist()


def _stairs_figure(
    what: str,
    x_unit: str,
    of: str,
    summary: str,
    shares: Sequence[Sequence[float]],
    names: Sequence[str],
    x_ticks: list[Mark],
    note: str = "",
) -> Lines:
    y_max, y_ticks = _percent_axis(max(map(max, shares)))
    paths = [(index, _stairs(each, y_max)) for index, each in enumerate(shares) if any(each)]
    table = [(name, [percent(each[row]) for each in shares]) for row, name in enumerate(names)]
    return Lines(what, x_unit, f"% of {of}", summary, paths, x_ticks, y_ticks, table, note)


def _percent_axis(highest: float) -> tuple[float, list[Mark]]:
    """The top of the axis as a share, and its ticks at whole percents."""
    step = nice_step(max(100 * highest, 1), 4)
    top = step * max(1, math.ceil(100 * highest / step))
    return top / 100, [Mark(_y(value / top), number(value)) for value in range(0, top + 1, step)]


def _stairs(shares: Sequence[float], y_max: float) -> str:
    slot = (WIDTH - LEFT - RIGHT) / len(shares)
    parts = [f"M{LEFT} {HEIGHT - BOTTOM}"]
    for index, share in enumerate(shares):
        parts.append(f"V{_y(share / y_max):g}H{round(LEFT + (index + 1) * slot, 1):g}")
    return "".join([*parts, f"V{HEIGHT - BOTTOM}"])


def _x(part: float) -> float:
    return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)


def _y(part: float) -> float:
    return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)


def curve_lines(what: str, y_unit: str, curves: Sequence[Curve]) -> Lines:
    """Shares over the number of instructions, which grows by powers of ten along the axis."""
    most = max((curve[-1][0] for curve in curves if curve), default=10)
    low, high = 1.0, max(math.log10(most), 1.1)
    y_max, y_ticks = _percent_axis(max((share for curve in curves for _, share in curve), default=0))

    def at(size: float) -> float:
        return _x(max(math.log10(max(size, 1)) - low, 0) / (high - low))

    paths = [
        (index, "M" + "L".join(f"{at(size):g} {_y(share / y_max):g}" for size, share in curve))
        for index, curve in enumerate(curves)
        if curve
    ]
    ticks = [Mark(at(10**power), number(10**power)) for power in range(1, int(high) + 1)]
    sizes = sorted({size for curve in curves for size, _ in curve})
    shares = [dict(curve) for curve in curves]
    table = [
        (number(size), [percent(each[size]) if size in each else "\u2013" for each in shares])
        for size in sizes
    ]
    ends = "; ".join(f"{percent(curve[-1][1])} of {number(curve[-1][0])}" for curve in curves if curve)
    return Lines(what, "instructions", y_unit, ends, paths, ticks, y_ticks, table)


@dataclass(frozen=True, slots=True)
class Panel:
    """One set's points on the map, as the path of dots with the number `id`; `count` of them before equal ones met."""

    id: int
    count: int
    path: str


def panels(points: Sequence[NDArray[np.float32]]) -> list[Panel]:
    """All sets on one square of 520 units, to one scale on both axes; dots that meet are drawn once."""
    import numpy as np

    every = np.concatenate(points)
    low, high = every.min(axis=0), every.max(axis=0)
    span = float((high - low).max()) or 1.0
    middle = (low + high) / 2
    room = PANEL - 20
    found = []
    for index, each in enumerate(points):
        cells = np.rint((each - middle) / span * room + PANEL / 2).astype(int)
        dots = sorted({(int(x), PANEL - int(y)) for x, y in cells})
        found.append(Panel(index, len(each), "".join(f"M{x} {y}h0" for x, y in dots)))
    return found


@dataclass(frozen=True, slots=True)
class LabelBar:
    """One set's labels of a field: segments (x, width, level) in percent, and (label, share) of each, in order."""

    set: int
    rows: int
    segments: list[tuple[float, float, int]]
    shares: list[tuple[str, str]]
    others: int


def label_bars(name: str, labels: Sequence[Mapping[str, int]]) -> list[LabelBar]:
    """A bar for each set that has labels of an ordered field; labels of no known order are only counted."""
    found = []
    for index, counts in enumerate(labels):
        folded = Counter[str]()
        for label, rows in counts.items():
            folded[label.casefold()] += rows
        known = [(label, folded[label]) for label in LABELS[name]]
        total = sum(rows for _, rows in known)
        if total:
            found.append(_label_bar(index, known, total, folded.total() - total))
    return found


def _label_bar(index: int, known: Sequence[tuple[str, int]], total: int, others: int) -> LabelBar:
    segments, at = [], 0.0
    for level, (_, rows) in enumerate(known):
        segments.append((round(at, 3), round(100 * rows / total, 3), level))
        at += 100 * rows / total
    return LabelBar(index, total, segments, [(label, percent(rows / total)) for label, rows in known], others)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of tinted shares, with a row and its cells for each name; None where there is nothing to say."""

    rows: list[tuple[str, list[HeatCell | None]]] = field(default_factory=list)


def category_grid(categories: Sequence[Mapping[str, int]]) -> Grid:
    """The commonest categories (rows) of the sets (columns), as shares of the rows that have one."""
    totals = [sum(counts.values()) for counts in categories]
    shares = [
        {label: rows / total for label, rows in counts.items()} if total else None
        for counts, total in zip(categories, totals, strict=True)
    ]
    weight: dict[str, float] = {}  # of shares, not of rows, so that a large set does not decide alone
    for each in filter(None, shares):
        for label, share in each.items():
            weight[label] = weight.get(label, 0) + share
    named = sorted(weight, key=lambda label: (-weight[label], label))[:MOST_CATEGORIES]
    lines = [(label, [None if each is None else each.get(label, 0.0) for each in shares]) for label in named]
    return _tinted(lines, totals)


def coverage_grid(names: Sequence[str], shares: Sequence[Sequence[float]], rows: Sequence[int]) -> Grid:
    """The share of each set's instructions (row) that are near one of another set (column)."""
    return _tinted(list(zip(names, shares, strict=True)), rows, across=True)


def _tinted(
    lines: Sequence[tuple[str, Sequence[float | None]]], rows: Sequence[int], *, across: bool = False
) -> Grid:
    """`rows`: what each share is of, by column, or by line if `across`."""
    most = max((share for _, line in lines for share in line if share is not None), default=0) or 1
    found: list[tuple[str, list[HeatCell | None]]] = []
    for at, (name, line) in enumerate(lines):
        cells = [
            None
            if share is None
            else HeatCell(percent(share), _level(share / most), rows[at if across else column])
            for column, share in enumerate(line)
        ]
        found.append((name, cells))
    return Grid(found)


def _level(part: float) -> int:
    return min(HEAT_LEVELS - 1, round((HEAT_LEVELS - 1) * part))
