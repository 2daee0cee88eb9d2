"""Numbers with their uncertainty: what an estimate is, and the interval of a share. Intervals are of 95 %."""

from __future__ import annotations

import math

Z = 1.959963984540054  # the normal quantile of 0.975
Estimate = tuple[float, float, float]  # value, low, high


def wilson(count: float, total: int) -> tuple[float, float]:
    """The interval of a share of `count` in `total` (at least 1), of E. B. Wilson (JASA 22, 1927).

    It has a width at 0 and 1, too. A verdict that is even may count a half.
    """
    share, extra = count / total, Z * Z / total
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * math.sqrt(share * (1 - share) / total + extra / total / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
