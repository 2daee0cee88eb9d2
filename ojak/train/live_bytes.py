"""How much memory a piece of training takes, counted tensor by tensor on a CPU, asked of the allocator on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counted(TorchDispatchMode):
    """Counts the bytes of the tensors that are made under it for as long as something holds them.

    A view of a tensor, or the tensor itself changed in place, is nothing new.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in given and storage._cdata not in self._known:
                self._note(storage)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        self._known.add(place)
        self.now += storage.nbytes()
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, storage.nbytes())
        weakref.finalize(storage, self._gone, place, storage.nbytes())

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Peaks:
    """The most bytes held in each stretch of a computation, beyond those held at its beginning.

    A context manager; `mark` ends a stretch. `found` has the peaks of the stretches in their order.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._counted = _Counted()
        self._begin = 0
        self.found: list[int] = []

    def __enter__(self) -> Peaks:
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
            self._begin = torch.cuda.memory_allocated(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mark()
        self._mode.__exit__(*error)

    @property
    def _mode(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._cuda else self._counted

    @property
    def largest(self) -> int:
        """The largest tensor that was made; 0 on a GPU."""
        return self._counted.largest

    def mark(self) -> None:
        """The end of a stretch, and the beginning of the next."""
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
            self.found.append(torch.cuda.max_memory_allocated(self._cuda) - self._begin)
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            self.found.append(self._counted.peak)
            self._counted.peak = self._counted.now
