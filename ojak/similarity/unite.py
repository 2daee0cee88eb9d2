"""Clusters from pairs: union-find over whole arrays at once.

`first[row]` is the least row of the cluster of `row`. Between calls every entry names its cluster's first row itself,
so a lookup is one step, and the first row in row order always stands for its cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]


def alone(count: int) -> Rows:
    """`count` rows, each a cluster of its own (shape: [count])."""
    import numpy as np

    return np.arange(count, dtype=np.int64)


def unite(first: Rows, one: Rows, other: Rows) -> None:
    """Join, in place, the clusters of one[i] and other[i] for every i. The result does not depend on the pairs' order.

    first: [rows], as `alone` and this function leave it; one, other: [pairs].
    """
    import numpy as np

    while True:
        a, b = first[one], first[other]
        apart = a != b
        if not apart.any():
            return
        one, other, a, b = one[apart], other[apart], a[apart], b[apart]
        np.minimum.at(first, np.maximum(a, b), np.minimum(a, b))
        _flatten(first)


def _flatten(first: Rows) -> None:
    """Every row names the end of its chain. Chains halve in each round."""
    while True:
        further = first[first]
        if (further == first).all():
            return
        first[:] = further
