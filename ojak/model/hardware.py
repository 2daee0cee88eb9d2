"""What the machine offers to a model, in plain values: for `ojak doctor`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ojak.model.load import default_dtype
from ojak.model.memory import available_bytes


@dataclass(frozen=True, slots=True)
class Hardware:
    """`cpu_dtype`: what the decoder computes in on the CPU. `gpu`: its name, or None. Memory is in bytes."""

    torch_version: str
    threads: int
    cpu_dtype: str
    free_ram: int
    gpu: str | None = None
    free_vram: int = 0
    vram: int = 0


def look() -> Hardware:
    """The machine as torch sees it."""
    cpu = torch.device("cpu")
    dtype = str(default_dtype(cpu)).removeprefix("torch.")
    found = (str(torch.__version__), torch.get_num_threads(), dtype, available_bytes(cpu))
    if not torch.cuda.is_available():
        return Hardware(*found)
    free, total = torch.cuda.mem_get_info()
    return Hardware(*found, torch.cuda.get_device_name(), free, total)
