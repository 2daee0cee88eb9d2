"""Clusters of near duplicates among up to a million rows.

Rows are read once, a block at a time. What stays in memory of a row is a short key for each band and its place (about
a hundred bytes); its n-grams and a sketch of them go to temporary files. Candidates whose sketches are far apart are
let go; of the others the true Jaccard similarity is computed, so that two rows are joined only if they are as alike as
the threshold says. Rows that are joined, through others too, form a cluster, and its first row is the one that stays:
row order decides, not the order of arrival.

The threshold is a Jaccard similarity of sets of n-grams, of words or of characters. In a text of w words, one changed
word touches five of its w - 4 word 5-grams: two texts of 60 words reach 0.7 with two changed words.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from ojak._files import disk_errors
from ojak._grams import GOLDEN, characters_of, grams_of, mixed, ranges, words_of
from ojak.errors import UsageError
from ojak.similarity.text import bands_for, normalize
from ojak.similarity.unite import alone, unite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.unite import Rows

    Grams = NDArray[np.uint32]
    Sketches = NDArray[np.uint8]

Unit = Literal["word", "character"]

_MOST_CHARACTERS = 1_000_000  # of a text: what comes after does not count
_BLOCK_CHARACTERS = 1 << 17  # of texts hashed together: their n-grams stay in the processor's cache
_BLOCK_ROWS = 4096
_PAIRS = 1 << 15  # of sketches compared together
_PAIR_GRAMS = 1 << 21  # of candidates compared together: bounds the work arrays to some 100 MB
# In a bucket each row is compared with the row before it, then with the one before that, and so on, until this many
# comparisons a row of the whole set were made: it bounds the time where thousands of rows share most of their text.
_MOST_CHECKED = 8


@dataclass(frozen=True, slots=True)
class Clusters:
    """What `near_duplicates` found.

    first: [rows], the first row of each row's cluster (its own number, if it stays). exact: [rows], whether a row is
    equal to an earlier one after `normalize`. recall: the chance that a pair exactly at the threshold was compared
    (pairs above it: higher); every pair that was joined was compared and has the threshold or more.
    """

    first: Rows
    exact: NDArray[np.bool_]
    threshold: float
    unit: Unit
    size: int
    recall: float

    @property
    def stays(self) -> NDArray[np.bool_]:
        """[rows]: whether a row is the first of its cluster."""
        return self.first == alone(len(self.first))


def near_duplicates(
    texts: Iterable[str],
    *,
    threshold: float = 0.7,
    unit: Unit = "word",
    size: int = 5,
    permutations: int = 128,
    bands: tuple[int, int] | None = None,
) -> Clusters:
    """The clusters of rows whose n-grams have at least `threshold` in common.

    texts: any number of rows, read once. unit, size: what an n-gram is made of and how many; a text with fewer has
    one, all of it. Characters suit short texts and scripts without spaces, words long ones. bands: how many bands of
    how many values each, instead of as many as `permutations` gives for the threshold.
    Raises UsageError (settings that cannot work), ResourceExhausted (no room for the temporary file).
    """
    import numpy as np

    _check(threshold, unit, size, permutations)
    count, values = bands or bands_for(threshold, permutations)
    with ExitStack() as stack:
        stack.enter_context(disk_errors(Path(tempfile.gettempdir())))
        sets = stack.enter_context(closing(_Sets()))
        signer = _Signer(count, values)
        digests, keys = [], []
        for block in _blocks(texts):
            grams, counts = _gram_sets(block, unit, size)
            signed, sketches = signer.sign(grams, counts)
            sets.add(grams, counts, sketches)
            keys.append(signed)
            digests.append(_digests(block))
        first = alone(len(sets))
        if len(first):
            _unite_equal(first, np.concatenate(digests))
        exact = first != alone(len(first))
        left = np.flatnonzero(~exact)
        for band in range(count if len(left) > 1 else 0):
            _unite_band(first, left, np.concatenate([block[band] for block in keys])[left], sets, threshold)
    return Clusters(first, exact, threshold, unit, size, 1 - (1 - threshold**values) ** count)


def _check(threshold: float, unit: str, size: int, permutations: int) -> None:
    if 0 < threshold <= 1 and unit in ("word", "character") and size >= 1 and permutations >= 16:
        return
    raise UsageError(
        f"near duplicates cannot be found with threshold {threshold}, n-grams of {size} {unit}s and {permutations} "
        "permutations",
        why="the threshold is a Jaccard similarity, above 0 and at most 1; n-grams are of words or characters",
        fix='try the defaults: threshold 0.7, unit "word", size 5, permutations 128',
    )


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts as they are compared, some at a time."""
    block: list[str] = []
    characters = 0
    for text in texts:
        block.append(normalize(text[:_MOST_CHARACTERS]))
        characters += len(block[-1])
        if characters >= _BLOCK_CHARACTERS or len(block) == _BLOCK_ROWS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _digests(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of each text, to find equal ones."""
    import numpy as np

    parts = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts]
    return np.frombuffer(b"".join(parts), dtype="<u8")


def _gram_sets(texts: Sequence[str], unit: Unit, size: int) -> tuple[Grams, Rows]:
    """(the distinct n-grams of each text, rising, one text after another; how many each text has)."""
    import numpy as np

    values, counts = words_of(texts) if unit == "word" else characters_of(texts)
    hashes, many = grams_of(values, counts, size)
    owner = np.repeat(np.arange(len(texts), dtype=np.uint64), many)
    tagged = (owner << np.uint64(32)) | (hashes >> np.uint64(32))
    tagged.sort()
    tagged = tagged[np.concatenate([[True], tagged[1:] != tagged[:-1]])]
    distinct = np.bincount((tagged >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return (tagged & np.uint64(0xFFFFFFFF)).astype(np.uint32), distinct.astype(np.int64)


class _Signer:
    """MinHash: under each of many hash functions the least n-gram of a set, several of them together a band's key."""

    def __init__(self, bands: int, values: int) -> None:
        import numpy as np

        self._bands, self._values = bands, values
        stream = mixed(np.arange(1, 2 * bands * values + 1, dtype=np.uint64) * np.uint64(GOLDEN))
        high = (stream >> np.uint64(32)).astype(np.uint32)
        self._multipliers, self._offsets = high[::2] | np.uint32(1), high[1::2]

    def sign(self, grams: Grams, counts: Rows) -> tuple[NDArray[np.uint32], Sketches]:
        """(keys [bands, rows]: rows that agree in a band's values have the same key there; others by chance, once in
        2^32; sketches [rows, bands * values]: the lowest byte of each value).

        grams, counts: as `_gram_sets` gives them.
        """
        import numpy as np

        begins = np.cumsum(counts) - counts
        keys = np.zeros((self._bands, len(counts)), dtype=np.uint64)
        sketches = np.empty((len(counts), len(self._offsets)), dtype=np.uint8)
        permuted = np.empty_like(grams)
        for number, (a, b) in enumerate(zip(self._multipliers, self._offsets, strict=True)):
            np.multiply(grams, a, out=permuted)
            permuted += b
            band = keys[number // self._values]
            band *= np.uint64(GOLDEN)
            least = np.minimum.reduceat(permuted, begins)
            band += least
            sketches[:, number] = least & np.uint32(0xFF)
        return (mixed(keys) >> np.uint64(32)).astype(np.uint32), sketches


class _Sets:
    """The n-grams of all rows and their sketches, in temporary files; rows are looked up by number."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="ojak-grams-")  # noqa: SIM115  (close() ends it)
        self._sketch_file: IO[bytes] = tempfile.TemporaryFile(prefix="ojak-sketches-")  # noqa: SIM115
        self._counts: list[Rows] = []
        self._all: tuple[Grams, Rows, Rows] | None = None
        self._sketches: Sketches | None = None

    def __len__(self) -> int:
        return sum(map(len, self._counts))

    def add(self, grams: Grams, counts: Rows, sketches: Sketches) -> None:
        """Keep the sets of the next rows."""
        self._file.write(grams.data)
        self._sketch_file.write(sketches.data)
        self._counts.append(counts)

    def close(self) -> None:
        self._all = self._sketches = None
        self._file.close()
        self._sketch_file.close()

    def _read(self) -> tuple[Grams, Rows, Rows]:
        """(all n-grams, where each row's begin, how many it has); to be asked for once all rows are added."""
        import numpy as np

        if self._all is None:
            self._file.flush()
            counts = np.concatenate(self._counts)
            grams = np.memmap(self._file, dtype=np.uint32, mode="r")
            self._all = grams, np.cumsum(counts) - counts, counts
        return self._all

    def alike(self, one: Rows, other: Rows, threshold: float) -> NDArray[np.bool_]:
        """[pairs]: whether the rows one[i] and other[i] have at least `threshold` of their n-grams in common."""
        import numpy as np

        _, _, counts = self._read()
        less, more = np.minimum(counts[one], counts[other]), np.maximum(counts[one], counts[other])
        alike = less >= threshold * more  # or else the smaller set, all of it shared, would not be enough
        pairs = np.flatnonzero(alike)
        alike[pairs] = self._may_be_alike(one[pairs], other[pairs], threshold)
        sizes = np.cumsum((less + more)[alike])
        pairs = np.flatnonzero(alike)
        cuts = np.searchsorted(sizes, np.arange(_PAIR_GRAMS, sizes[-1] if len(sizes) else 0, _PAIR_GRAMS))
        for some in np.split(pairs, np.unique(cuts)):
            alike[some] = self._jaccards(one[some], other[some]) >= threshold
        return alike

    def _may_be_alike(self, one: Rows, other: Rows, threshold: float) -> NDArray[np.bool_]:
        """[pairs]: whether so many bytes of the sketches agree as would among alike rows, but for one in three million
        (five standard deviations). Costs a hundredth of comparing the sets (P. Li and A. C. König, "b-bit minwise
        hashing", 2010)."""
        import numpy as np

        if self._sketches is None:
            self._sketch_file.flush()
            whole = np.memmap(self._sketch_file, dtype=np.uint8, mode="r")
            self._sketches = whole.reshape(len(self), -1)
        width = self._sketches.shape[1]
        least = width * threshold - 5 * (width * threshold * (1 - threshold)) ** 0.5
        found = np.empty(len(one), dtype=bool)
        for begin in range(0, len(one), _PAIRS):
            some = slice(begin, begin + _PAIRS)
            agree = (self._sketches[one[some]] == self._sketches[other[some]]).sum(axis=1)
            found[some] = agree >= least
        return found

    def _jaccards(self, one: Rows, other: Rows) -> NDArray[np.float64]:
        """[pairs]: an n-gram that both rows have stands twice in the sorted list of the pair's n-grams."""
        import numpy as np

        grams, begins, counts = self._read()
        rows = np.stack([one, other], axis=1).ravel()
        pair = np.repeat(np.arange(len(rows), dtype=np.uint64) >> np.uint64(1), counts[rows])
        tagged = (pair << np.uint64(32)) | grams[ranges(begins[rows], counts[rows])]
        tagged.sort()
        twice = tagged[1:][tagged[1:] == tagged[:-1]] >> np.uint64(32)
        shared = np.bincount(twice.astype(np.int64), minlength=len(one))
        return shared / (counts[one] + counts[other] - shared)


def _unite_equal(first: Rows, digests: NDArray[np.uint64]) -> None:
    """Join rows with equal texts."""
    import numpy as np

    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(digests[order[1:]] == digests[order[:-1]])
    unite(first, order[same], order[same + 1])


def _unite_band(first: Rows, rows: Rows, keys: NDArray[np.uint32], sets: _Sets, threshold: float) -> None:
    """Join the rows of one band's buckets that are alike. rows: [rows], rising; keys: [rows], the band's."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    rows, keys = rows[order], keys[order]
    later, left = np.arange(1, len(rows)), _MOST_CHECKED * len(rows)
    for back in range(1, len(rows)):
        later = later[later >= back]
        later = later[keys[later] == keys[later - back]]
        if not len(later) or left <= 0:
            return
        one, other = rows[later - back], rows[later]
        apart = first[one] != first[other]
        one, other = one[apart], other[apart]
        left -= len(later)
        alike = sets.alike(one, other, threshold)
        unite(first, one[alike], other[alike])
