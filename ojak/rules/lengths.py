"""How long an answer may be: one count for who makes the limits, who learns from them and who measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ojak.rules.rule import word_count

LENGTHS: dict[str, Callable[[str], int]] = {"words": word_count, "characters": lambda text: len(text.strip())}
FIELD = "lift"  # of a row's meta


@dataclass(frozen=True, slots=True)
class Limit:
    """The most words or characters (`unit`) of an answer."""

    most: int
    unit: str = "words"

    def length(self, text: str) -> int:
        """The length of an answer in the limit's unit; blanks around it do not count."""
        return LENGTHS[self.unit](text)

    def violated(self, text: str) -> bool:
        """Whether an answer is longer than it may be."""
        return self.length(text) > self.most


def limit_of(meta: Mapping[str, Any]) -> Limit | None:
    """The limit that a row carries in `meta["lift"]` as {"limit", "unit"}; None where there is none."""
    found = meta.get(FIELD)
    if not isinstance(found, Mapping):
        return None
    most, unit = found.get("limit"), found.get("unit")
    if type(most) is not int or most < 1 or not isinstance(unit, str) or unit not in LENGTHS:
        return None
    return Limit(most, unit)
