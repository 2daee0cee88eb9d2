"""The merged weights, a block at a time: what each method must know beforehand is found in passes over the blocks."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ojak._progress import Listener, Progress
from ojak.errors import InputRefused
from ojak.merge import methods
from ojak.merge.config import HowConfig
from ojak.merge.methods import Floats, Shares
from ojak.merge.weights import BLOCK, Weights, blocks

Result = TypeVar("Result")
Combine = Callable[[str, int, int], Tensor]  # (name, start, count) -> the block of the merged tensor, float32
LAYER = re.compile(r"(model\.layers\.[0-9]+)\.", re.ASCII)
AHEAD = 2  # blocks for each thread that are made and not yet taken


@dataclass
class Work:
    """What is merged, how, and by how many threads. `names`: the tensors in the order in which they are written.

    sha256s: of the models, in their order. base: None where there is none. angles, shares: filled on the way, by group.
    """

    how: HowConfig
    names: Sequence[str]
    models: Sequence[Weights]
    sha256s: Sequence[str]
    base: Weights | None
    pool: ThreadPoolExecutor
    threads: int
    progress: Listener | None = None
    angles: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, Shares] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[float, ...]:
        """One a model; all alike where none are given."""
        return self.how.weights or (1 / len(self.models),) * len(self.models)

    def entries(self, name: str) -> int:
        return self.models[0].places[name].entries

    def deltas(self, name: str, start: int, count: int) -> tuple[Tensor, list[Tensor]]:
        """A block of the base, and of each model's task vector."""
        assert self.base is not None
        base = self.base.read(name, start, count)
        return base, [model.read(name, start, count).sub_(base) for model in self.models]

    def each_block(self, call: Callable[[str, int, int], Result], phase: str) -> Iterator[tuple[str, Result]]:
        """(name, what `call` gives) of every block of every tensor, in order, made ahead by the threads."""
        waiting: deque[tuple[str, Future[Result]]] = deque()
        left = Counter({name: -(-self.entries(name) // BLOCK) for name in self.names})
        calls = ((name, start, count) for name in self.names for start, count in blocks(self.entries(name)))
        try:
            for block in itertools.chain(calls, [None] * (AHEAD * self.threads)):
                if block is not None:
                    waiting.append((block[0], self.pool.submit(call, *block)))
                if waiting and (block is None or len(waiting) > AHEAD * self.threads):
                    name, made = waiting.popleft()
                    yield name, made.result()
                    left[name] -= 1
                    self._tell(phase, left)
        finally:
            for _, made in waiting:
                made.cancel()

    def _tell(self, phase: str, left: Counter[str]) -> None:
        if self.progress is not None:
            done = sum(not number for number in left.values())
            self.progress.update(Progress(len(left), done, phase=phase, unit="tensors", reads=True))


def merged(work: Work, dtypes: dict[str, torch.dtype]) -> Iterator[Tensor]:
    """The blocks of the merged tensors, in the order of `work.names`, each in its dtype.

    Raises InputRefused for weights that are not numbers, or become none.
    """
    combine = _combine(work)

    def made(name: str, start: int, count: int) -> Tensor:
        block = combine(name, start, count).to(dtypes[name])
        if not bool(torch.isfinite(block.sum(dtype=torch.float32))):
            raise _not_finite(work, name, start, count)
        return block

    return (block for _, block in work.each_block(made, "merging"))


def _combine(work: Work) -> Combine:
    how = work.how
    if how.method == "ties":
        cuts = _cuts(work)
        return lambda *block: _ties(work, cuts, *block)
    if how.method == "dare":
        return lambda *block: _dare(work, *block)
    if how.method == "slerp":
        of_group = _arcs(work)
        work.shares = of_group
        return lambda name, *block: _weighted(work, of_group[_group(work, name)], name, *block)
    shares = _straight(work)
    work.shares = {"all": shares}
    return lambda *block: _weighted(work, shares, *block)


def _straight(work: Work) -> Shares:
    """The shares of the methods that treat all tensors alike."""
    if work.how.method == "linear":
        return methods.linear(work.weights)
    if work.how.method == "ema":
        return methods.ema(len(work.models), work.weights[0], from_base=work.base is not None)
    if work.how.method == "liti":
        return methods.liti(work.weights[0])
    return methods.task(work.weights, work.how.scale)


def _weighted(work: Work, shares: Shares, name: str, start: int, count: int) -> Tensor:
    """A weighted sum. What has no share is not read, so that a share of 1 gives the model itself."""
    total: Tensor | None = None
    for weights, share in zip((work.base, *work.models), (shares.base, *shares.models), strict=True):
        if weights is None or share == 0:
            continue
        block = weights.read(name, start, count)
        total = block.mul_(share) if total is None else total.add_(block, alpha=share)
    return torch.zeros(count) if total is None else total


# ------------------------------------------------------------------------------------------------------------ slerp


def _group(work: Work, name: str) -> str:
    """What shares an angle with this tensor: its layer; outside of the layers, it has one of its own."""
    found = LAYER.match(name)
    return found[1] if found and work.how.angle == "layer" else name


def _arcs(work: Work) -> dict[str, Shares]:
    """The shares of each group of tensors, from the inner products of the task vectors over all of it."""
    grams: dict[str, Floats] = {}

    def products(name: str, start: int, count: int) -> Floats:
        gram_MM = _gram(work.deltas(name, start, count)[1])
        if not np.isfinite(gram_MM).all():
            raise _not_finite(work, name, start, count)
        return gram_MM

    for name, gram_MM in work.each_block(products, "measuring angles"):
        group = _group(work, name)
        grams[group] = grams.get(group, np.zeros_like(gram_MM)) + gram_MM
    work.angles = {group: methods.angles(gram_MM) for group, gram_MM in grams.items()}
    return {group: methods.slerp(gram_MM, work.weights, work.how.scale) for group, gram_MM in grams.items()}


def _gram(deltas: Sequence[Tensor]) -> Floats:
    """The inner products of blocks of vectors; they are added up in float64."""
    gram_MM = np.zeros((len(deltas), len(deltas)))
    for i, one in enumerate(deltas):
        for j in range(i + 1):
            gram_MM[i, j] = gram_MM[j, i] = float(torch.dot(one, deltas[j]))
    return gram_MM


# ------------------------------------------------------------------------------------------------------- ties, dare


def _ties(work: Work, cuts: dict[str, list[float]], name: str, start: int, count: int) -> Tensor:
    base, deltas = work.deltas(name, start, count)
    return base.add_(methods.ties(deltas, work.weights, cuts[name]), alpha=work.how.scale)


def _cuts(work: Work) -> dict[str, list[float]]:
    """Of each tensor and model the magnitude of the last entry that is kept: found by counting bits, twice."""
    kept = {name: max(1, int(work.how.density * work.entries(name))) for name in work.names}
    upper = _counted(work, lambda name, delta, model: methods.magnitude_counts(delta))
    bins = {
        name: [methods.nth_from_top(counts, kept[name]) for counts in of_model] for name, of_model in upper
    }
    lower = _counted(work, lambda name, delta, model: methods.magnitude_counts(delta, bins[name][model][0]))
    return {
        name: [
            methods.magnitude(above, methods.nth_from_top(counts, n)[0])
            for (above, n), counts in zip(bins[name], of_model, strict=True)
        ]
        for name, of_model in lower
    }


def _counted(work: Work, count: Callable[[str, Tensor, int], Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """The counts of each tensor, of every model, added up over its blocks."""

    def counts(name: str, start: int, size: int) -> list[Tensor]:
        return [count(name, delta, m) for m, delta in enumerate(work.deltas(name, start, size)[1])]

    of_blocks = work.each_block(counts, "measuring task vectors")
    for name, group in itertools.groupby(of_blocks, key=lambda item: item[0]):
        total = [torch.zeros(1, dtype=torch.int64)] * len(work.models)
        for _, found in group:
            total = [one + other for one, other in zip(total, found, strict=True)]
        yield name, total


def _dare(work: Work, name: str, start: int, count: int) -> Tensor:
    total, deltas = work.deltas(name, start, count)
    for delta, weight, sha256 in zip(deltas, work.weights, work.sha256s, strict=True):
        random = _random(work.how.seed, sha256, name, start)
        total.add_(methods.dare(delta, work.how.drop, random), alpha=work.how.scale * weight)
    return total


def _random(seed: int, sha256: str, name: str, start: int) -> np.random.Generator:
    """What dare draws for a block follows from the seed, the model and the place, not from the order of work."""
    digest = hashlib.sha256(f"dare\0{seed}\0{sha256}\0{name}\0{start}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


# ----------------------------------------------------------------------------------------------------------- refusals


def _not_finite(work: Work, name: str, start: int, count: int) -> InputRefused:
    """The error for a merged block with infinities or NaNs: whose they are, or that the numbers are too large."""
    inputs: Iterable[tuple[str, Weights | None]] = [
        ("the base", work.base),
        *((f"model {number}", model) for number, model in enumerate(work.models, 1)),
    ]
    for who, weights in inputs:
        if weights is not None and not bool(torch.isfinite(weights.read(name, start, count)).all()):
            return InputRefused(
                f"the weight {name[:200]!r} of {who} holds infinities or NaNs",
                fix="use another copy of the model",
            )
    return InputRefused(
        f"the merged weight {name[:200]!r} is too large for what it is to be stored as",
        fix="take --dtype float32 or bfloat16, or smaller weights",
    )
