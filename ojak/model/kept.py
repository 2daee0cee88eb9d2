"""Contexts that finished requests leave behind for requests that begin with the same text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock

from torch import Tensor


@dataclass
class Kept:
    """The ids of a finished request after its shared prefix, and their keys and values in each layer."""

    prefix: tuple[int, ...]
    ids: list[int]
    entries: list[tuple[Tensor, Tensor]]


class KeptContexts:
    """At most `room` tokens of kept contexts, shared by all lanes; the oldest give way. Taken out when used."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._lock = Lock()

    def take(self, key: Hashable) -> Kept | None:
        with self._lock:
            kept = self._kept.pop(key, None)
            self.used -= len(kept.ids) if kept else 0
            return kept

    def put(self, key: Hashable, kept: Kept) -> None:
        self.take(key)
        with self._lock:
            self._kept[key] = kept
            self.used += len(kept.ids)
            while self.used > self.room:
                _, oldest = self._kept.popitem(last=False)
                self.used -= len(oldest.ids)
