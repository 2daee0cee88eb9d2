"""What can be said of a row only with all rows in sight: equal and nearly equal texts, neighbours by meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.embedding import Neighbors
    from ojak.similarity.minhash import Unit

    Rows = NDArray[np.int64]
    Matrix = NDArray[np.float32]

EXACT_UP_TO = 100_000  # rows that are compared pair by pair
REPEAT_COSINE = 0.975


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


def near_duplicates(texts: Iterable[str], threshold: float, unit: Unit) -> Rows:
    """[rows] the first row of each row's cluster of near duplicates, which may be the row itself."""
    from ojak.similarity import minhash

    return minhash.near_duplicates(texts, threshold=threshold, unit=unit, size=5).first


def nearest(vectors: Matrix) -> Neighbors:
    """Each row's nearest other row, and with what recall it was found. One row alone is as far as can be, 2."""
    from ojak.similarity.embedding import neighbors

    return neighbors(vectors, exact_up_to=EXACT_UP_TO)


def repeats(vectors: Matrix) -> Rows:
    """[rows] how many other rows are nearer than 0.025 (the paper's 0.05 in squared L2 distance)."""
    from ojak.similarity.embedding import repeat_counts

    return repeat_counts(vectors, REPEAT_COSINE, exact_up_to=EXACT_UP_TO)


def earlier_neighbors(vectors: Matrix, within: float) -> Rows:
    """[rows] the nearest of the earlier rows that are nearer than `within` (cosine distance), -1 for none.

    A row counts even if it was dropped itself, as in the paper's script. Up to EXACT_UP_TO rows all pairs are
    compared; beyond, an index finds nearly all.
    """
    from ojak.similarity import embedding

    return embedding.earlier_neighbors(vectors, within, exact_up_to=EXACT_UP_TO)
