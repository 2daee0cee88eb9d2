"""Nearest neighbours among more rows than can be compared one by one; and how often they are the true ones.

An inverted file (H. Jégou and others, "Product quantization for nearest neighbor search", 2011, section 4; vectors
kept whole): k-means, by FAISS, puts rows into cells, and a row is compared with those of the cells nearest to it. All
rows that look into a cell are compared with it in one matrix product, many times as fast as row by row. How many cells
a row looks into is chosen on one sample of rows, whose true neighbours are computed by comparing them with all; the
recall that is reported comes from another sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ojak._interval import wilson
from ojak.errors import UsageError
from ojak.similarity.unite import alone, unite
from ojak.similarity.vectors import NOTHING, Neighbors, distances, near_only

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.unite import Rows

    Matrix = NDArray[np.float32]
    Cosines = NDArray[np.float32]

_SAMPLE = 2_000  # rows; half choose, half measure
_BATCH = 65_536  # rows that look into cells together
_PRODUCTS = 1 << 23  # computed together: where thousands of rows are alike, a cell holds them all
_TRAINING = 48  # rows for each cell, from which its centre is found
_ROUNDS = 10  # of k-means
_SAME = 1e-5  # cosines this close are the same: sums of float32 products in another order


@dataclass(slots=True)
class _Cells:
    """The rows of `matrix` [rows, width] in cells.

    rows: all rows, cell by cell, rising within each; begins: [cells + 1], where each cell's begin; cell, place: [rows],
    the cell of a row and its place there. centres is FAISS's index over the cells' centres.
    """

    matrix: Matrix
    rows: Rows
    begins: Rows
    cell: Rows
    place: Rows
    centres: Any
    looked_into: int = 1

    def compared(self, asking: Rows) -> Iterator[tuple[Rows, Rows, Matrix]]:
        """(positions in `asking`, other rows, their cosines), cell by cell; a row's cosine with itself is NOTHING."""
        import numpy as np

        cells = self.centres.search(self.matrix[asking], self.looked_into)[1].ravel()
        order = np.argsort(cells, kind="stable")
        cuts = np.flatnonzero(np.diff(cells[order])) + 1
        for some in np.split(order, cuts):
            cell = cells[some[0]]
            others = self.rows[self.begins[cell] : self.begins[cell + 1]]
            size = max(1, _PRODUCTS // max(1, len(others)))
            for start in range(0, len(some) if len(others) else 0, size):
                positions = some[start : start + size] // self.looked_into
                products = self.matrix[asking[positions]] @ self.matrix[others].T
                own = np.flatnonzero(self.cell[asking[positions]] == cell)
                products[own, self.place[asking[positions[own]]]] = NOTHING
                yield positions, others, products

    def nearest(self, asking: Rows, *, earlier: bool = False) -> tuple[Cosines, Rows]:
        """([asking] the largest cosine, a row that has it); NOTHING and -1 where there is none. earlier: of the rows
        before the one that asks alone."""
        import numpy as np

        best = np.full(len(asking), NOTHING, dtype=np.float32)
        index = np.full(len(asking), -1, dtype=np.int64)
        for positions, others, products in self.compared(asking):
            if earlier:
                products[others[None, :] >= asking[positions][:, None]] = NOTHING
            top, found = products.max(axis=1), others[products.argmax(axis=1)]
            better = top > best[positions]
            best[positions[better]], index[positions[better]] = top[better], found[better]
        return best, index

    def batches(self) -> Iterator[Rows]:
        """All rows, some at a time, those of a cell together: they look into the same cells."""
        return (self.rows[start : start + _BATCH] for start in range(0, len(self.rows), _BATCH))

    def close_pairs(self, threshold: float) -> Iterator[tuple[Rows, Rows]]:
        """(rows, other rows) whose cosine is at least `threshold`. A pair may come once, twice, or be missed."""
        import numpy as np

        for asking in self.batches():
            for positions, others, products in self.compared(asking):
                hit = np.flatnonzero(products.max(axis=1) >= threshold)
                one, other = np.nonzero(products[hit] >= threshold)
                yield asking[positions[hit[one]]], others[other]


def nearest(matrix: Matrix, *, recall: float, seed: int) -> Neighbors:
    """The nearest other row of each. recall: what to aim at; what was reached is in the result."""
    import numpy as np

    cells, tested = _open(matrix, recall, seed)
    cosine = np.empty(len(matrix), dtype=np.float32)
    index = np.empty(len(matrix), dtype=np.int64)
    for asking in cells.batches():
        cosine[asking], index[asking] = cells.nearest(asking)
    lonely = np.flatnonzero(index < 0)  # rows alone in the few cells that they looked into
    cosine[lonely], index[lonely] = _true(matrix, lonely)
    right = cosine[tested.rows] >= tested.cosines - _SAME
    return Neighbors(
        distances(cosine), index, False, float(right.mean()), *wilson(int(right.sum()), len(right))
    )


def earlier(matrix: Matrix, within: float, *, recall: float, seed: int) -> Rows:
    """[rows]: the nearest earlier row nearer than `within` that was seen, -1 for none."""
    import numpy as np

    cells = _open(matrix, recall, seed)[0]
    cosine = np.empty(len(matrix), dtype=np.float32)
    index = np.empty(len(matrix), dtype=np.int64)
    for asking in cells.batches():
        cosine[asking], index[asking] = cells.nearest(asking, earlier=True)
    return near_only(cosine, index, within)


def repeats(matrix: Matrix, threshold: float, *, recall: float, seed: int) -> Rows:
    """[rows]: how many other rows with a cosine of at least `threshold` were seen."""
    import numpy as np

    counts = np.zeros(len(matrix), dtype=np.int64)
    for one, _ in _open(matrix, recall, seed)[0].close_pairs(threshold):
        np.add.at(counts, one, 1)
    return counts


def clustered(matrix: Matrix, threshold: float, *, recall: float, seed: int) -> Rows:
    """[rows]: the first row of each row's cluster, of the pairs that were seen."""
    import numpy as np

    first = alone(len(matrix))
    waiting: list[tuple[Rows, Rows]] = []
    count = 0
    for one, other in _open(matrix, recall, seed)[0].close_pairs(threshold):
        waiting.append((one, other))
        count += len(one)
        if count >= len(matrix):  # uniting costs a look at all rows: not for every cell
            unite(first, *(np.concatenate(side) for side in zip(*waiting, strict=True)))
            waiting, count = [], 0
    if waiting:
        unite(first, *(np.concatenate(side) for side in zip(*waiting, strict=True)))
    return first


@dataclass(frozen=True, slots=True)
class _Truth:
    """The true largest cosine of some rows with another row."""

    rows: Rows
    cosines: Cosines


def _open(matrix: Matrix, recall: float, seed: int) -> tuple[_Cells, _Truth]:
    """The cells, set to the recall asked for on one sample; and another sample, to measure it."""
    import numpy as np

    if len(matrix) < 4:
        raise UsageError(
            f"{len(matrix)} rows are too few for an index", fix="compare all pairs: raise exact_up_to"
        )
    sample = np.random.default_rng(seed).permutation(len(matrix))[:_SAMPLE]
    truth = _true(matrix, sample)[0]
    half = len(sample) // 2
    cells = _celled(matrix, seed)
    _tune(cells, _Truth(sample[:half], truth[:half]), recall)
    return cells, _Truth(sample[half:], truth[half:])


def _true(matrix: Matrix, rows: Rows) -> tuple[Cosines, Rows]:
    """([rows] the largest cosine with another row of all, the row that has it)."""
    import numpy as np

    best = np.full(len(rows), NOTHING, dtype=np.float32)
    index = np.full(len(rows), -1, dtype=np.int64)
    size = max(1, _PRODUCTS // _BATCH)
    for begin in range(0, len(rows), size):  # few at a time: all may be alone in their cells
        part = slice(begin, begin + size)
        best[part], index[part] = _true_of_few(matrix, rows[part])
    return best, index


def _true_of_few(matrix: Matrix, rows: Rows) -> tuple[Cosines, Rows]:
    import numpy as np

    best = np.full(len(rows), NOTHING, dtype=np.float32)
    index = np.full(len(rows), -1, dtype=np.int64)
    for start in range(0, len(matrix), _BATCH):
        products = matrix[rows] @ matrix[start : start + _BATCH].T
        own = np.flatnonzero((rows >= start) & (rows < start + _BATCH))
        products[own, rows[own] - start] = NOTHING
        top = products.max(axis=1)
        better = np.flatnonzero(top > best)
        best[better], index[better] = top[better], start + products[better].argmax(axis=1)
    return best, index


def _celled(matrix: Matrix, seed: int) -> _Cells:
    """Twice the root of the rows cells: enough rows in each for a product to be worth it."""
    import numpy as np

    faiss = _faiss()
    count, width = matrix.shape
    cells = round(2 * math.sqrt(count))
    chosen = np.sort(np.random.default_rng(seed + 1).permutation(count)[: cells * _TRAINING])
    options = {"min_points_per_centroid": 1, "max_points_per_centroid": _TRAINING, "seed": seed + 1}
    means = faiss.Kmeans(width, cells, niter=_ROUNDS, spherical=True, **options)
    means.train(matrix[chosen])
    parts = [means.index.search(matrix[i : i + _BATCH], 1)[1][:, 0] for i in range(0, count, _BATCH)]
    cell = np.concatenate(parts).astype(np.int64)
    rows = np.argsort(cell, kind="stable")
    begins = np.searchsorted(cell[rows], np.arange(cells + 1))
    place = np.empty(count, dtype=np.int64)
    place[rows] = np.arange(count) - begins[cell[rows]]
    return _Cells(matrix, rows, begins, cell, place, means.index)


def _tune(cells: _Cells, truth: _Truth, recall: float) -> None:
    """Look into half as many cells again, until the sample's recall is half way from the one asked for to all."""
    cells.looked_into = 1
    most = len(cells.begins) - 1
    while cells.looked_into < most:
        if (cells.nearest(truth.rows)[0] >= truth.cosines - _SAME).mean() >= (1 + recall) / 2:
            return
        cells.looked_into = min(most, cells.looked_into + max(1, cells.looked_into // 2))


def _faiss() -> Any:
    try:
        import faiss  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        raise UsageError(
            "an index over so many rows needs FAISS, which is not installed",
            fix='pip install "ojak[embed]", or compare all pairs with a larger exact_up_to',
        ) from None
    return faiss
