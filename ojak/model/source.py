"""A model as it lies on disk, read but not yet built: the common form of a GGUF file and a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ojak.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Source:
    """What a decoder is built from.

    name: the model's own name, for people. path: the file or folder it was read from.
    config: the fields of a Hugging Face `config.json` (`rope_theta`, `rope_scaling`, `rope_local_base_freq`
    as flat fields, whichever form the file used).
    tensors: opens the weights anew at each call and yields (Hugging Face name, tensor on the CPU); tensors stored
    as F32, F16 or BF16 keep their dtype, quantised ones arrive as float32. A tied `lm_head.weight` is not yielded.
    stop_ids: ids that end a turn or a text. sha256: of the file; of a folder, over all files read.
    quantization: the most used quantised type ("Q4_1"), or None. license: an identifier, or None where unknown.
    adapters: folders of adapters to be merged into the weights, in this order.
    """

    name: str
    path: Path
    config: dict[str, Any]
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    tokenizer: Tokenizer
    chat_template: str | None
    stop_ids: tuple[int, ...]
    sha256: str
    quantization: str | None
    license: str | None
    adapters: tuple[Path, ...] = ()
