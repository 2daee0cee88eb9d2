"""A place in a text that a detector points at. It holds where, never what: a finding may be logged, its text not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """`kind` at text[start:end]."""

    kind: str
    start: int
    end: int


def without_overlaps(found: Iterable[Found]) -> list[Found]:
    """In order of place; of two that overlap the one that comes first in `found` stays."""
    kept: list[Found] = []
    taken: list[bool] = []
    for each in found:
        taken.extend([False] * (each.end - len(taken)))
        if not any(taken[each.start : each.end]):
            taken[each.start : each.end] = [True] * (each.end - each.start)
            kept.append(each)
    return sorted(kept, key=lambda each: each.start)


def redacted(text: str, found: Iterable[Found]) -> str:
    """`text` with each place replaced by its kind in brackets. found: rising, without overlaps."""
    parts: list[str] = []
    end = 0
    for each in found:
        parts += [text[end : each.start], f"[{each.kind}]"]
        end = each.end
    return "".join([*parts, text[end:]])
