"""Random draws that depend on nothing but their names: whatever is drawn before, after or elsewhere changes none.

Each draw hashes its whole name (seed, document, what is drawn), so that two lists of equal length are never read with
the same number, as they were in the published code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of its own for each key; `under` gives the stream of something inside."""

    def __init__(self, *key: object) -> None:
        self._key = tuple(map(str, key))

    def under(self, *key: object) -> Draws:
        return Draws(*self._key, *key)

    def bits(self, *name: object) -> int:
        """64 random bits."""
        parts = (*self._key, "", *map(str, name))  # lengths keep ("a", "bc") from being ("ab", "c")
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")

    def pick(self, name: str, items: Sequence[T]) -> T:
        """One of the items, each as likely as any other."""
        return items[self.bits(name) * len(items) >> 64]

    def weighted(self, name: str, weights: Mapping[T, int]) -> T:
        """One of the keys, as likely as its whole number among all."""
        place = self.bits(name) * sum(weights.values()) >> 64
        for item, weight in weights.items():
            if place < weight:
                return item
            place -= weight
        raise ValueError("weights must be positive")

    def shuffled(self, name: str, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        return [items[i] for i in sorted(range(len(items)), key=lambda i: self.bits(name, i))]
