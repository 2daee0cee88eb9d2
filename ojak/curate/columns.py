"""What can be said of a row only with all rows in sight: equal and nearly equal texts, neighbours by meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]
    Matrix = NDArray[np.float32]

EXACT_UP_TO = 100_000  # rows that are compared pair by pair
REPEAT_COSINE = 0.975
_BLOCK = 1024  # rows of a block product


def exact_duplicates(texts: Iterable[str]) -> Rows:
    """[rows] the first row with the same text (after `similarity.normalize`), which may be the row itself.

    Compared are 64-bit hashes: among a million different texts two agree by chance once in 37 million runs.
    """
    import numpy as np

    digests = np.fromiter(_digests(texts), dtype=np.uint64)
    if not len(digests):
        return np.empty(0, dtype=np.int64)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _digests(texts: Iterable[str]) -> Iterator[int]:
    from ojak.similarity import normalize

    for text in texts:
        data = normalize(text).encode("utf-8", "surrogatepass")
        yield int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def near_duplicates(texts: Iterable[str], threshold: float, unit: str) -> Rows:
    """[rows] the first row of each row's cluster of near duplicates, which may be the row itself."""
    import numpy as np

    from ojak.similarity import minhash

    stream = iter(texts)
    first = next(stream, None)
    if first is None:
        return np.empty(0, dtype=np.int64)
    found = minhash.near_duplicates(chain([first], stream), threshold=threshold, unit=unit, size=5)  # pyright: ignore[reportArgumentType]
    return found.first.astype(np.int64)


def nearest(vectors: Matrix) -> tuple[NDArray[np.float32], Rows]:
    """(cosine distance, row) of each row's nearest other row: [rows] both. One row alone is as far as can be, 2."""
    import numpy as np

    if len(vectors) < 2:
        return np.full(len(vectors), 2, dtype=np.float32), np.full(len(vectors), -1, dtype=np.int64)
    from ojak.similarity.embedding import neighbors

    found = neighbors(vectors, exact_up_to=EXACT_UP_TO)
    return np.maximum(found.distance, 0), found.index


def repeats(vectors: Matrix) -> Rows:
    """[rows] how many other rows are nearer than 0.025 (the paper's 0.05 in squared L2 distance)."""
    from ojak.similarity.embedding import repeat_counts

    return repeat_counts(vectors, REPEAT_COSINE)


def earlier_neighbors(vectors: Matrix, within: float) -> Rows:
    """[rows] the nearest of the earlier rows that are nearer than `within` (cosine distance), -1 for none.

    A row counts even if it was dropped itself, as in the paper's script. Up to EXACT_UP_TO rows all pairs are
    compared; beyond, the first row of the row's cluster is named, which also joins rows through others.
    """
    import numpy as np

    rows = len(vectors)
    if rows > EXACT_UP_TO:
        from ojak.similarity.embedding import clusters

        labels = np.asarray(clusters(vectors, 1 - within))  # its thresholds are cosines
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        found = first[inverse].astype(np.int64)
        return np.where(found == np.arange(rows), -1, found)
    found = np.full(rows, -1, dtype=np.int64)
    for begin in range(0, rows, _BLOCK):
        block = np.asarray(vectors[begin : begin + _BLOCK])
        end = begin + len(block)
        likeness = block @ np.asarray(vectors[:end]).T
        later = np.arange(end)[None, :] >= np.arange(begin, end)[:, None]
        likeness[later] = -2
        best = likeness.argmax(axis=1)
        near = 1 - likeness[np.arange(len(block)), best] < within
        found[begin:end][near] = best[near]
    return found
