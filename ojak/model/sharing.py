"""Whether a row gets the same bits whatever prefixes lie in the shared pool: the part of the start-up check for them.

A row attends over the pool's every entry, those of other rows' prefixes masked. So its bits may depend on how long the
pool is and where its own prefix lies, unless the products and sums over it come out the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.model.cache import LENGTH_STEP, DecodeAttend, Piece, PrefillAttend, SlotCache

PREFIX = 20  # tokens of the probed prefix
PIECE = 10  # prompt tokens that follow it
# Pool entries before and after it
PLACES = ((0, 0), (LENGTH_STEP, 0), (0, LENGTH_STEP), (3 * LENGTH_STEP, LENGTH_STEP), (8 * LENGTH_STEP, 0))


@torch.inference_mode()
def sharing_agrees(cache: SlotCache, layer: int, filled: int, sizes: Iterable[int]) -> bool:
    """Attends in one layer over several pools, at each size and in prefill tiles, and compares the bits.

    The layer's slots hold `filled` random entries; the pool is empty before and after. False where it has no room.
    """
    if cache.shape.prefix_capacity < 2 * LENGTH_STEP or filled + PIECE > cache.shape.capacity:
        return False
    probe = _Sharing(cache, layer, filled)
    try:
        return probe.decodes_agree(sizes) and probe.prefills_agree()
    finally:
        probe.empty()


class _Sharing:
    def __init__(self, cache: SlotCache, layer: int, filled: int) -> None:
        self.cache, self.layer, self.filled = cache, layer, filled
        self.random = torch.Generator().manual_seed(2)
        config, room = cache.config, cache.shape.prefix_capacity
        self.kv_KPE = [self._some(config.num_key_value_heads, PREFIX, config.head_dim) for _ in range(2)]
        longest = (max(0, room // LENGTH_STEP - 1) * LENGTH_STEP, 0)
        self.places = [place for place in (*PLACES, longest) if sum(place) + LENGTH_STEP <= room]

    def _some(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random).to(self.cache.k[self.layer])

    def _tokens(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a flat list of tokens."""
        config = self.cache.config
        heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        q, k, v = (self._some(1, count, each, config.head_dim) for each in heads)
        return q, k, v

    def _fill(self, before: int, after: int) -> tuple[int, int]:
        """Puts the prefix into the pool between random entries; its span."""
        K, E = self.cache.config.num_key_value_heads, self.cache.config.head_dim
        pools = self.cache.prefix_k, self.cache.prefix_v
        for pool, own in zip(pools, self.kv_KPE, strict=True):
            padded = F.pad(own, (0, 0, 0, -PREFIX % LENGTH_STEP))
            pool[self.layer] = torch.cat([self._some(K, before, E), padded, self._some(K, after, E)], 1)
        self.cache.prefix_used = self.cache.prefix_k[self.layer].shape[1]
        return before, before + PREFIX

    def empty(self) -> None:
        """Leaves the pool as it was."""
        for pool in (self.cache.prefix_k, self.cache.prefix_v):
            pool[self.layer] = pool[self.layer][:, :0]
        self.cache.prefix_used = 0

    def decodes_agree(self, sizes: Iterable[int]) -> bool:
        """One token of each slot, every second row with the prefix, the others without."""
        slots = self.cache.shape.slots
        q, k, v = self._tokens(slots)
        self.empty()
        plain = self._decode(q, k, v, slots, (0, 0))
        wanted = None
        for place in self.places:
            span = self._fill(*place)
            full = self._decode(q, k, v, slots, span)
            wanted = full if wanted is None else wanted
            if not (torch.equal(full, wanted) and torch.equal(full[1::2], plain[1::2])):
                return False
            if not all(torch.equal(self._decode(q, k, v, n, span), full[:n]) for n in sizes):
                return False
        return True

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, rows: int, span: tuple[int, int]) -> Tensor:
        own = torch.full((rows,), self.filled, device=q.device)
        spans = torch.tensor([(0, 0) if row % 2 else span for row in range(rows)], device=q.device)
        attend = DecodeAttend(self.cache, own, spans)
        return attend(self.layer, q[:, :rows], k[:, :rows], v[:, :rows])[0]

    def prefills_agree(self) -> bool:
        """A piece of a prompt after the prefix, alone and beside a longer one that has none."""
        other = min(2 * PIECE, self.cache.shape.capacity)
        q, k, v = self._tokens(PIECE + other)
        wanted = None
        for place in self.places:
            pieces = [Piece((0,) * PIECE, 0, self.filled, self._fill(*place))]
            for count in (PIECE, PIECE + other) if self.cache.shape.slots > 1 else (PIECE,):
                beside = [Piece((0,) * other, 1, 0, (0, 0))] if count > PIECE else []
                attend = PrefillAttend(self.cache, pieces + beside)
                got = attend(self.layer, q[:, :count], k[:, :count], v[:, :count])[0, :PIECE]
                wanted = got if wanted is None else wanted
                if not torch.equal(got, wanted):
                    return False
        return True
