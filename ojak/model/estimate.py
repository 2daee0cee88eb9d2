"""How fast a model could run here, found without loading it: its size from its configuration, the machine's rate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ojak.model.config import config_from_hf
from ojak.model.decoder import Decoder
from ojak.model.load import default_dtype
from ojak.model.memory import available_bytes

ROWS, WIDTH = 256, 2048  # of the product that is timed: a batch of 256 rows
MEASURE_S = 0.3
EFFICIENCY = 0.35  # of the machine's matrix rate, reached by decoding on two cores


@dataclass(frozen=True, slots=True)
class Machine:
    """`device` and `dtype` that a model would be loaded to; `free_bytes` of that device's memory."""

    device: str
    dtype: str
    free_bytes: int


def machine() -> Machine:
    """What `load_model` would choose."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine(str(device), str(default_dtype(device)).removeprefix("torch."), available_bytes(device))


def parameters(config: Mapping[str, Any]) -> tuple[int, int]:
    """(all weights, those that each token is multiplied with) of a Hugging Face configuration.

    Raises InputRefused for a family or a value that is not supported.
    """
    read = config_from_hf(config)
    with torch.device("meta"):
        return parameters_of(Decoder(read))


def parameters_of(decoder: Decoder) -> tuple[int, int]:
    """The same of a decoder."""
    every = sum(weight.numel() for weight in decoder.parameters())
    embedding = decoder.model.embed_tokens.weight.numel()
    tied = decoder.lm_head.weight is decoder.model.embed_tokens.weight
    if decoder.config.tie_word_embeddings:
        every -= 0 if tied else embedding
        return every, every
    return every, every - embedding


def matrix_rate(seconds: float = MEASURE_S) -> float:
    """Floating point operations a second of a product as large as decoding does, in the dtype that would be used.

    Takes about `seconds` and a few MiB. The best of the repetitions counts: others share the machine.
    """
    found = machine()
    dtype = getattr(torch, found.dtype)
    x_NK = torch.ones(ROWS, WIDTH, dtype=dtype, device=found.device)
    weight_MK = torch.ones(WIDTH, WIDTH, dtype=dtype, device=found.device)
    best, end = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        while best == float("inf") or time.perf_counter() < end:
            begin = time.perf_counter()
            product = F.linear(x_NK, weight_MK)
            _ = product[0, 0].item()  # waits for a GPU
            best = min(best, time.perf_counter() - begin)
    return 2 * ROWS * WIDTH * WIDTH / best


def token_rate(multiplied: int, flops: float) -> float:
    """Tokens a second that a model may be expected to read and write with `flops` (`matrix_rate`)."""
    return flops * EFFICIENCY / (2 * multiplied)
