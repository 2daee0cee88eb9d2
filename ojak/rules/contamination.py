"""Overlap with a test set: whether a text holds a run of words that also stands in a test item.

A row that shares 13 words in a row with a test item is contaminated (the rule of T. Brown and others, "Language Models
are Few-Shot Learners", 2020, appendix C). Test items that are shorter count when all of an item stands in the row, and
items of less than eight words only when they are all of the row, as such runs occur by chance. Letters are compared
without case, punctuation does not count.

Of the test set only 64-bit hashes of its runs are kept, eight bytes for each word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ojak._grams import grams_of, words_of
from ojak.errors import UsageError
from ojak.rules.rule import WIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

__all__ = ["Contamination"]

_WORD = re.compile(r"[^\W_]+")
_WHOLE_BELOW = 8  # words: shorter items must be all of a text
_MERGED_AT = 1 << 20  # hashes that wait to be merged, at least; then as many as are merged already
_MOST_CHARACTERS = 1_000_000  # of a text: what comes after is not looked at


class Contamination:
    """Finds in texts what also stands in a test set. Give it the texts that must not be trained on: prompts, and
    answers where they are long enough to be known by."""

    def __init__(self, texts: Iterable[str], n: int = 13) -> None:
        """texts: the test items, read once. n: words in a row that give a text away; at least 2. Raises UsageError."""
        if n < 2:
            raise UsageError(
                f"runs of {n} words cannot show contamination",
                why="single words occur in every text",
                fix="take 13, as GPT-3's authors did, or at least 8",
            )
        self.n = n
        self._runs: dict[int, _HashSet] = {}  # by length in words: runs that may stand anywhere in a text
        self._wholes = _HashSet()  # short items, which must be all of a text
        for text in texts:
            self._add(_words(text))

    def _add(self, words: list[str]) -> None:
        if not words:
            return
        size, values = min(len(words), self.n), words_of([" ".join(words)])
        if size < min(_WHOLE_BELOW, self.n):
            self._wholes.add(grams_of(*values, size)[0])
        else:
            self._runs.setdefault(size, _HashSet()).add(grams_of(*values, size)[0])

    def __len__(self) -> int:
        """How many different runs are looked for."""
        return len(self._wholes) + sum(map(len, self._runs.values()))

    def find(self, text: str) -> str | None:
        """The first run of words of `text` that stands in the test set, the longest kind first; None if none does."""
        words = _words(text)
        if not words:
            return None
        values = words_of([" ".join(words)])
        for size in sorted(self._runs, reverse=True):
            place = self._runs[size].first_in(grams_of(*values, size)[0]) if size <= len(words) else None
            if place is not None:
                return " ".join(words[place : place + size])
        short = len(words) < _WHOLE_BELOW
        whole = short and self._wholes.first_in(grams_of(*values, len(words))[0]) is not None
        return " ".join(words) if whole else None


class _HashSet:
    """A set of 64-bit hashes as one rising array, with those added last beside it until there are many."""

    def __init__(self) -> None:
        self._merged: Hashes | None = None
        self._waiting: list[Hashes] = []
        self._count = 0

    def add(self, hashes: Hashes) -> None:
        self._waiting.append(hashes)
        self._count += len(hashes)
        if self._count >= max(_MERGED_AT, 0 if self._merged is None else len(self._merged)):
            self._all()

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Hashes:
        import numpy as np

        if self._merged is None or self._waiting:
            held = [] if self._merged is None else [self._merged]
            parts = [*held, *self._waiting, np.empty(0, dtype=np.uint64)]
            self._merged, self._waiting, self._count = np.unique(np.concatenate(parts)), [], 0
        return self._merged

    def first_in(self, hashes: Hashes) -> int | None:
        """The place of the first of `hashes` that is in the set."""
        import numpy as np

        known = self._all()
        if not len(known):
            return None
        place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        hits = np.flatnonzero(known[place] == hashes)
        return int(hits[0]) if len(hits) else None


def _words(text: str) -> list[str]:
    """The words of `text` as they are compared; each sign of a script without spaces is one."""
    text = text[:_MOST_CHARACTERS]
    if not text.isascii():
        text = WIDE.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))
    return _WORD.findall(text.casefold())
