"""States of a training run of a few numbers, and forged checkpoints of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ojak._files import sha256_file
from ojak.train.checkpoint_form import MANIFEST, STATE, Entry, Manifest, encoded
from ojak.train.checkpoints import TrainState, save_checkpoint

CONFIG = {"lr": 1e-3, "optimizer": {"name": "adamw"}, "data": ("a.json",)}
SHAPES = {
    "model.embed_tokens.weight": (11, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
}


def state(step: int, **changes: Any) -> TrainState:
    """A state whose numbers depend on the step: bfloat16 weights, float32 masters, two moments, averaged weights."""
    random = torch.Generator().manual_seed(step)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in SHAPES.items():
        master = torch.randn(shape, generator=random)
        tensors |= {name: master.bfloat16(), f"master.{name}": master, f"ema.{name}": master * 0.9}
        tensors[f"optimizer.{name}.exp_avg"] = torch.randn(shape, generator=random)
        tensors[f"optimizer.{name}.exp_avg_sq"] = torch.rand(shape, generator=random).bfloat16()
    values: dict[str, Any] = {
        "step": step, "epoch": step // 100, "step_in_epoch": step % 100, "tokens": step * 470,
        "supervised_tokens": step * 100, "seconds": step * 1.5, "config": dict(CONFIG), "rows_sha256": "r" * 64,
        "tensors": tensors, "extra": {"best": 1.25},
    }  # fmt: skip
    return TrainState(**{**values, **changes})


def company(folder: Path) -> None:
    """The small files of a model."""
    (folder / "config.json").write_text("{}", "utf-8")


def save(folder: Path, *numbers: int, **options: Any) -> None:
    for step in numbers:
        save_checkpoint(folder, state(step), company=company, **options)


def same(found: TrainState | None, wanted: TrainState) -> bool:
    """Bit for bit, and all that is beside the tensors."""
    if found is None or found.tensors.keys() != wanted.tensors.keys():
        return False
    pairs = [(found.tensors[name], tensor) for name, tensor in wanted.tensors.items()]
    equal = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    rest = [
        {name: getattr(item, name) for name in TrainState.__slots__ if name not in ("tensors", "config")}
        for item in (found, wanted)
    ]
    return equal and rest[0] == rest[1]


def resign(place: Path) -> None:
    """Make the manifest fit what the folder holds now: what someone who wants to be believed would do."""
    raw = json.loads((place / MANIFEST).read_bytes())
    entries = []
    for path in sorted(place.iterdir()):
        if path.name != MANIFEST:
            entries.append(Entry(path=path.name, bytes=path.stat().st_size, sha256=sha256_file(path)))
    fields = {name: raw[name] for name in ("schema_version", "kind", "created", "ojak_version")}
    (place / MANIFEST).write_bytes(encoded(Manifest(**fields, files=tuple(entries)).signed()))


def forge_state(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change state.json, and make the manifest fit."""
    raw = json.loads((place / STATE).read_bytes())
    change(raw)
    (place / STATE).write_text(json.dumps(raw), "utf-8")
    resign(place)


def forge_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a tensor file, and make the manifest fit."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    resign(path.parent)
