"""Neighbours, repeats and clusters of vectors, against float64 products of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ojak.errors import UsageError
from ojak.similarity import approximate, vectors
from ojak.similarity.embedding import clusters, earlier_neighbors, neighbors, repeat_counts

Matrix = NDArray[np.float32]


def rows_of(count: int, width: int = 16, seed: int = 0, groups: int = 0) -> Matrix:
    """Random unit rows; with `groups`, around so many centres."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, width))
    if groups:
        centres = rng.normal(size=(groups, width))
        matrix = centres[rng.integers(groups, size=count)] + 0.3 * matrix
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def true_cosines(matrix: Matrix) -> NDArray[np.float64]:
    wide = matrix.astype(np.float64)
    cosines = wide @ wide.T
    np.fill_diagonal(cosines, -3)
    return cosines


@pytest.fixture(params=[1, 7, 64, 2048])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(vectors, "_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("count", [2, 3, 63, 130])
def test_neighbours_are_those_of_float64(block: int, count: int) -> None:
    matrix = rows_of(count)
    found = neighbors(matrix)
    true = true_cosines(matrix)
    assert found.index.tolist() == true.argmax(axis=1).tolist()
    assert found.distance == pytest.approx(1 - true.max(axis=1), abs=1e-6)
    assert found.distance.dtype == np.float32
    assert (found.exact, found.recall, found.recall_low) == (True, 1.0, 1.0)


def test_ties_go_to_the_first_row(block: int) -> None:
    matrix = np.repeat(rows_of(9, seed=3), 13, axis=0)[np.random.default_rng(1).permutation(117)]
    found = neighbors(matrix)
    for row in range(len(matrix)):
        same = [i for i in range(len(matrix)) if i != row and (matrix[i] == matrix[row]).all()]
        assert found.index[row] == same[0]
        assert found.distance[row] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
def test_repeats_and_clusters_are_those_of_all_pairs(block: int, threshold: float) -> None:
    matrix = rows_of(120, seed=5, groups=12)
    near = true_cosines(matrix) >= threshold
    assert near.any()
    assert repeat_counts(matrix, threshold).tolist() == near.sum(axis=1).tolist()
    first = list(range(120))
    for a, b in zip(*np.nonzero(near), strict=True):
        low, high = sorted((first[a], first[b]))
        first = [low if each == high else each for each in first]
    assert clusters(matrix, threshold).tolist() == first


def test_few_rows() -> None:
    none, one = np.empty((0, 4), np.float32), rows_of(1, 4)
    assert len(neighbors(none).index) == 0
    assert neighbors(one).index.tolist() == [-1]
    assert neighbors(one).distance.tolist() == [2.0]
    assert repeat_counts(one, 0.9).tolist() == [0]
    assert clusters(none, 0.9).tolist() == []


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((3, 4), np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.eye(3),
        np.ones(4, np.float32),
        np.zeros((2, 2), np.float32),
    ],
    ids=["long", "nan", "float64", "flat", "zero"],
)
def test_what_has_no_cosines_is_refused(bad: Matrix) -> None:
    with pytest.raises(UsageError, match="cosines"):
        neighbors(bad)


@pytest.mark.parametrize("threshold", [1.5, float("nan")])
def test_a_threshold_must_be_a_cosine(threshold: float) -> None:
    with pytest.raises(UsageError, match="no cosine"):
        clusters(rows_of(3), threshold)


def test_the_index_finds_nearly_all_and_says_how_many() -> None:
    pytest.importorskip("faiss")
    matrix = rows_of(6000, width=24, seed=2, groups=300)
    found = neighbors(matrix, exact_up_to=1000)
    true = true_cosines(matrix).max(axis=1)
    right = float((1 - found.distance >= true - 1e-5).mean())
    assert not found.exact
    assert right >= 0.98
    assert found.recall_low <= right <= found.recall_high
    assert found.recall_low <= found.recall <= found.recall_high
    assert (found.index != np.arange(6000)).all()
    cosines = np.einsum("nd,nd->n", matrix, matrix[found.index])
    assert found.distance == pytest.approx(1 - cosines, abs=1e-5), "the row that is named is at that distance"


def test_the_index_agrees_on_repeats_and_clusters() -> None:
    pytest.importorskip("faiss")
    matrix = rows_of(3000, width=24, seed=4, groups=400)
    exact = repeat_counts(matrix, 0.95)
    assert exact.max() > 1
    assert (repeat_counts(matrix, 0.95, exact_up_to=0) == exact).mean() > 0.98
    assert (clusters(matrix, 0.95, exact_up_to=0) == clusters(matrix, 0.95)).mean() > 0.98


@pytest.fixture(params=[1 << 23, 1 << 16])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many cosines the index computes at once, at most (or one row of them)."""
    monkeypatch.setattr(approximate, "_PRODUCTS", request.param)
    return request.param


def test_copies_of_one_row_do_not_break_the_index(products: int) -> None:
    pytest.importorskip("faiss")
    matrix = np.repeat(rows_of(2, width=8), 300, axis=0)
    found = neighbors(matrix, exact_up_to=0)
    assert (found.index != np.arange(600)).all()
    assert found.distance.max() < 1e-5
    assert found.index.tolist() == [1, *[0] * 299, 301, *[300] * 299]
    assert repeat_counts(matrix, 0.99, exact_up_to=0).tolist() == [299] * 600
    assert clusters(matrix, 0.99, exact_up_to=0).tolist() == [0] * 300 + [300] * 300
    with pytest.raises(UsageError, match="too few"):
        neighbors(matrix[:3], exact_up_to=0)


def test_the_index_never_holds_more_products_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of 400 equal rows, each of which looks into it, is 160,000 products."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "_PRODUCTS", 5_000)
    monkeypatch.setattr(approximate, "_BATCH", 100)
    matrix = np.concatenate([np.repeat(rows_of(1, seed=5), 400, axis=0), rows_of(200)])
    cells, _ = approximate._open(matrix, recall=0.99, seed=0)
    seen = [products.size for _, _, products in cells.compared(np.arange(len(matrix)))]
    assert max(seen) <= 5_000
    assert len(seen) > 400 * 400 / 5_000


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)]
)
def test_intervals_are_wilson_s(right: int, count: int, low: float, high: float) -> None:
    """Values from tables."""
    assert approximate.wilson(right, count) == pytest.approx((low, high), abs=2e-4)


def true_earlier(matrix: Matrix, within: float) -> list[int]:
    """The nearest of the earlier rows that are nearer than `within`, of float64 products; -1 for none."""
    cosines = np.where(np.tri(len(matrix), k=-1, dtype=bool), true_cosines(matrix), -3)
    near = 1 - cosines.max(axis=1) < within
    return np.where(near, cosines.argmax(axis=1), -1).tolist()


@pytest.mark.parametrize("within", [0.01, 0.1, 0.6, 2.0])
def test_earlier_neighbours_are_those_of_all_pairs(block: int, within: float) -> None:
    matrix = rows_of(150, seed=6, groups=12)
    expected = true_earlier(matrix, within)
    assert within < 0.05 or len(set(expected)) > 1
    assert earlier_neighbors(matrix, within).tolist() == expected
    assert earlier_neighbors(matrix[:1], within).tolist() == [-1]


def test_of_equal_rows_the_first_is_named(block: int) -> None:
    matrix = np.repeat(rows_of(4, seed=3), 5, axis=0)
    assert earlier_neighbors(matrix, 0.001).tolist() == [-1, 0, 0, 0, 0, -1, 5, 5, 5, 5, -1, 10, 10, 10, 10, -1, 15, 15, 15, 15]  # fmt: skip


def test_a_chain_drops_only_rows_that_are_near_an_earlier_one() -> None:
    """0 - 2 - 1: the third row is near both others, which are far from each other. Only it has an earlier neighbour."""
    angles = np.array([0.0, 0.6, 0.3])
    matrix = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert earlier_neighbors(matrix, 0.06).tolist() == [-1, -1, 0]
    assert clusters(matrix, 0.94).tolist() == [0, 0, 0]


@pytest.mark.parametrize("products", [1 << 23, 300])
def test_the_index_finds_the_same_earlier_neighbours(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "_PRODUCTS", products)
    matrix = rows_of(1500, seed=8, groups=300)
    exact = earlier_neighbors(matrix, 0.05)
    found = earlier_neighbors(matrix, 0.05, exact_up_to=0)
    assert 50 < (exact >= 0).sum() < 1400
    assert (found == exact).mean() > 0.99
    assert (found < np.arange(1500)).all()
