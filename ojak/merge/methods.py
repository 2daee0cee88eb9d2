"""The arithmetic of every method, on numbers and on blocks of tensors. Nothing here reads a file.

Most methods are a weighted sum of the base and the models, whose shares add up to 1; they differ in the shares alone.
With the task vectors delta_m = theta_m - base:

    linear   sum of w_m theta_m, over the sum of w_m
    ema      theta <- (1 - mu) theta + mu theta_m, model after model
    task     base + scale * sum of w_m delta_m            (arXiv 2212.04089, section 2)
    liti     base + eta (theta - base)                    (WARP, arXiv 2406.16768, equation 5)
    slerp    base + scale * an arc from delta_1 to delta_2 to ...   (WARP, equation 4)

ties and dare choose among the entries of the task vectors, so that they work on the entries themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import hardshrink

LEAST_SINE = (
    1e-3  # below it an arc and its chord are the same to float32, and an arc of half a turn has no direction
)
LEAST_SHARE = 1e-8  # of the weights that agree, before a mean is taken of nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shares:
    """What is taken of the base and of each model: base * theta_base + sum of models[m] * theta_m."""

    base: float
    models: tuple[float, ...]


def linear(weights: Sequence[float]) -> Shares:
    """The mean of the models, weighted."""
    total = math.fsum(weights)
    return Shares(0.0, tuple(weight / total for weight in weights))


def ema(count: int, mu: float, *, from_base: bool) -> Shares:
    """The running mean over `count` models in their order, begun with the base or, without one, with the first."""
    shares = [mu * (1 - mu) ** (count - 1 - place) for place in range(count)]
    left = (1 - mu) ** (count if from_base else count - 1)
    if from_base:
        return Shares(left, tuple(shares))
    return Shares(0.0, (left, *shares[1:]))


def task(weights: Sequence[float], scale: float = 1.0) -> Shares:
    """The base and the weighted sum of the task vectors, as shares: one of 1 gives the model itself."""
    shares = tuple(scale * weight for weight in weights)
    return Shares(1 - math.fsum(shares), shares)


def liti(eta: float) -> Shares:
    """From the base (eta = 0) in a straight line to the model (eta = 1), and beyond."""
    return task((eta,))


def slerp(gram_MM: Floats, weights: Sequence[float], scale: float = 1.0) -> Shares:
    """Along the arc between the task vectors of a group of tensors, model after model.

    gram_MM: the inner products of the task vectors, over all tensors that share the angle. The arc made so far goes
    towards model m by w_m over the sum of w_1 to w_m: with equal weights, 1/m, as in WARP. Not associative. Two vectors
    of one length give a third of that length. Where they have no angle (one is 0, or they point the same or the
    opposite way), the straight line takes the arc's place.
    """
    arc_M, total = np.zeros(len(weights)), 0.0
    for place, weight in enumerate(weights):
        total += weight
        onward = weight / total if total else 0.0
        towards_M = np.zeros(len(weights))
        towards_M[place] = 1.0
        kept, taken = _between(_angle(gram_MM, arc_M, towards_M), onward)
        arc_M = kept * arc_M + taken * towards_M if place else towards_M
    return task(arc_M.tolist(), scale)


def angles(gram_MM: Floats) -> list[float]:
    """The angles between any two of the task vectors, in degrees; of a vector that is 0 there is none."""
    units = np.eye(len(gram_MM))
    pairs = [(units[i], units[j]) for i in range(len(units)) for j in range(i)]
    found = (_angle(gram_MM, one, other) for one, other in pairs)
    return [math.degrees(angle) for angle in found if angle is not None]


def _angle(gram_MM: Floats, one_M: Floats, other_M: Floats) -> float | None:
    """The angle between two sums of task vectors, given by their shares; None where one of them is 0."""
    lengths = float(one_M @ gram_MM @ one_M) * float(other_M @ gram_MM @ other_M)
    if lengths <= 0:
        return None
    cosine = float(one_M @ gram_MM @ other_M) / math.sqrt(lengths)
    return math.acos(min(1.0, max(-1.0, cosine)))


def _between(angle: float | None, onward: float) -> tuple[float, float]:
    """The shares of two vectors, so far along the arc between them."""
    sine = 0.0 if angle is None else math.sin(angle)
    if angle is None or sine < LEAST_SINE:
        return 1 - onward, onward
    return math.sin((1 - onward) * angle) / sine, math.sin(onward * angle) / sine


def ties(deltas: Sequence[Tensor], weights: Sequence[float], cuts: Sequence[float]) -> Tensor:
    """A task vector of what the models agree on (TIES, arXiv 2306.01708, section 4.2).

    deltas: task vectors of one shape. cuts: of each, the magnitude from which on an entry is kept (trim). Of
    each entry, the sign of the weighted sum wins (elect; the plus sign where the sum is 0), and the weighted mean is
    taken of those that have it (disjoint merge).
    """
    kept = [
        hardshrink(delta, _just_below(cut)).mul_(weight)  # it keeps what is larger, and NaNs
        for delta, cut, weight in zip(deltas, cuts, weights, strict=True)
    ]
    total = kept[0].clone()
    for each in kept[1:]:
        total.add_(each)
    sign = torch.ones(()).copysign(total.add_(0.0))  # the sum of -0 and 0 is 0
    total.zero_()
    share = torch.zeros_like(total)
    for each, weight in zip(kept, weights, strict=True):
        agreeing = each.mul_(sign).clamp_min_(0.0)
        total.add_(agreeing)
        share.add_(agreeing.sign_(), alpha=weight)
    return total.mul_(sign).div_(share.masked_fill_(share.abs() < LEAST_SHARE, 1.0))


def _just_below(cut: float) -> float:
    """The float32 before it."""
    return float(np.nextafter(np.float32(cut), np.float32(-np.inf)))


def dare(delta: Tensor, drop: float, random: np.random.Generator) -> Tensor:
    """The task vector with a share `drop` of its entries at random set to 0, the others made larger by 1 / (1 - drop):
    on the average it stays what it was (DARE, arXiv 2311.03099, section 3.2). Changes `delta`."""
    kept = random.random(delta.numel(), dtype=np.float32) >= drop
    return delta.mul_(torch.from_numpy(kept).view(delta.shape)).div_(1 - drop)


def magnitude_counts(delta: Tensor, above: int | None = None) -> Tensor:
    """How many entries have which magnitude, by the bits of a float32, which rise with it.

    Without `above`: of the upper 15 bits. With it: of the lower 16 bits, among the entries whose upper ones are that.
    """
    bits = delta.abs().view(torch.int32)
    if above is None:
        return torch.bincount(bits >> 16, minlength=1 << 15)
    return torch.bincount(bits[(bits >> 16) == above] & 0xFFFF, minlength=1 << 16)


def nth_from_top(counts: Tensor, n: int) -> tuple[int, int]:
    """The bin that holds the n-th largest entry (from 1), and its place within that bin, from the top."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, n))
    before = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, n - before


def magnitude(upper: int, lower: int) -> float:
    """The number whose bits `magnitude_counts` counted."""
    return float(torch.tensor(upper << 16 | lower, dtype=torch.int32).view(torch.float32))
