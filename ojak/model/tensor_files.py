"""Safetensors files written one tensor at a time, and read by rows.

The library's own writer wants the bytes of all tensors at once: a second copy of a model, or of the states of a run.
The form is its: eight bytes with the length of the header, the header (JSON), the tensors one after the other without
holes (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ojak.errors import VerificationFailed

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8

Form: TypeAlias = tuple[str, tuple[int, ...]]  # a tensor's dtype, by its name in safetensors, and its shape


def form_of(tensor: Tensor) -> Form:
    """The form of a tensor of floats."""
    return DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)


def in_order(forms: Mapping[str, Form]) -> list[str]:
    """The names in the order in which a file holds them: wide numbers first, so that each starts where it may."""
    return sorted(forms, key=lambda name: (-DTYPES[forms[name][0]].itemsize, name))


def write_tensors(path: Path, forms: Mapping[str, Form], tensors: Iterable[Tensor]) -> str:
    """Write a new file, durable when this returns (but for its name), and give its SHA-256.

    `tensors` come in the order of `in_order(forms)`, each whole or in pieces one after the other; each is let go before
    the next is asked for.
    """
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for chunk in itertools.chain([_header(forms)], map(_bytes, tensors)):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _header(forms: Mapping[str, Form]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in in_order(forms):
        dtype, shape = forms[name]
        end = at + bytes_of(forms[name])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def bytes_of(form: Form) -> int:
    """How many bytes the tensor takes."""
    return math.prod(form[1]) * DTYPES[form[0]].itemsize


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_rows(path: Path, name: str, first: int, end: int) -> Tensor:
    """Rows `first` to `end` of a tensor of a checked file. Raises VerificationFailed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name)[first:end]
    except SafetensorError as error:
        raise VerificationFailed(f"{path} cannot be read", why=str(error)[:200]) from error
