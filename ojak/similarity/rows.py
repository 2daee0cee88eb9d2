"""Duplicates found as rows come, one after another, each decided by the rows before it.

What counts as a duplicate, and how candidates are found, is in `text`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ojak._grams import GOLDEN, mixed
from ojak.errors import UsageError
from ojak.similarity.text import bands_for, jaccard, normalize, shingles_in_order, word_hashes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.text import Hashes

_KEY_BITS = 60  # of a band's key: fits a small Python int; two keys agree by chance once in 10^18
_BLOCK = 4096  # shingles hashed at once: bounds the work array to 4 MiB at 128 permutations
_ESTIMATE_SLACK = 0.2  # five standard deviations of a 128-value MinHash estimate
# Where thousands of rows share most of their text without being duplicates, these bound the time of one more.
_MOST_IN_BUCKET = 500  # latest slots looked at per band
_MOST_CHECKED = 64  # candidates whose true similarity is computed, the likeliest by estimate


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row repeats `of_row`, an earlier row that was kept; `score` is their Jaccard similarity (exact: 1.0)."""

    kind: Literal["exact", "near"]
    of_row: int
    score: float


class DuplicateIndex:
    """Says of each row whether it repeats an earlier one. Add rows in rising order.

    A row is compared with the rows kept so far; a duplicate is not kept, so it does not pull later rows with it,
    and `of_row` always names a row that stayed. A decision depends only on the rows before it: adding more rows
    never changes it. The nearest kept row is named, on a tie the earliest.

    Costs about 0.2 ms and 3 KB a row for texts of one or two hundred characters (at 128 permutations); the
    normalised text of each kept row is held in memory to check candidates.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        *,
        shingle_size: int = 5,
        permutations: int = 128,
        words: bool = False,
    ) -> None:
        """`threshold`: least Jaccard similarity of a near duplicate, in (0, 1]. `words`: of the sets of words, instead
        of character n-grams. Raises UsageError."""
        if not 0 < threshold <= 1 or shingle_size < 1 or permutations < 16:
            raise UsageError(
                f"duplicates cannot be found with threshold {threshold}, n-grams of {shingle_size} characters and "
                f"{permutations} permutations",
                why="the threshold is a Jaccard similarity, above 0 and at most 1; n-grams need 1 character, "
                "signatures 16 permutations",
                fix="try the defaults: threshold 0.7, 5 characters, 128 permutations",
            )
        import numpy as np

        self.threshold = threshold
        self.shingle_size = shingle_size
        self.words = words
        self._bands, self._values = bands_for(threshold, permutations)
        self._multipliers, self._offsets = _permutations(permutations)
        self._rows: list[int] = []  # by slot: slots number the kept rows in order
        self._texts: list[str] = []
        self._signatures = np.empty((256, permutations), dtype=np.uint32)  # [slots, permutations]; grows
        self._slot_of_digest: dict[bytes, int] = {}
        # A bucket is a chain of slots: per band the latest slot of each key, and from each slot the one before, or -1.
        # Lists of slots would take twice the memory.
        self._latest: list[dict[int, int]] = [{} for _ in range(self._bands)]
        self._previous = np.empty((256, self._bands), dtype=np.int32)
        self._last_row: int | None = None

    def __len__(self) -> int:
        """How many rows were kept."""
        return len(self._rows)

    def add(self, row: int, text: str) -> Duplicate | None:
        """What `row` repeats, or None: then it is kept. Raises UsageError unless `row` is above all before it."""
        if self._last_row is not None and row <= self._last_row:
            raise UsageError(
                f"row {row} comes after row {self._last_row}",
                why="duplicates are decided in row order, so that the order of arrival cannot change a result",
                fix="add rows in rising order, each once",
            )
        self._last_row = row
        compared = normalize(text)
        digest = hashlib.blake2b(compared.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if (slot := self._slot_of_digest.get(digest)) is not None:
            return Duplicate("exact", self._rows[slot], 1.0)
        signature = self._sign(self._hashes(compared))
        keys = self._band_keys(signature)
        if found := self._nearest(compared, signature, keys):
            return found
        self._keep(row, compared, digest, signature, keys)
        return None

    def _hashes(self, text: str) -> Hashes:
        return word_hashes(text) if self.words else shingles_in_order(text, self.shingle_size)

    def _set(self, text: str) -> Hashes:
        """The sorted distinct hashes whose Jaccard similarity counts."""
        import numpy as np

        return np.unique(self._hashes(text))

    def _sign(self, grams: Hashes) -> NDArray[np.uint32]:
        """MinHash signature [permutations]: per permutation, the upper half of the least permuted hash."""
        import numpy as np

        least = np.full(len(self._offsets), np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(grams), _BLOCK):
            block = grams[start : start + _BLOCK]
            permuted = self._multipliers[:, None] * block[None, :] + self._offsets[:, None]
            np.minimum(least, permuted.min(axis=1), out=least)
        return (least >> np.uint64(32)).astype(np.uint32)

    def _band_keys(self, signature: NDArray[np.uint32]) -> list[int]:
        """One 60-bit key per band: the low bits of its values, side by side."""
        import numpy as np

        values = signature[: self._bands * self._values].reshape(self._bands, self._values).astype(np.uint64)
        bits = _KEY_BITS // self._values
        low = values & np.uint64((1 << min(bits, 32)) - 1)
        return (low << np.arange(0, bits * self._values, bits, dtype=np.uint64)).sum(axis=1).tolist()

    def _candidates(self, keys: list[int]) -> list[int]:
        """The slots that share a bucket with `keys`, rising."""
        found: set[int] = set()
        for band, (latest, key) in enumerate(zip(self._latest, keys, strict=True)):
            slot = latest.get(key, -1)
            for _ in range(_MOST_IN_BUCKET):
                if slot < 0:
                    break
                found.add(slot)
                slot = int(self._previous[slot, band])
        return sorted(found)

    def _nearest(self, compared: str, signature: NDArray[np.uint32], keys: list[int]) -> Duplicate | None:
        candidates = self._candidates(keys)
        if not candidates:
            return None
        estimates = (self._signatures[candidates] == signature).mean(axis=1)
        grams = self._set(compared)
        likely = sorted(zip((-estimates).tolist(), candidates, strict=True))[:_MOST_CHECKED]
        best: Duplicate | None = None
        for slot in sorted(
            slot for estimate, slot in likely if -estimate >= self.threshold - _ESTIMATE_SLACK
        ):
            score = jaccard(grams, self._set(self._texts[slot]))
            if score >= self.threshold and (best is None or score > best.score):
                best = Duplicate("near", self._rows[slot], score)
        return best

    def _keep(
        self, row: int, compared: str, digest: bytes, signature: NDArray[np.uint32], keys: list[int]
    ) -> None:
        slot = len(self._rows)
        if slot == len(self._signatures):
            self._signatures = _doubled(self._signatures)
            self._previous = _doubled(self._previous)
        self._signatures[slot] = signature
        self._rows.append(row)
        self._texts.append(compared)
        self._slot_of_digest[digest] = slot
        self._previous[slot] = [latest.get(key, -1) for latest, key in zip(self._latest, keys, strict=True)]
        for latest, key in zip(self._latest, keys, strict=True):
            latest[key] = slot


def _permutations(count: int) -> tuple[Hashes, Hashes]:
    """Odd multipliers and offsets of `count` hash functions x -> a x + b (mod 2^64), always the same ones."""
    import numpy as np

    stream = mixed(np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    return stream[:count] | np.uint64(1), stream[count:]


def _doubled(table: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.concatenate([table, np.empty_like(table)])
