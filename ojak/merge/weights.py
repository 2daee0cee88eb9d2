"""A model's weights as they lie in files, read a block at a time: no tensor need fit the memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ojak.errors import InputRefused
from ojak.model import checkpoint
from ojak.model.tensor_files import DTYPES, Form, form_of

BLOCK = 1 << 18  # entries read at once: of a few models they stay in a core's own cache
LENGTH_BYTES = 8  # of a safetensors file: the length of its header


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: its file, the byte where it begins, its form."""

    path: Path
    offset: int
    form: Form

    @property
    def entries(self) -> int:
        return math.prod(self.form[1])


def places_in(files: Iterable[Path], config: Mapping[str, Any]) -> dict[str, Place]:
    """The tensors of a model in safetensors files, under their names in the text model; a tied head is none of them.

    Raises InputRefused for unsound files, and for a name that two of them hold.
    """
    found: dict[str, Place] = {}
    for path in files:
        header = checkpoint.check_safetensors(path)
        _check_by_library(path)
        with path.open("rb") as file:
            start = LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little")
        for stored, entry in header.items():
            name = checkpoint.text_name(stored, config)
            if name in found:
                raise InputRefused(f"{path.parent} holds the weight {name[:200]!r} twice")
            if name is not None:
                form = (entry["dtype"], tuple(entry["shape"]))
                found[name] = Place(path, start + entry["data_offsets"][0], form)
    return found


def _check_by_library(path: Path) -> None:
    """What safetensors itself refuses: holes and overlaps between tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise InputRefused(f"{path} is not a sound safetensors file", why=str(error)[:200]) from error


def spool(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Place]:
    """Writes tensors one after the other into a new file that serves as long as a merge: where each one lies."""
    found: dict[str, Place] = {}
    with path.open("xb") as file:
        for name, tensor in tensors:
            whole = tensor.detach().contiguous()
            found[name] = Place(path, file.tell(), form_of(whole))
            file.write(whole.reshape(-1).view(torch.uint8).numpy().data)
    return found


class Weights(AbstractContextManager["Weights"]):
    """The tensors of one model. Blocks may be read from several threads at once."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places
        self._files: dict[Path, int] = {}

    def __enter__(self) -> Self:
        for place in self.places.values():
            if place.path not in self._files:
                self._files[place.path] = os.open(place.path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:  # each handle once: its number may be another file's by a second time
            with suppress(OSError):
                os.close(self._files.popitem()[1])

    def read(self, name: str, start: int, count: int) -> Tensor:
        """Entries `start` to `start + count` of the flattened tensor, float32, for the caller to change.

        Raises InputRefused where the file has become shorter.
        """
        place = self.places[name]
        block = torch.empty(count, dtype=DTYPES[place.form[0]])
        left = block.view(torch.uint8).numpy().data
        at = place.offset + start * block.itemsize
        while len(left):
            got = os.preadv(self._files[place.path], [left], at)
            if not got:
                raise InputRefused(f"{place.path} ends inside the weight {name[:200]!r}")
            left, at = left[got:], at + got
        return block.float()


def blocks(entries: int) -> Iterator[tuple[int, int]]:
    """(start, count) of the blocks of a tensor with so many entries."""
    for start in range(0, entries, BLOCK):
        yield start, min(BLOCK, entries - start)
