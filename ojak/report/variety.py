"""How varied texts are: distinct n-grams, repeats, entropy, distances and coverage between sets, and a map of them.

Measures of variety fall as a set grows, so they are given as curves over the number of instructions, or at the size of
the smallest set. Matrices of embeddings are float32 with rows of length one, so that a product is a cosine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ojak.errors import UsageError
from ojak.report.sets import words
from ojak.similarity import DuplicateIndex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

Projection: TypeAlias = Literal["pca", "tsne"]
NEAR_DUPLICATE = 0.7  # Jaccard similarity of character 5-grams
MOST_TSNE_POINTS = 12_000  # a minute or two on two cores; PCA takes seconds whatever the size
TSNE_DIMENSIONS, TSNE_PERPLEXITY = 50, 30
BLOCK_ROWS = 1_024


def sizes_up_to(count: int, also: int = 0) -> list[int]:
    """10, 20, 50, 100, ... below `count`, `count` itself, and `also` if there are so many."""
    steps = [factor * 10**power for power in range(1, 8) for factor in (1, 2, 5)]
    return sorted(size for size in {*steps, count, also} if 0 < size <= count)


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The texts in an order that does not depend on how a file was sorted."""
    return random.Random(f"{seed}/order").sample(list(texts), len(texts))


def distinct_curve(texts: Sequence[str], n: int, also: int = 0) -> list[tuple[int, float]]:
    """(number of texts, distinct word n-grams / all word n-grams in so many of them).

    Li et al., "A diversity-promoting objective function for neural conversation models" (2016): distinct-n.
    """
    import numpy as np

    ids: dict[str, int] = {}
    grams: list[NDArray[np.uint64]] = []
    for text in texts:
        row = np.array([ids.setdefault(word, len(ids) + 1) for word in words(text)], dtype=np.uint64)
        grams.append(_grams(row, n))
    ends = np.cumsum([len(row) for row in grams])
    _, first = np.unique(np.concatenate(grams) if grams else np.empty(0, np.uint64), return_index=True)
    firsts = np.sort(first)
    found = [(size, int(ends[size - 1])) for size in sizes_up_to(len(texts), also)]
    return [(size, float(np.searchsorted(firsts, end)) / max(end, 1)) for size, end in found]


def _grams(row: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """One number for each run of `n` words: 21 bits a word, so exact for n <= 3 and two million different words."""
    import numpy as np

    count = max(len(row) - n + 1, 0)
    found = np.zeros(count, np.uint64)
    for offset in range(n):
        found = (found << np.uint64(21)) | row[offset : offset + count]
    return found


def repeat_curve(texts: Sequence[str], also: int = 0) -> list[tuple[int, float]]:
    """(number of texts, share of them that repeat an earlier one: equal, or nearly so by character 5-grams)."""
    index, repeats, found = DuplicateIndex(NEAR_DUPLICATE), 0, []
    wanted = set(sizes_up_to(len(texts), also))
    for row, text in enumerate(texts):
        repeats += index.add(row, text) is not None
        if row + 1 in wanted:
            found.append((row + 1, repeats / (row + 1)))
    return found


def entropy(counts: Mapping[str, int]) -> float | None:
    """Shannon's entropy of the labels, in bits; None without any."""
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return sum(share * math.log2(1 / share) for share in shares) if shares else None


def nearest_between(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """(for each row of a, the largest cosine to a row of b; the same for b): shapes [len(a)] and [len(b)]."""
    import numpy as np

    of_a, of_b = np.full(len(a), -1, np.float32), np.full(len(b), -1, np.float32)
    for start in range(0, len(a), BLOCK_ROWS):
        cosines = a[start : start + BLOCK_ROWS] @ b.T
        of_a[start : start + BLOCK_ROWS] = cosines.max(axis=1)
        np.maximum(of_b, cosines.max(axis=0), out=of_b)
    return of_a, of_b


@dataclass(frozen=True, slots=True)
class Map:
    """Points [n, 2] of each set, all from one projection; `how` says which, in words."""

    points: list[Matrix]
    how: str


def choose(asked: Literal["auto", "pca", "tsne"], points: int) -> Projection:
    """t-SNE where scikit-learn is there and the points are few enough. Raises UsageError if it is asked for in vain."""
    from importlib.util import find_spec

    there = find_spec("sklearn") is not None
    if asked == "tsne" and not there:
        raise UsageError(
            "t-SNE needs scikit-learn", fix="install the extra `ojak[embed]`, or take --projection pca"
        )
    if asked == "auto":
        return "tsne" if there and points <= MOST_TSNE_POINTS else "pca"
    return asked


def project(matrices: Sequence[Matrix], how: Projection, seed: int) -> Map:
    """All sets in two dimensions by one projection, each set counting as much as the others in the choice of axes."""
    import numpy as np

    axes, share = _principal_axes(matrices, TSNE_DIMENSIONS if how == "tsne" else 2)
    flat = [((matrix - share.mean) @ axes).astype(np.float32) for matrix in matrices]
    if how == "pca":
        kept = share.of_two
        return Map(
            flat,
            "principal components (PCA), each set counting alike; "
            f"the two axes hold {100 * kept:.0f}\u00a0% of the variance",
        )
    return Map(_tsne(np.concatenate(flat), [len(part) for part in flat], seed), f"t-SNE, seed {seed}")


@dataclass(frozen=True, slots=True)
class _Spread:
    mean: Matrix
    of_two: float


def _principal_axes(matrices: Sequence[Matrix], count: int) -> tuple[Matrix, _Spread]:
    """The first `count` principal axes [d, count] of the sets' mean covariance, and what they were taken from."""
    import numpy as np

    mean = np.mean([matrix.mean(axis=0) for matrix in matrices], axis=0)
    spread = sum((matrix - mean).T @ (matrix - mean) / len(matrix) for matrix in matrices) / len(matrices)
    values, vectors = np.linalg.eigh(np.asarray(spread, np.float64))
    axes = vectors[:, ::-1][:, :count]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # eigenvectors have no sign
    of_two = float(values[::-1][:2].sum() / max(values.sum(), 1e-12))
    return (axes * signs).astype(np.float32), _Spread(mean, of_two)


def _tsne(flat: Matrix, sizes: Sequence[int], seed: int) -> list[Matrix]:
    import numpy as np
    from sklearn.manifold import TSNE

    perplexity = min(TSNE_PERPLEXITY, max((len(flat) - 1) / 3, 1))
    points = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(flat)
    return np.split(points.astype(np.float32), np.cumsum(sizes)[:-1])
