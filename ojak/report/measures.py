"""What the page says about a run, gathered in one pass over its rows: 100,000 rows take seconds and a few megabytes.

Samples are reservoirs (Vitter 1985, algorithm R) with a fixed seed, so that the same artifact always gives the same
page. Rows are foreign input: a field that is missing or of another type counts as not recorded, never as an error.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ojak.records import Conversation, Record, Rejected
from ojak.report.openings import Opening, opening

T = TypeVar("T")
PAIRS_SHOWN, REJECTED_SHOWN_PER_REASON = 30, 3
MAX_ROW = 4_000_000
MAX_REASONS, MAX_CELLS = 400, 4_000
ACCEPTED, DUPLICATE, REJECTED = 1, 2, 3
OTHER_REASONS = "other reasons"


def dig(value: Any, *keys: str) -> Any:
    """`value[k1][k2]...`, or None where a level is missing or no mapping."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def as_number(value: Any) -> float | None:
    """A finite number, or None; booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None


class Reservoir(Generic[T]):
    """A uniform sample of at most `size` items of a stream of any length, in the order of the stream."""

    def __init__(self, size: int, seed: int | str) -> None:
        self._size, self._random, self._seen = size, random.Random(seed), 0
        self._items: list[tuple[int, T]] = []

    def add(self, item: T) -> None:
        self._seen += 1
        if len(self._items) < self._size:
            self._items.append((self._seen, item))
        elif (slot := self._random.randrange(self._seen)) < self._size:
            self._items[slot] = (self._seen, item)

    def items(self) -> list[T]:
        return [item for _, item in sorted(self._items, key=lambda pair: pair[0])]


@dataclass(slots=True)
class Lengths:
    """Token counts as a histogram of exact values, so that quantiles are exact, too."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        count = as_number(value)
        if count is not None and count >= 0:
            self.counts[min(int(count), 10_000_000)] += 1

    @property
    def rows(self) -> int:
        return self.counts.total()

    @property
    def tokens(self) -> int:
        return sum(value * rows for value, rows in self.counts.items())

    @property
    def mean(self) -> float:
        """The mean; 0 without rows."""
        return self.tokens / max(self.rows, 1)

    @property
    def deviation(self) -> float:
        """The standard deviation (of the population); 0 without rows."""
        mean, rows = self.mean, max(self.rows, 1)
        return math.sqrt(sum(n * (value - mean) ** 2 for value, n in self.counts.items()) / rows)

    def quantile(self, share: float) -> int:
        """The smallest length that at least `share` of the rows do not exceed; 0 without rows."""
        need, seen = share * self.rows, 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= need:
                return value
        return 0


@dataclass(slots=True)
class Cell:
    """One point of the sampling grid: how many instructions it gave, and what became of them."""

    rows: int = 0
    duplicates: int = 0
    rejected: int = 0


def is_duplicate(reason: str) -> bool:
    """Whether a reason code says that an equal or nearly equal row was there before."""
    return "dup" in reason.lower()


@dataclass(slots=True)
class Measures:
    """The sums and samples that the page is drawn from."""

    accepted: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # (side, reason) -> rows
    instruction: Lengths = field(default_factory=Lengths)
    response: Lengths = field(default_factory=Lengths)
    cells: dict[tuple[float, float], Cell] = field(default_factory=dict)
    openings: Counter[Opening] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    edited_rows: int = 0
    cut_responses: int = 0
    outcomes: bytearray = field(
        default_factory=bytearray
    )  # by row number: 0 not seen, ACCEPTED, DUPLICATE, REJECTED
    first_meta: dict[str, Any] = field(default_factory=dict)
    pairs: list[Conversation] = field(default_factory=list)
    rejected_rows: list[Rejected] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    @property
    def duplicates(self) -> int:
        return sum(rows for (_, reason), rows in self.reasons.items() if is_duplicate(reason))


def measure(records: Iterable[Record], rejected: Iterable[Rejected], *, seed: int = 0) -> Measures:
    """Read every row once; `seed` decides which rows are shown as samples."""
    found = Measures()
    pairs: Reservoir[Conversation] = Reservoir(PAIRS_SHOWN, f"{seed}/pairs")
    for record in records:
        found.accepted += 1
        if isinstance(record, Conversation):
            _add_conversation(found, record)
            if not is_fact(record):
                pairs.add(record)
    samples: dict[str, Reservoir[Rejected]] = {}
    for row in rejected:
        reason = _add_rejected(found, row)
        if reason not in samples:
            samples[reason] = Reservoir(REJECTED_SHOWN_PER_REASON, f"{seed}/{reason}")
        samples[reason].add(row)
    found.pairs = pairs.items()
    found.rejected_rows = [row for sample in samples.values() for row in sample.items()]
    return found


def is_fact(row: Conversation) -> bool:
    """Whether the row is a probe's: its answer is the right one, and no model wrote it."""
    return "fact" in row.meta and row.meta.get("reference") is True


def first_text(record: Conversation, role: str) -> str:
    """The text of the first message of `role`; empty where there is none."""
    return next((str(m.get("content", "")) for m in record.messages if m.get("role") == role), "")


def _add_conversation(found: Measures, record: Conversation) -> None:
    meta = record.meta
    found.first_meta = found.first_meta or meta
    found.instruction.add(dig(meta, "tokens", "instruction"))
    found.response.add(dig(meta, "tokens", "response"))
    found.openings[opening(first_text(record, "user"))] += 1
    found.cut_responses += dig(meta, "finish_reason", "response") == "length"
    edits = meta.get("edits")
    if isinstance(edits, list | tuple) and edits:
        found.edited_rows += 1
        found.edits.update(str(edit)[:60] for edit in edits[:20])
    _add_cell(found, meta, ACCEPTED)
    _add_outcome(found, meta, ACCEPTED)


def _add_rejected(found: Measures, row: Rejected) -> str:
    meta, reason = row.meta, reason_code(row)
    if len(found.reasons) >= MAX_REASONS and (side_of(row), reason) not in found.reasons:
        reason = OTHER_REASONS
    found.reasons[(side_of(row), reason)] += 1
    found.first_meta = found.first_meta or meta
    outcome = DUPLICATE if is_duplicate(reason) else REJECTED
    _add_cell(found, meta, outcome)
    _add_outcome(found, meta, outcome)
    return reason


def reason_code(row: Rejected) -> str:
    """The row's reason, cut to a length that a page can show."""
    return row.reason[:80] or "no reason given"


def side_of(row: Rejected) -> str:
    """Whether a row was turned down for its instruction, or only after its response had been generated."""
    answered = "response" in str(row.stage).lower() or dig(row.meta, "tokens", "response") is not None
    return "response" if answered else "instruction"


def grid_point(meta: dict[str, Any]) -> tuple[float, float] | None:
    """(temperature, top-p) that the instruction was sampled at; None where they are not recorded."""
    sampling = dig(meta, "sampling", "instruction")
    temperature, top_p = as_number(dig(sampling, "temperature")), as_number(dig(sampling, "top_p"))
    return None if temperature is None or top_p is None else (temperature, top_p)


def _add_cell(found: Measures, meta: dict[str, Any], outcome: int) -> None:
    point = grid_point(meta)
    if point is None or (point not in found.cells and len(found.cells) >= MAX_CELLS):
        return
    cell = found.cells.setdefault(point, Cell())
    cell.rows += 1
    cell.duplicates += outcome == DUPLICATE
    cell.rejected += outcome != ACCEPTED


def _add_outcome(found: Measures, meta: dict[str, Any], outcome: int) -> None:
    row = as_number(meta.get("row"))
    if row is None or not 0 <= row < MAX_ROW:
        return
    index = int(row)
    if index >= len(found.outcomes):
        found.outcomes.extend(bytes(index + 1 - len(found.outcomes)))
    found.outcomes[index] = outcome
