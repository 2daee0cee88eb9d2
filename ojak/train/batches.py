"""Batches: which rows a step learns from, in which order, and how they lie in a tensor.

The order is a pure function of (rows, seed, epoch): a step can be asked for by its number, so that a run resumes in the
middle of an epoch without replaying it. Documents keep their borders: targets and positions never cross one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ojak.errors import UsageError
from ojak.train.rows import Rows, shuffled

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

IGNORED = -100  # what a loss leaves out (torch's own default)
WINDOW = 8_192  # rows packed together: enough for full packs, and an epoch's packs differ from the last one's
PAD = 0  # any id: no target and no attention reaches it


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch, on the CPU. B = 1 where it is packed: documents one after another, without padding.

    targets_BT: the NEXT token's id where that is learnt, IGNORED elsewhere, and at the end of each document.
    positions_BT begin at 0 in each document. lengths: the documents' (packed: in order, their sum is T), or the rows'
    without padding. tokens: without padding. supervised: targets that are not IGNORED. rows: the documents' numbers
    in the run's rows; epoch: the one they are seen in. pairs: how many of the rows are pairs, all or none: each then
    has two documents, one after the other, the better answer's first.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    lengths: tuple[int, ...]
    packed: bool
    tokens: int
    supervised: int
    rows: tuple[int, ...] = ()
    epoch: int = 0
    pairs: int = 0

    @property
    def units(self) -> int:
        """What a step's loss is the mean over: pairs, where the rows are pairs, otherwise supervised tokens."""
        return self.pairs or self.supervised


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The steps of an epoch. `order` holds row numbers, item after item; item i is `order[bounds[i]:bounds[i + 1]]`.

    An item is a row, or a pack of rows; a step has `batch` of them over all processes, the last one what is left.
    """

    rows: Rows
    order: NDArray[np.int64]
    bounds: NDArray[np.int64]
    batch: int
    micro_batch: int
    world_size: int
    padded: bool
    epoch: int = 0

    @property
    def items(self) -> int:
        """Packed sequences, or rows."""
        return len(self.bounds) - 1

    @property
    def steps(self) -> int:
        return math.ceil(self.items / self.batch)

    @property
    def tokens(self) -> int:
        """Tokens of the epoch, without padding."""
        return int(self.rows.lengths[self.order].sum())

    @property
    def supervised(self) -> int:
        """Targets of the epoch."""
        return int(self.rows.supervised[self.order].sum())

    def step(self, number: int, rank: int = 0) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for one process; each process gets the same number of them.

        Where a process has no rows left, it gets batches of one token and no target. Raises IndexError.
        """
        if not (0 <= number < self.steps and 0 <= rank < self.world_size):
            raise IndexError((number, rank))
        begin = number * self.batch
        items = range(begin, min(begin + self.batch, self.items))
        most = math.ceil(math.ceil(len(items) / self.world_size) / self.micro_batch)
        own = items[rank :: self.world_size]
        made = [self._batch(own[at : at + self.micro_batch]) for at in range(0, len(own), self.micro_batch)]
        return made + [filler()] * (most - len(made))

    def _batch(self, items: Sequence[int]) -> Batch:
        parts = (self.order[self.bounds[i] : self.bounds[i + 1]].tolist() for i in items)
        chosen = list(itertools.chain.from_iterable(parts))
        return batch_of(self.rows, chosen, padded=self.padded, epoch=self.epoch)


Document = tuple["NDArray[np.uint32]", "NDArray[np.bool_]"]


def packed_batch(documents: Sequence[Document]) -> Batch:
    """Documents (ids, mask of what is learnt) one after another in one sequence: shapes [1, T]."""
    ids = np.concatenate([ids for ids, _ in documents]).astype(np.int64)
    targets = np.concatenate([_targets(*document) for document in documents])
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in documents])
    return _made((ids, targets, positions), documents, packed=True)


def batch_of(rows: Rows, numbers: Sequence[int], *, padded: bool = False, epoch: int = 0) -> Batch:
    """The rows of these numbers, packed or padded."""
    documents = [document for row in numbers for document in rows.documents(row)]
    made = padded_batch(documents) if padded else packed_batch(documents)
    return replace(made, rows=tuple(numbers), epoch=epoch, pairs=len(numbers) if rows.paired else 0)


def padded_batch(documents: Sequence[Document]) -> Batch:
    """Each document (ids, mask of what is learnt) in a row of its own, padded on the right: shapes [B, T]."""
    shape = len(documents), max(len(ids) for ids, _ in documents)
    ids, targets = np.full(shape, PAD, np.int64), np.full(shape, IGNORED, np.int64)
    for row, document in enumerate(documents):
        length = len(document[0])
        ids[row, :length] = document[0]
        targets[row, :length] = _targets(*document)
    return _made((ids, targets, np.tile(np.arange(shape[1]), (shape[0], 1))), documents, packed=False)


def _targets(ids: NDArray[np.uint32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    targets = np.full(len(ids), IGNORED, np.int64)
    targets[:-1][mask[1:]] = ids[1:][mask[1:]]
    return targets


def _made(arrays: tuple[NDArray[np.int64], ...], documents: Sequence[Document], *, packed: bool) -> Batch:
    ids, targets, positions = (torch.from_numpy(array.reshape(-1, array.shape[-1])) for array in arrays)
    lengths = tuple(len(ids) for ids, _ in documents)
    supervised = int((targets != IGNORED).sum())
    return Batch(ids, targets, positions, lengths, packed, sum(lengths), supervised)


def filler() -> Batch:
    """A batch that adds nothing to a step, for a process that must take part in it."""
    zero, none = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), IGNORED)
    return Batch(zero, none, zero, (1,), True, 0, 0)


def plan_epoch(
    rows: Rows,
    *,
    seed: int,
    epoch: int,
    batch: int,
    max_len: int,
    packing: bool,
    world_size: int = 1,
    micro_batch: int | None = None,
    padded: bool = False,
) -> EpochPlan:
    """The steps of epoch `epoch` (from 0), a pure function of the arguments.

    packing: an item of a step is a pack of rows, best-fit, of at most `max_len` tokens; otherwise it is a row. A
    micro-batch holds `micro_batch` items, one after another without padding: by default one pack, or all rows that the
    process has in the step. padded: the plain layout, a row of the tensor for each row of data.

    Raises UsageError for settings that do not fit each other or the rows.
    """
    _check(rows, batch, max_len, packing, world_size, padded)
    order = epoch_order(rows, seed, epoch)
    bounds = np.arange(len(order) + 1)
    if packing:
        order, bounds = _packs(rows, order, max_len, (seed, epoch))
    micro = micro_batch or (1 if packing else batch // world_size)
    return EpochPlan(rows, order, bounds, batch, micro, world_size, padded, epoch)


def _check(rows: Rows, batch: int, max_len: int, packing: bool, world_size: int, padded: bool) -> None:
    if batch < 1 or batch % world_size:
        raise UsageError(
            f"a batch of {batch} cannot be shared by {world_size} processes",
            fix=f"choose a multiple of {world_size}",
        )
    if packing and padded:
        raise UsageError("packed rows have no padding", fix="choose either packing or padding")
    if packing and rows.paired:
        raise UsageError("pairs are not packed", why="a step is a number of pairs", fix="leave out packing")
    if rows.longest > max_len:
        raise UsageError(
            f"a row has {rows.longest} tokens, more than max_len {max_len}",
            fix="open the rows with the same max_len",
        )


def epoch_order(rows: Rows, seed: int, epoch: int) -> NDArray[np.int64]:
    """The numbers of the rows that an epoch sees, in its order: int64[n].

    Each source is an endless stream of passes, each pass in an order of its own; an epoch takes the next
    size * weight rows of it. So every row comes once before any comes again, whatever the weight. The streams are
    then shuffled together.
    """
    streams: list[NDArray[np.int64]] = []
    first = 0
    for number, (part, size) in enumerate(zip(rows.parts, rows.sizes, strict=True)):
        begin, end = (math.floor(part.weight * size * count) for count in (epoch, epoch + 1))
        streams.append(first + _stream(size, begin, end, seed, number))
        first += size
    joined = np.concatenate(streams)
    if not len(joined):
        raise UsageError(
            f"epoch {epoch} sees no row",
            why="the weights are too small for so few rows",
            fix="raise the weights",
        )
    return joined[shuffled(len(joined), seed, "epoch", epoch)]


def _stream(size: int, begin: int, end: int, seed: int, number: int) -> NDArray[np.int64]:
    """The positions from `begin` to `end` of a source's stream."""
    passes = range(begin // size, math.ceil(end / size))
    found = [shuffled(size, seed, "source", number, each) for each in passes]
    if not found:
        return np.zeros(0, np.int64)
    return np.concatenate(found)[begin - passes[0] * size : end - passes[0] * size]


def _packs(
    rows: Rows, order: NDArray[np.int64], max_len: int, key: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The epoch's packs, window after window, and shuffled: packs of long rows come first in each window otherwise."""
    packs: list[NDArray[np.int64]] = []
    for at in range(0, len(order), WINDOW):
        window = order[at : at + WINDOW]
        packs += [window[pack] for pack in best_fit(rows.lengths[window].tolist(), max_len)]
    packs = [packs[i] for i in shuffled(len(packs), *key, "packs").tolist()]
    sizes = [len(pack) for pack in packs]
    return np.concatenate(packs), np.cumsum([0, *sizes])


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of at most `capacity`, as positions in `lengths`: best fit, the longest first (Johnson et al. 1974).

    At most 11/9 of the fewest possible bins, plus one. A row goes to the fullest bin that has room for it; the bins
    are found by their free room, as bits of one number.
    """
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a bin has r free
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[position]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            rooms ^= 0 if by_room[room] else 1 << room
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(position)
        by_room[room - length].append(chosen)
        rooms |= 1 << (room - length)
    return bins
