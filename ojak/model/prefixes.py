"""The prefixes that rows of a lane share: each is computed once into the cache's pool and lies there while used."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ojak.model.cache import PrefixAttend, SlotCache, padded_length
from ojak.model.decoder import Decoder

Ids = tuple[int, ...]


class PrefixPool:
    """Prefixes by their token ids. `spans` says where in the cache's pool each lies; the empty one lies nowhere.

    Whether a prefix is shared depends on the prefix alone, never on what else the pool holds: a row without it would
    sum in another order.
    """

    def __init__(self, decoder: Decoder, cache: SlotCache) -> None:
        self.decoder, self.cache = decoder, cache
        self.spans: dict[Ids, tuple[int, int]] = {(): (0, 0)}
        self.unsound: set[Ids] = set()  # prefixes whose keys or values are not all numbers

    def can_hold(self, prefix: Ids) -> bool:
        """Whether an empty pool would have room for it, as far as is known."""
        return padded_length(len(prefix)) <= self.cache.shape.prefix_capacity and prefix not in self.unsound

    def add(self, prefix: Ids, in_use: Iterable[Ids]) -> bool:
        """Computes a prefix unless it is there, if need be in place of those not in use; False without room.

        One that is not all numbers is left out and no longer held: masked, a NaN would still reach every row.
        """
        if prefix in self.spans:
            return True
        if not self._make_room(padded_length(len(prefix)), {*in_use, ()}):
            return False
        self.spans[prefix] = self._compute(prefix)
        if not self._is_sound(prefix):
            self.unsound.add(prefix)
            self._keep([ids for ids in self.spans if ids != prefix])
        return True

    def _is_sound(self, prefix: Ids) -> bool:
        begin, end = self.spans[prefix]
        pools = (*self.cache.prefix_k, *self.cache.prefix_v)
        return all(bool(pool[:, begin:end].isfinite().all()) for pool in pools)

    def _make_room(self, wanted: int, in_use: set[Ids]) -> bool:
        room = self.cache.shape.prefix_capacity
        if self.cache.prefix_used + wanted <= room:
            return True
        kept = [prefix for prefix in self.spans if prefix in in_use]
        if sum(padded_length(len(prefix)) for prefix in kept) + wanted > room:
            return False
        self._keep(kept)
        return True

    def _keep(self, kept: list[Ids]) -> None:
        """Leaves these prefixes alone in the pool, close together."""
        places = self.cache.keep_prefixes([self.spans[prefix] for prefix in kept])
        self.spans = dict(zip(kept, places, strict=True))

    def _compute(self, prefix: Ids) -> tuple[int, int]:
        attend = PrefixAttend(self.cache, len(prefix))
        ids_BT = torch.tensor([prefix], device=self.cache.device)
        self.decoder.hidden(ids_BT, torch.arange(len(prefix), device=self.cache.device)[None], attend)
        self.cache.prefix_used = self.cache.prefix_k[0].shape[1]
        return attend.begin, attend.end
