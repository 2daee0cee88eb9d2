"""Nearest neighbours by an index, for more rows than can be compared one by one; and how often it is right.

The index is FAISS's inverted file (H. Jégou and others, "Product quantization for nearest neighbor search", 2011,
section 4; vectors kept whole): rows are put into cells around centroids, and a row is compared with those of the cells
nearest to it. How many cells are looked at is chosen on one sample of rows, whose true neighbours are computed by
comparing them with all; the recall that is reported comes from another sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ojak.errors import UsageError
from ojak.similarity.unite import alone, unite
from ojak.similarity.vectors import Neighbors, distances

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.unite import Rows

    Matrix = NDArray[np.float32]
    Cosines = NDArray[np.float32]

MOST_REPEATS = 64  # neighbours looked at for repeats and clusters
_SAMPLE = 2_000  # rows; half choose, half measure
_BATCH = 16_384  # rows asked for at once
_TRAINING = 48  # rows a cell, from which its centroid is found
_SAME = 1e-5  # cosines this close are the same: sums of float32 products in another order


@dataclass(slots=True)
class _Index:
    """matrix: [rows, width]; order: all rows, those of one cell one after another; faiss_index searches them."""

    matrix: Matrix
    order: Rows
    faiss_index: Any

    def search(self, rows: Rows, count: int) -> tuple[Cosines, Rows]:
        """(cosines, row numbers) [rows, count] of the nearest other rows, nearest first; -1 where there are no more."""
        import numpy as np

        cosines, found = self.faiss_index.search(self.matrix[rows], count + 1)
        cosines[found == rows[:, None]] = -np.inf  # the row itself; copies may have crowded it out
        cosines[found < 0] = -np.inf
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        cosines, found = np.take_along_axis(cosines, best, 1), np.take_along_axis(found, best, 1)
        found[np.isneginf(cosines)] = -1
        return cosines, found

    def search_all(self, count: int) -> Iterator[tuple[Rows, Cosines, Rows]]:
        """(rows, cosines, row numbers) for all rows, cell by cell: rows of one cell look at the same cells."""
        for start in range(0, len(self.order), _BATCH):
            rows = self.order[start : start + _BATCH]
            yield rows, *self.search(rows, count)


def nearest(matrix: Matrix, *, recall: float, seed: int) -> Neighbors:
    """The nearest other row of each. recall: what to aim at; what was reached is in the result."""
    import numpy as np

    index, tested = _open(matrix, recall, seed)
    cosine = np.full(len(matrix), -3, dtype=np.float32)
    neighbor = np.full(len(matrix), -1, dtype=np.int64)
    for rows, cosines, found in index.search_all(1):
        cosine[rows], neighbor[rows] = cosines[:, 0], found[:, 0]
    right = cosine[tested.rows] >= tested.cosines - _SAME
    return Neighbors(distances(cosine), neighbor, False, float(right.mean()), *wilson(right.sum(), len(right)))


def repeats(matrix: Matrix, threshold: float, *, recall: float, seed: int) -> Rows:
    """[rows]: how many other rows have a cosine of at least `threshold`; at most `MOST_REPEATS` are counted."""
    import numpy as np

    counts = np.zeros(len(matrix), dtype=np.int64)
    for rows, cosines, _ in _open(matrix, recall, seed)[0].search_all(MOST_REPEATS):
        counts[rows] = (cosines >= threshold).sum(axis=1)
    return counts


def clustered(matrix: Matrix, threshold: float, *, recall: float, seed: int) -> Rows:
    """[rows]: the first row of each row's cluster, each joined with the nearest `MOST_REPEATS` within reach."""
    import numpy as np

    first = alone(len(matrix))
    for rows, cosines, found in _open(matrix, recall, seed)[0].search_all(MOST_REPEATS):
        near, place = np.nonzero(cosines >= threshold)
        unite(first, rows[near], found[near, place])
    return first


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `right` in `count` (E. B. Wilson, 1927)."""
    share, extra = right / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / count / 4)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


@dataclass(frozen=True, slots=True)
class _Truth:
    """The true largest cosine of some rows with another row."""

    rows: Rows
    cosines: Cosines


def _open(matrix: Matrix, recall: float, seed: int) -> tuple[_Index, _Truth]:
    """The index over `matrix`, set to the recall asked for on one sample; and another sample, to measure it."""
    import numpy as np

    sample = np.random.default_rng(seed).permutation(len(matrix))[:_SAMPLE]
    truth = _true(matrix, sample)
    half = len(sample) // 2
    index = _built(matrix, seed)
    _tune(index, _Truth(sample[:half], truth[:half]), recall)
    return index, _Truth(sample[half:], truth[half:])


def _true(matrix: Matrix, rows: Rows) -> Cosines:
    """[rows]: the largest cosine with another row of all."""
    import numpy as np

    best = np.full(len(rows), -3, dtype=np.float32)
    for start in range(0, len(matrix), _BATCH):
        products = matrix[rows] @ matrix[start : start + _BATCH].T
        own = np.flatnonzero((rows >= start) & (rows < start + _BATCH))
        products[own, rows[own] - start] = -3
        np.maximum(best, products.max(axis=1), out=best)
    return best


def _built(matrix: Matrix, seed: int) -> _Index:
    import numpy as np

    faiss = _faiss()
    count, width = matrix.shape
    cells = max(1, round(4 * math.sqrt(count)))
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFFlat(quantizer, width, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.spherical = seed, 10, True
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _TRAINING
    chosen = np.random.default_rng(seed + 1).permutation(count)[: cells * _TRAINING]
    index.train(matrix[np.sort(chosen)])
    for start in range(0, count, _BATCH):
        index.add(matrix[start : start + _BATCH])
    lists = index.invlists
    sizes = [lists.list_size(cell) for cell in range(cells)]
    held = [faiss.rev_swig_ptr(lists.get_ids(cell), size) for cell, size in enumerate(sizes) if size]
    return _Index(matrix, np.concatenate(held).astype(np.int64), index)


def _tune(index: _Index, truth: _Truth, recall: float) -> None:
    """Look at twice as many cells, until the sample's recall is half way from the one asked for to all."""
    cells, aim = 4, (1 + recall) / 2
    while True:
        index.faiss_index.nprobe = min(cells, index.faiss_index.nlist)
        cosines, _ = index.search(truth.rows, 1)
        if (cosines[:, 0] >= truth.cosines - _SAME).mean() >= aim or cells >= index.faiss_index.nlist:
            return
        cells *= 2


def _faiss() -> Any:
    try:
        import faiss  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        raise UsageError(
            "an index over so many rows needs FAISS, which is not installed",
            fix='pip install "ojak[embed]", or compare all pairs with a larger exact_up_to',
        ) from None
    return faiss
