"""Nearest neighbours, repeats and clusters of unit vectors, exactly: every row is compared with every other.

The products are symmetric, so only the blocks on and above the diagonal are computed, each once for its rows and once
for its columns. Blocks have one constant shape (the last ones are filled up), so that equal rows have equal products
wherever they stand, and ties go to the first row in row order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ojak.errors import UsageError
from ojak.similarity.unite import alone, unite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.unite import Rows

    Matrix = NDArray[np.float32]

_BLOCK = 2048  # rows of a block: 16 MB of products
_STRIP = 64  # rows that are searched together for the tops of columns
NOTHING = -3.0  # below every cosine
FARTHEST = 2.0  # the largest cosine distance


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest other row of each row.

    distance: float32 [rows], 1 - cosine, 0 to 2; index: int64 [rows], that row, or -1 (distance 2) where there is none.
    recall: the share of rows whose distance is the true one: 1 where every pair was compared, else measured on a
    sample, with its 95 % interval.
    """

    distance: NDArray[np.float32]
    index: Rows
    exact: bool = True
    recall: float = 1.0
    recall_low: float = 1.0
    recall_high: float = 1.0


def check_unit_rows(matrix: Matrix) -> None:
    """Raises UsageError unless `matrix` is float32, of two dimensions, with rows of length 1."""
    import numpy as np

    what = ""
    if matrix.ndim != 2 or matrix.dtype != np.float32:
        what = f"a matrix of {matrix.dtype}, shape {matrix.shape}"
    elif len(matrix) and not (off := _off_unit(matrix)) <= 1e-3:  # not "off > 1e-3": NaN has to fail, too
        what = f"a row whose length is not 1 (off by {off:.3g})"
    if what:
        raise UsageError(
            f"cosines cannot be taken of {what}",
            why="float32 rows of length 1 are needed: their products are the cosines",
            fix="divide each row by its length (Embedder.encode does)",
        )


def _off_unit(matrix: Matrix) -> float:
    """The largest difference of a row's squared length from 1."""
    import numpy as np

    return max(
        float(np.abs(np.einsum("nd,nd->n", part, part) - 1).max())
        for part in (matrix[i : i + 65_536] for i in range(0, len(matrix), 65_536))
    )


def nearest(matrix: Matrix) -> Neighbors:
    """The nearest other row of each, by comparing all. Ties go to the first row in row order."""
    import numpy as np

    best = np.full(len(matrix), NOTHING, dtype=np.float32)
    index = np.full(len(matrix), -1, dtype=np.int64)
    for rows, columns, products in _blocks(matrix):
        _improve(best[rows], index[rows], *_tops(products), columns.start)
        if rows != columns:
            _improve(best[columns], index[columns], *_tops_down(products), rows.start)
    return Neighbors(distances(best), index)


def distances(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine, within its bounds."""
    import numpy as np

    return np.clip(np.float32(1) - cosines, np.float32(0), np.float32(FARTHEST))


def _improve(
    best: NDArray[np.float32],
    index: Rows,
    top: NDArray[np.float32],
    place: Callable[[Rows], Rows],
    start: int,
) -> None:
    """Take over what is nearer: `top` [rows] are a block's largest cosines, `place` tells where some of them stand,
    counted from `start`. Blocks come in row order, and an equal cosine does not replace an earlier one."""
    import numpy as np

    better = np.flatnonzero(top > best)
    best[better] = top[better]
    index[better] = start + place(better)


def _tops(products: Matrix) -> tuple[NDArray[np.float32], Callable[[Rows], Rows]]:
    """(the largest of each row, a function that gives for some rows the first column that has it)."""
    return products.max(axis=1), lambda some: products[some].argmax(axis=1)


def _tops_down(products: Matrix) -> tuple[NDArray[np.float32], Callable[[Rows], Rows]]:
    """(the largest of each column, a function that gives for some columns the first row that has it).

    Reading down a column takes ten times as long as along a row, so it is read only in the strip of rows with its top.
    """
    import numpy as np

    begins = np.arange(0, len(products), _STRIP)
    strips = np.stack([products[begin : begin + _STRIP].max(axis=0) for begin in begins])
    top = strips.max(axis=0)

    def place(some: Rows) -> Rows:
        begin = begins[(strips[:, some] == top[some]).argmax(axis=0)]
        rows = np.minimum(begin[:, None] + np.arange(_STRIP), len(products) - 1)
        return begin + products[rows, some[:, None]].argmax(axis=1)

    return top, place


def _blocks(matrix: Matrix) -> Iterator[tuple[slice, slice, Matrix]]:
    """(rows, columns, their cosines [rows, columns]) for the blocks on and above the diagonal, in row order.

    A row's cosine with itself is `NOTHING`. The cosines are overwritten by the next block's.
    """
    import numpy as np

    count, width = matrix.shape
    size = max(1, min(_BLOCK, count))
    products = np.empty((size, size), dtype=np.float32)
    for top in range(0, count, size):
        rows = slice(top, min(top + size, count))
        upper = _filled(matrix[rows], size, width)
        for left in range(top, count, size):
            columns = slice(left, min(left + size, count))
            np.matmul(upper, _filled(matrix[columns], size, width).T, out=products)
            if left == top:
                np.fill_diagonal(products, NOTHING)
            yield rows, columns, products[: rows.stop - top, : columns.stop - left]


def _filled(part: Matrix, size: int, width: int) -> Matrix:
    """`part` with empty rows up to `size`."""
    import numpy as np

    if len(part) == size:
        return part
    return np.concatenate([part, np.zeros((size - len(part), width), dtype=np.float32)])


def close_pairs(matrix: Matrix, threshold: float) -> Iterator[tuple[Rows, Rows]]:
    """(one, other), one < other, of all pairs whose cosine is at least `threshold`, block by block."""
    import numpy as np

    for rows, columns, products in _blocks(matrix):
        hit = np.flatnonzero(products.max(axis=1) >= threshold)
        one, other = np.nonzero(products[hit] >= threshold)
        one, other = hit[one] + rows.start, other + columns.start
        ordered = one < other  # on the diagonal every pair stands twice
        yield one[ordered], other[ordered]


def earlier(matrix: Matrix, within: float) -> Rows:
    """[rows]: the nearest earlier row nearer than `within`, -1 for none. Ties go to the first row in row order."""
    import numpy as np

    best = np.full(len(matrix), NOTHING, dtype=np.float32)
    index = np.full(len(matrix), -1, dtype=np.int64)
    for rows, columns, products in _blocks(matrix):
        if rows == columns:  # of the rows themselves only the earlier ones: what stands left of the diagonal
            products = np.where(np.tri(len(products), k=-1, dtype=bool), products, np.float32(NOTHING))
            _improve(best[rows], index[rows], *_tops(products), columns.start)
        else:
            _improve(best[columns], index[columns], *_tops_down(products), rows.start)
    return near_only(best, index, within)


def near_only(cosines: NDArray[np.float32], index: Rows, within: float) -> Rows:
    """`index` where the distance is less than `within`, else -1."""
    import numpy as np

    return np.where(distances(cosines) < within, index, -1)


def repeats(matrix: Matrix, threshold: float) -> Rows:
    """[rows]: how many other rows have a cosine of at least `threshold`."""
    import numpy as np

    counts = np.zeros(len(matrix), dtype=np.int64)
    for one, other in close_pairs(matrix, threshold):
        counts += np.bincount(one, minlength=len(counts)) + np.bincount(other, minlength=len(counts))
    return counts


def clustered(matrix: Matrix, threshold: float) -> Rows:
    """[rows]: the first row of each row's cluster; rows with a cosine of at least `threshold` share one."""
    first = alone(len(matrix))
    for one, other in close_pairs(matrix, threshold):
        unite(first, one, other)
    return first
