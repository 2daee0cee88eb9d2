"""Models to merge, what lies in a folder of weights, and every method written out in numpy and float64."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from ojak.merge.config import MergeConfig
from ojak.merge.run import MergeResult, merge_models

Floats = NDArray[np.float64]
Tensors = dict[str, Floats]
MODELS = ("a", "b", "c")


def make_family(folder: Path, family: str = "gemma3", dtype: torch.dtype = torch.float32) -> Path:
    base = tiny.model(family, seed=0, dtype=dtype)
    base.save(folder / "base")
    for number, name in enumerate(MODELS, 1):
        move = tiny.decoder(family, seed=number)
        made = tiny.decoder(family, seed=0)
        for one, other in zip(made.parameters(), move.parameters(), strict=True):
            one.add_(other, alpha=0.1 * number)
        dataclasses.replace(base, decoder=made.to(dtype), config=made.config).save(folder / name)
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the folder, by name."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def exact(folder: Path) -> Tensors:
    return {name: tensor.double().numpy() for name, tensor in read(folder).items()}


def merge(family: Path, out: Path, method: str, names: str = "ab", **settings: Any) -> MergeResult:
    """A merge of models of the family, by their letters, from its base unless `base` says otherwise."""
    asked = {"base": str(family / "base"), **settings}
    models = tuple(str(family / name) for name in names)
    return merge_models(MergeConfig(models=models, method=method, out=out, **asked))  # type: ignore[arg-type]


def group(name: str) -> str:
    """The layer of a tensor, or the tensor."""
    parts = name.split(".")
    return ".".join(parts[:3]) if "layers" in parts else name


def arc(one: Tensors, other: Tensors, share: float) -> Tensors:
    """SLERP from one set of task vectors to another, layer by layer: WARP, equation 4, each layer as one long vector."""
    found: Tensors = {}
    for layer in {group(name) for name in one}:
        names = sorted(name for name in one if group(name) == layer)
        u, v = (np.concatenate([each[name].ravel() for name in names]) for each in (one, other))
        angle = math.acos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))
        mixed = (math.sin((1 - share) * angle) * u + math.sin(share * angle) * v) / math.sin(angle)
        for name in names:
            size = one[name].size
            found[name], mixed = mixed[:size].reshape(one[name].shape), mixed[size:]
    return found


def minus(one: Tensors, other: Tensors) -> Tensors:
    return {name: one[name] - other[name] for name in one}


def ties_of(deltas: list[Floats], weights: list[float], density: float) -> Floats:
    """TIES on one tensor, entry by entry."""
    kept = []
    for delta in deltas:
        order = np.sort(np.abs(delta), axis=None)[::-1]
        cut = order[max(1, int(density * delta.size)) - 1]
        kept.append(np.where(np.abs(delta) >= cut, delta, 0.0))
    found = np.zeros_like(deltas[0])
    for place in np.ndindex(found.shape):
        entries = [(w * k[place], w) for k, w in zip(kept, weights, strict=True)]
        sign = 1 if sum(value for value, _ in entries) >= 0 else -1
        agreeing = [(value, w) for value, w in entries if value * sign > 0]
        if agreeing:
            found[place] = sum(value for value, _ in agreeing) / sum(w for _, w in agreeing)
    return found


def close(one: Tensors, other: Tensors, tolerance: float = 2e-6) -> None:
    """Equal within `tolerance` of the largest entry of each tensor."""
    assert one.keys() == other.keys()
    for name in one:
        worst = np.abs(one[name] - other[name]).max()
        assert worst <= tolerance * max(1.0, np.abs(other[name]).max()), (name, worst)
