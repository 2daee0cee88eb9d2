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
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ojak._grams import grams_of, words_of
from ojak.errors import UsageError
from ojak.rules.rule import WIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Counts = NDArray[np.int64]

__all__ = ["Contamination"]

_WORD = re.compile(r"[^\W_]+")
_WHOLE_BELOW = 8  # words: shorter items must be all of a text
_MERGED_AT = 1 << 20  # hashes that wait to be merged, at least; then as many as are merged already
_BLOCK_CHARACTERS = (
    1 << 17
)  # of texts looked at together: what is computed of them stays in the processor's cache
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
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str]) -> list[str | None]:
        """`find` of each text, many times as fast as one by one."""
        return [run for some in _blocks(texts) for run in self._find_some(some)]

    def _find_some(self, texts: list[list[str]]) -> list[str | None]:
        found: list[str | None] = [None] * len(texts)
        values, counts = words_of([" ".join(words) for words in texts])
        for size in sorted(self._runs, reverse=True):
            for row, place in _first_hits(self._runs[size], values, counts, size):
                found[row] = found[row] or " ".join(texts[row][place : place + size])
        for size in range(1, _WHOLE_BELOW if len(self._wholes) else 1):
            for row, _ in _first_hits(self._wholes, values, counts, size):
                if counts[row] == size:
                    found[row] = found[row] or " ".join(texts[row])
        return found


def _blocks(texts: Iterable[str]) -> Iterator[list[list[str]]]:
    """The words of the texts, some texts at a time."""
    block: list[list[str]] = []
    characters = 0
    for text in texts:
        block.append(_words(text))
        characters += min(len(text), _MOST_CHARACTERS)
        if characters >= _BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _first_hits(known: _HashSet, values: Hashes, counts: Counts, size: int) -> Iterator[tuple[int, int]]:
    """(row, place) of the first run of `size` words that is in the set, for each text that has one."""
    import numpy as np

    hashes, many = grams_of(values, counts, size)
    row = np.repeat(np.arange(len(counts)), many)
    hits = np.flatnonzero(known.holds(hashes))  # a shorter text's one run is unlike any of `size` words
    rows, first = np.unique(row[hits], return_index=True)
    begins = np.cumsum(many) - many
    return zip(rows.tolist(), (hits[first] - begins[rows]).tolist(), strict=True)


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

    def holds(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Whether each of `hashes` is in the set."""
        import numpy as np

        known = self._all()
        if not len(known):
            return np.zeros(len(hashes), dtype=bool)
        return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes


def _words(text: str) -> list[str]:
    """The words of `text` as they are compared; each sign of a script without spaces is one."""
    text = text[:_MOST_CHARACTERS]
    if not text.isascii():
        text = WIDE.sub(r" \g<0> ", unicodedata.normalize("NFKC", text))
    return _WORD.findall(text.casefold())
