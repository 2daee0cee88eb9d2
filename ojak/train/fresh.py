"""The model that a run begins with: one that is found as everywhere, or a configuration with weights drawn by the seed.

A folder with `config.json` and `tokenizer.json` but no weights, or the path of its `config.json`, is a model to be
trained from nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ojak.errors import UsageError
from ojak.model import checkpoint
from ojak.model.config import config_from_hf
from ojak.model.decoder import Decoder
from ojak.model.files import combined_sha256
from ojak.model.load import read_source
from ojak.model.source import Source
from ojak.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ojak.train.config import TrainConfig

SPREAD = 0.02  # of the weights, where the configuration names no initializer_range
RESIDUAL = ("o_proj.weight", "down_proj.weight")


def starting_source(config: TrainConfig, notify: Callable[[str], None]) -> Source:
    """The files of the model that a run begins with. Raises as `load_model` does."""
    folder = _without_weights(Path(config.model).expanduser())
    if folder is not None:
        if config.lora:
            raise UsageError(
                f"{config.model} has no weights that an adapter could belong to",
                why="those of a run from nothing are drawn in memory, and are in no file afterwards",
                fix="leave out --lora",
            )
        return _fresh(folder, config.seed)
    return read_source(config.model, accept_license=config.accept_license, notify=notify)


def drawn_by(config: TrainConfig) -> int | None:
    """The seed that the weights are drawn by, where the model that a run begins with has none."""
    return None if _without_weights(Path(config.model).expanduser()) is None else config.seed


def _without_weights(path: Path) -> Path | None:
    """The folder of a model that has a configuration and a tokenizer, but no weights of any kind; None otherwise."""
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
        return None
    weights = (".safetensors", ".safetensors.index.json", *checkpoint.PICKLES)
    return None if any(item.name.endswith(weights) for item in folder.iterdir()) else folder


def _fresh(folder: Path, seed: int) -> Source:
    fields = checkpoint.read_config(folder)
    tokenizer = Tokenizer.from_folder(folder, fields)
    files = [folder / name for name in checkpoint.HASHED if (folder / name).is_file()]
    return Source(
        name=folder.absolute().name,
        path=folder,
        config=fields,
        tensors=lambda: drawn_weights(fields, seed),
        tokenizer=tokenizer,
        chat_template=checkpoint.read_chat_template(folder),
        stop_ids=checkpoint.read_stop_ids(folder, fields, tokenizer),
        sha256=combined_sha256(files, folder),
        quantization=None,
        license=None,
    )


def drawn_weights(fields: Mapping[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, float32 weight) of an untrained model; each follows from the seed and its name alone.

    Matrices are normal, those that add to the residual stream narrower by sqrt(2 layers) (GPT-2, section 2.3); norms
    change nothing, biases are zero.
    """
    config = config_from_hf(fields)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(config).named_parameters()}
    given = fields.get("initializer_range")
    spread = float(given) if isinstance(given, float) and 0 < given < 1 else SPREAD
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, torch.full(shape, 0.0 if name.endswith("bias") else 1.0 - config.norm_offset)
            continue
        narrow = (2 * config.num_hidden_layers) ** -0.5 if name.endswith(RESIDUAL) else 1.0
        digest = hashlib.sha256(f"weights\0{seed}\0{name}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield name, torch.randn(shape, generator=random) * (spread * narrow)
