"""Hashes of words and of runs of them, over many texts at once, the same on every machine and in every process.

A text becomes code points, code points become words (one 64-bit value each), and `size` values in a row become a gram.
What counts as a letter of a word is the caller's: words here are what stands between spaces, and each sign of a
script without spaces (kana, Han) is a word of its own. numpy is imported on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Counts = NDArray[np.int64]

GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's finaliser (S. Vigna, public domain)
_SPACE = 0x20
_WIDE = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))  # kana and Han: no spaces between words


def mixed(values: Hashes) -> Hashes:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MIX[1])
    return values ^ (values >> np.uint64(31))


def code_points(text: str) -> Hashes:
    """The code points of `text` (shape: [characters]); lone surrogates are code points, too."""
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)


def characters_of(texts: Sequence[str]) -> tuple[Hashes, Counts]:
    """(the characters of all texts in a row, how many each text has), with a space before and after each text."""
    import numpy as np

    counts = np.fromiter((len(text) + 2 for text in texts), dtype=np.int64, count=len(texts))
    return code_points("".join(f" {text} " for text in texts)), counts


def words_of(texts: Sequence[str]) -> tuple[Hashes, Counts]:
    """(one value for each word of all texts in a row, how many words each text has)."""
    import numpy as np

    codes = code_points("".join(f"{text} " for text in texts))
    ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts)))
    begins = _word_begins(codes)
    before = np.concatenate([[0], np.cumsum(begins)])
    counts = np.diff(before[np.concatenate([[0], ends])])
    return _word_values(codes, begins), counts


def _word_begins(codes: Hashes) -> NDArray[np.bool_]:
    """Whether a word begins at each character."""
    import numpy as np

    solid = codes != _SPACE
    wide = np.zeros(len(codes), dtype=bool)
    for low, high in _WIDE:
        wide |= (codes >= low) & (codes <= high)
    begins = solid.copy()
    begins[1:] &= ~solid[:-1] | wide[1:] | wide[:-1]
    return begins


def _word_values(codes: Hashes, begins: NDArray[np.bool_]) -> Hashes:
    """The sum of the mixed characters of each word. Each is mixed with its place first, so that order counts."""
    import numpy as np

    solid = np.flatnonzero(codes != _SPACE)
    if not len(solid):
        return np.empty(0, dtype=np.uint64)
    first = np.flatnonzero(begins[solid])
    place = np.arange(len(solid)) - np.repeat(first, np.diff(np.append(first, len(solid))))
    placed = codes[solid] + (place.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    return np.add.reduceat(mixed(placed), first)


def grams_of(values: Hashes, counts: Counts, size: int) -> tuple[Hashes, Counts]:
    """(the hashes of all runs of `size` values within a text, in order, repeated ones repeated; how many each text
    has). A text with fewer than `size` values has one gram, of all it has.

    values: [total], the texts one after another; counts: [texts].
    """
    import numpy as np

    owner = np.repeat(np.arange(len(counts)), counts)
    # Zeros after each text fill short ones up.
    padded = np.zeros(len(values) + len(counts) * size, dtype=np.uint64)
    padded[np.arange(len(values)) + owner * size] = values
    positions = len(padded) - size + 1
    hashes = np.full(max(positions, 0), size, dtype=np.uint64)
    for offset in range(size):
        hashes = hashes * np.uint64(GOLDEN) + padded[offset : offset + positions]
    many = np.maximum(counts - size + 1, 1)
    begins = np.cumsum(counts + size) - (counts + size)
    return mixed(hashes[ranges(begins, many)]), many


def ranges(begins: Counts, counts: Counts) -> Counts:
    """begin, begin + 1, ... for each begin, `count` of them, one after another."""
    import numpy as np

    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(begins - before, counts)
