"""Geometry of the page's figures: plain numbers that the template draws as inline SVG and HTML tables.

Horizontal bars are in percent of the figure's width, so that they fit any screen while their labels keep their size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ojak.report.measures import ACCEPTED, DUPLICATE, REJECTED, Cell, Lengths, Measures, is_duplicate
from ojak.report.openings import Opening
from ojak.report.text import humanize, number, percent, setting

MAX_STEPS = 14
MAX_TILES = 1_200
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 236, 40, 10, 44, 40
MAX_BARS = 30
MAX_GRID_SIDE = 12
HEAT_LEVELS = 6
MAX_OPENINGS, MAX_NOUNS = 10, 3


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of the funnel; `kind` is total, duplicate, rejected, failed or accepted; `x`, `width` in percent."""

    label: str
    code: str
    count: int
    share: str
    x: float
    width: float
    kind: str


def funnel(measures: Measures, rows: int, failed: int) -> list[Step]:
    """The way from `rows` sampled instructions to the accepted pairs: each reason takes a bite out of what is left."""
    total = max(rows, measures.accepted + measures.rejected + failed)
    steps, left = [_step("Instructions sampled", "", rows, total, 0, "total")], total
    for side in ("instruction", "response"):
        bites = _largest([(reason, n) for (at, reason), n in measures.reasons.items() if at == side])
        if side == "response" and bites:
            steps.append(_step("Answered by the model", "", left, total, 0, "total"))
        for reason, count in bites:
            left -= count
            kind = "duplicate" if is_duplicate(reason) else "rejected"
            label = humanize(reason.removeprefix(f"{side}_"))
            steps.append(_step(label[:1].upper() + label[1:], reason, count, total, left, kind))
    unfinished = left - measures.accepted - failed
    for label, count in (("Failed in the engine", failed), ("Not finished", unfinished)):
        if count > 0:
            left -= count
            steps.append(_step(label, "", count, total, left, "failed"))
    return [*steps, _step("Pairs accepted", "", measures.accepted, total, 0, "accepted")]


def curation(dropped: Sequence[tuple[str, int]], rows: int, kept: int) -> list[Step]:
    """The way from the accepted pairs to those that curation kept; `dropped`: each rule that dropped any, in order."""
    steps, left = [], rows
    for rule, count in dropped:
        left -= count
        label = humanize(rule)
        steps.append(_step(label[:1].upper() + label[1:], rule, count, rows, left, "rejected"))
    return [
        _step("Pairs accepted", "", rows, rows, 0, "total"),
        *steps,
        _step("Kept", "", kept, rows, 0, "accepted"),
    ]


def _largest(reasons: list[tuple[str, int]]) -> list[tuple[str, int]]:
    ordered = sorted(reasons, key=lambda item: (-item[1], item[0]))
    rest = ordered[MAX_STEPS:]
    return ordered[:MAX_STEPS] + ([(f"{len(rest)} further reasons", sum(n for _, n in rest))] if rest else [])


def _step(label: str, code: str, count: int, total: int, start: int, kind: str) -> Step:
    x, width = 100 * start / max(total, 1), 100 * count / max(total, 1)
    return Step(label, code, count, percent(width / 100), round(x, 3), round(width, 3), kind)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Every sampled row in order, as squares; `paths` are (kind, SVG path). One square stands for `rows_per_tile`."""

    width: int
    height: int
    rows_per_tile: int
    paths: list[tuple[str, str]]


def tiles(outcomes: bytes | bytearray) -> Tiles | None:
    """Squares in row order; where a square holds several rows, it shows the commonest outcome among them."""
    if not outcomes:
        return None
    per_tile = math.ceil(len(outcomes) / MAX_TILES)
    count = math.ceil(len(outcomes) / per_tile)
    columns = min(count, max(16, min(96, math.ceil(math.sqrt(count * 9)))))
    kinds = {0: "unseen", ACCEPTED: "accepted", DUPLICATE: "duplicate", REJECTED: "rejected"}
    squares: dict[str, list[str]] = {kind: [] for kind in kinds.values()}
    for index in range(count):
        part = outcomes[index * per_tile : (index + 1) * per_tile]
        outcome = max((ACCEPTED, REJECTED, DUPLICATE, 0), key=part.count)
        squares[kinds[outcome]].append(f"M{index % columns * 10} {index // columns * 10}h8v8h-8z")
    paths = [(kind, "".join(drawn)) for kind, drawn in squares.items() if drawn]
    return Tiles(columns * 10 - 2, math.ceil(count / columns) * 10 - 2, per_tile, paths)


@dataclass(frozen=True, slots=True)
class Mark:
    """A tick or a marker line: where, and its label."""

    at: float
    label: str
    anchor: str = "middle"
    top: float = 0.0


@dataclass(slots=True)
class Histogram:
    """A histogram in a box of `width` x `height`; bars are (x, y, width, height)."""

    what: str
    summary: str
    bars: list[tuple[float, float, float, float]]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    marks: list[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    base: int = HEIGHT - BOTTOM
    table: list[tuple[str, int]] = field(default_factory=list)
    overflow: bool = False


def nice_step(span: float, parts: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that covers `span` in at most `parts` steps."""
    step, factors = 1, (2, 2.5, 2)
    turn = 0
    while span / step > parts:
        step = int(step * factors[turn % 3])
        turn += 1
    return step


def histogram(lengths: Lengths, what: str) -> Histogram | None:
    """Bins of a round width; the longest two percent are gathered in the last bin, or they would flatten the rest."""
    if not lengths.rows:
        return None
    longest, edge = max(lengths.counts), lengths.quantile(0.98)
    top = edge if longest > 1.5 * edge + 10 else longest
    step = nice_step(top + 1, MAX_BARS)
    bins = top // step + 1
    counts = Counter[int]()
    for value, rows in lengths.counts.items():
        counts[min(value // step, bins - 1)] += rows
    overflow = longest >= bins * step
    return _draw(lengths, what, step, [counts[i] for i in range(bins)], overflow)


def _draw(lengths: Lengths, what: str, step: int, counts: list[int], overflow: bool) -> Histogram:
    slot, tall = (WIDTH - LEFT - RIGHT) / len(counts), HEIGHT - TOP - BOTTOM
    y_step = nice_step(max(counts), 4)
    y_max = math.ceil(max(counts) / y_step) * y_step
    bars = []
    for index, count in enumerate(counts):
        high = tall * count / y_max
        bars.append(_round(LEFT + index * slot + 0.75, HEIGHT - BOTTOM - high, max(slot - 1.5, 0.5), high))

    def x_of(value: float) -> float:
        return round(LEFT + min(value / step, len(counts)) * slot, 2)

    tick = nice_step(len(counts) * step, 6)
    x_ticks = [Mark(x_of(v), number(v)) for v in range(0, len(counts) * step + 1, tick)]
    y_ticks = [
        Mark(round(HEIGHT - BOTTOM - tall * v / y_max, 2), number(v)) for v in range(0, y_max + 1, y_step)
    ]
    median, high_end = lengths.quantile(0.5), lengths.quantile(0.9)
    marks = [
        _mark(x_of(median + 0.5), f"median {number(median)}", 2),
        _mark(
            x_of(high_end + 0.5), f"90% up to {number(high_end)}", 18
        ),  # a line lower: the labels may not meet
    ]
    table = [(_bin_name(i, step, overflow and i == len(counts) - 1), n) for i, n in enumerate(counts)]
    return Histogram(
        what, _summary(lengths, what), bars, x_ticks, y_ticks, marks, table=table, overflow=overflow
    )


def _round(*values: float) -> tuple[float, float, float, float]:
    x, y, width, height = (round(value, 2) for value in values)
    return x, y, width, height


def _mark(at: float, label: str, top: float) -> Mark:
    return Mark(at, label, "start" if at < WIDTH * 0.72 else "end", top)


def _bin_name(index: int, step: int, overflow: bool) -> str:
    low = index * step
    if overflow:
        return f"{number(low)} or more"
    return number(low) if step == 1 else f"{number(low)} to {number(low + step - 1)}"


def _summary(lengths: Lengths, what: str) -> str:
    shortest, longest = min(lengths.counts), max(lengths.counts)
    return (
        f"{what}: {number(lengths.rows)} rows, from {number(shortest)} to {number(longest)} tokens, "
        f"median {number(lengths.quantile(0.5))}, nine in ten at most {number(lengths.quantile(0.9))}"
    )


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A share as text with its tint, `level` from 0 (least of this table) to 5 (most)."""

    text: str
    level: int
    rows: int


@dataclass(frozen=True, slots=True)
class Heat:
    """Shares over the sampling grid: one row a temperature, one column a top-p; None where nothing was sampled."""

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[HeatCell | None]]]


def heat(cells: dict[tuple[float, float], Cell], caption: str, count: Callable[[Cell], int]) -> Heat:
    """`count(cell)` out of the rows of each cell; at most 12 x 12, those with the most rows."""
    temperatures = _commonest((point[0], cell.rows) for point, cell in cells.items())
    top_ps = _commonest((point[1], cell.rows) for point, cell in cells.items())
    shown = [cell for (t, p), cell in cells.items() if t in temperatures and p in top_ps]
    most = max((count(cell) / cell.rows for cell in shown), default=0) or 1
    rows: list[tuple[str, list[HeatCell | None]]] = []
    for temperature in temperatures:
        line = [_heat_cell(cells.get((temperature, top_p)), count, most) for top_p in top_ps]
        rows.append((setting(temperature), line))
    return Heat(caption, [setting(top_p) for top_p in top_ps], rows)


def _commonest(weighted: Iterable[tuple[float, int]]) -> list[float]:
    sums = Counter[float]()
    for value, rows in weighted:
        sums[value] += rows
    return sorted(value for value, _ in sums.most_common(MAX_GRID_SIDE))


def _heat_cell(cell: Cell | None, count: Callable[[Cell], int], most: float) -> HeatCell | None:
    if cell is None:
        return None
    share = count(cell) / cell.rows
    return HeatCell(percent(share), min(HEAT_LEVELS - 1, round((HEAT_LEVELS - 1) * share / most)), cell.rows)


@dataclass(frozen=True, slots=True)
class OpeningBar:
    """A verb (or question word): its rows, and the bar's segments (x, width, tint), one a noun, in percent."""

    word: str
    count: int
    share: str
    segments: list[tuple[float, float, int]]
    nouns: list[tuple[str, int]]
    rest: int


def opening_bars(openings: Counter[Opening], kind: str, widest: int, total: int) -> list[OpeningBar]:
    """The commonest opening words of `kind` with their nouns; `widest` rows make a full bar."""
    words: dict[str, Counter[str]] = {}
    for opening, rows in openings.items():
        if opening.kind == kind:
            words.setdefault(opening.word, Counter())[opening.noun] += rows
    ordered = sorted(words.items(), key=lambda item: (-item[1].total(), item[0]))[:MAX_OPENINGS]
    return [_opening_bar(word, nouns, widest, total) for word, nouns in ordered]


def _opening_bar(word: str, nouns: Counter[str], widest: int, total: int) -> OpeningBar:
    count = nouns.total()
    named = sorted(((n, c) for n, c in nouns.items() if n), key=lambda item: (-item[1], item[0]))[:MAX_NOUNS]
    segments, at = [], 0.0
    for tint, rows in enumerate([*(rows for _, rows in named), count - sum(rows for _, rows in named)]):
        width = 100 * rows / max(widest, 1)
        segments.append((round(at, 3), round(width, 3), tint if tint < len(named) else MAX_NOUNS))
        at += width
    return OpeningBar(word, count, percent(count / total), segments, named, count - sum(n for _, n in named))


def commonest_opening(openings: Counter[Opening]) -> int:
    """Rows of the commonest opening word: what a full bar stands for."""
    words = Counter[tuple[str, str]]()
    for opening, rows in openings.items():
        if opening.kind != "other":
            words[(opening.kind, opening.word)] += rows
    return max(words.values(), default=1)
