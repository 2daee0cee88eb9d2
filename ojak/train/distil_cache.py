"""A teacher's predictions on disk: of each learnt token the most likely continuations, and the mass of all others.

    DIR/shards/000-00000.safetensors    consecutive rows of a source (the first number), each file whole by itself
    DIR/manifest.json                   an artifact without records (kind "distil-cache"): settings, hashes; comes last

A shard says in its own header what it is of: teacher, vocabulary, template and masks, k, temperature, dtype, and which
rows. Its tensors, for n learnt tokens of r rows, in the order of the rows:

    indices    uint16 or int32 [n, k]    tokens, the most likely first
    log_probs  float16 or float32 [n, k] log p(token)
    tail       likewise [n]              log of the mass of all other tokens; -inf where there are none
    ends       int64 [r]                 how many learnt tokens the rows up to this one have
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ojak.artifact import Artifact
from ojak.errors import InputRefused, VerificationFailed
from ojak.model.files import cached_sha256
from ojak.records import dump_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.model.tokenizer import Tokenizer

KIND, SHARDS, VERSION = "distil-cache", "shards", 1
TENSORS = ("indices", "log_probs", "tail", "ends")
PLACE = ("source", "store", "first", "rows")  # what a shard's header says beside that of all shards
SHORT = 1 << 16  # tokens that a uint16 tells apart
DTYPES = {"float16": np.float16, "float32": np.float32}


def vocabulary_sha256(tokenizer: Tokenizer) -> str:
    """A hash of which id stands for which token: what a teacher's and a student's predictions must agree in."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    digest = hashlib.sha256()
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        digest.update(f"{number}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def is_cache(path: str) -> bool:
    """Whether there is a cache at `path`; a model that is named, or lies there, is none."""
    try:
        manifest = json.loads((Path(path).expanduser() / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


# ----------------------------------------------------------------------------------------------------------- one shard


@dataclass(frozen=True, slots=True)
class Predictions:
    """indices int64[n, k], log_probs float32[n, k] (the most likely first), tail float32[n], all on the CPU."""

    indices_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor


def shard_bytes(header: Mapping[str, Any], found: Predictions, ends: NDArray[np.int64]) -> bytes:
    """The content of a shard; the same predictions give the same bytes."""
    from safetensors.numpy import save

    number = np.uint16 if header["vocab_size"] <= SHORT else np.int32
    kind = DTYPES[header["dtype"]]
    tensors = {
        "indices": found.indices_NK.numpy().astype(number),
        "log_probs": found.log_probs_NK.numpy().astype(kind),
        "tail": found.tail_N.numpy().astype(kind),
        "ends": ends,
    }
    text = dump_json(dict(header))  # one entry, as the order of several is left to chance
    return save(tensors, {"ojak": text})


class Shard:
    """A shard that is read row by row. Raises VerificationFailed where the file is not what a shard is."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(path, framework="np")
            self.header: dict[str, Any] = json.loads((self._file.metadata() or {})["ojak"])
            self.ends: NDArray[np.int64] = self._file.get_tensor("ends")
            self._check()
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise VerificationFailed(f"{path} is no sound shard of a cache", why=str(error)[:200]) from error

    def _check(self) -> None:
        if not isinstance(self.header["store"], str) or type(self.header["first"]) is not int:
            raise ValueError("the header does not say which rows it is of")
        count, k = int(self.ends[-1]), int(self.header["top_k"])
        shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in TENSORS}
        wanted = {"indices": (count, k), "log_probs": (count, k), "tail": (count,)}
        wanted["ends"] = (int(self.header["rows"]),)
        if shapes != wanted or (np.diff(self.ends, prepend=0) < 0).any():
            raise ValueError(f"tensors of shapes {shapes} in the place of {wanted}")

    @property
    def tails(self) -> NDArray[Any]:
        """The tail of every learnt token."""
        return self._file.get_tensor("tail")

    def row(self, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(indices, log_probs, tail) of a row of the shard, from 0."""
        begin, end = int(self.ends[number - 1]) if number else 0, int(self.ends[number])
        indices, log_probs, tail = (self._file.get_slice(name)[begin:end] for name in TENSORS[:3])
        return indices, log_probs, tail


# ------------------------------------------------------------------------------------------------------ the whole of it


@dataclass(frozen=True)
class Cache:
    """An opened cache. `header`: what all its shards say alike. `shards`: by the store whose rows they are of."""

    path: Path
    header: Mapping[str, Any]
    shards: Mapping[str, Sequence[Shard]]

    @classmethod
    def open(cls, path: Path | str) -> Cache:
        """The cache in a folder, every file's hash checked.

        Raises InputRefused where there is none, or a newer ojak made it, VerificationFailed where it is damaged.
        """
        artifact = Artifact.open(Path(path).expanduser())
        if artifact.kind != KIND:
            raise InputRefused(f"{path} is no cache of a teacher", why=f"it is of kind {artifact.kind!r}")
        header, listed = artifact.stats.get("header"), artifact.stats.get("shards")
        if not isinstance(header, dict) or not isinstance(listed, list):
            raise VerificationFailed(f"{artifact.path / 'manifest.json'} is damaged")
        if header.get("version") != VERSION:
            raise InputRefused(f"{path} was made by another version of ojak", fix="make the cache anew")
        found: dict[str, list[Shard]] = {}
        for shard in (_opened(artifact.path, entry) for entry in listed):
            if common(shard.header) != header:
                raise VerificationFailed(f"{shard.path} is of another cache", why="its header says so")
            found.setdefault(shard.header["store"], []).append(shard)
        for store, shards in found.items():
            ends = [shard.header["first"] + shard.header["rows"] for shard in shards]
            if [shard.header["first"] for shard in shards] != [0, *ends[:-1]]:
                raise VerificationFailed(f"{path} lacks rows", why=f"of the store {store[:64]}")
        return cls(artifact.path, header, found)

    def rows(self, store: str) -> int:
        """How many rows of a token store it holds: all of them, or none."""
        return sum(shard.header["rows"] for shard in self.shards.get(store, ()))

    @cached_property
    def _starts(self) -> dict[str, NDArray[np.int64]]:
        return {
            store: np.array([shard.header["first"] for shard in shards])
            for store, shards in self.shards.items()
        }

    def row(self, store: str, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(indices, log_probs, tail) of a row of a token store."""
        place = int(np.searchsorted(self._starts[store], number, side="right")) - 1
        shard = self.shards[store][place]
        return shard.row(number - int(shard.header["first"]))

    def predictions(self, places: Sequence[tuple[str, int]], top_k: int | None = None) -> Predictions:
        """What the teacher predicts at the learnt tokens of some rows (store, number), one after the other.

        The mass of each place is 1 again, as rounding had changed it. top_k: fewer than the cache holds.
        """
        rows = [self.row(*place) for place in places]
        if not rows:
            k = int(self.header["top_k"])
            return Predictions(torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k), torch.zeros(0))
        indices, log_probs, tail = (np.concatenate(column) for column in zip(*rows, strict=True))
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.header["vocab_size"]:
            raise VerificationFailed(f"{self.path} predicts tokens that are none", fix="make the cache anew")
        numbers = torch.from_numpy(indices.astype(np.int64))
        logs, rest = (torch.from_numpy(values.astype(np.float32)) for values in (log_probs, tail))
        if top_k is not None and top_k < logs.shape[1]:
            rest = torch.logaddexp(rest, logs[:, top_k:].logsumexp(-1))
            numbers, logs = numbers[:, :top_k], logs[:, :top_k]
        mass = torch.logaddexp(rest, logs.logsumexp(-1))
        return Predictions(numbers, logs - mass[:, None], rest - mass)


def common(header: Mapping[str, Any]) -> dict[str, Any]:
    """What the headers of all shards of a cache say alike."""
    return {name: value for name, value in header.items() if name not in PLACE}


def _opened(folder: Path, entry: Mapping[str, Any]) -> Shard:
    """A shard that the manifest lists, in the folder of shards, its hash the manifest's."""
    name = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise VerificationFailed(f"{folder / 'manifest.json'} is damaged", why=f"a shard named {name!r:.80}")
    path = folder / SHARDS / name
    if path.is_symlink() or not path.is_file():
        raise VerificationFailed(f"{path} is missing", why="the manifest lists it")
    if cached_sha256(path) != entry.get("sha256"):
        raise VerificationFailed(f"{path} has changed", why="its SHA-256 is not the manifest's")
    return Shard(path)
