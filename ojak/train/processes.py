"""Training in several processes: torchrun starts them, FSDP2 splits the weights, a few sums keep them in step.

Each process holds some rows of every weight, of its gradient and of its optimizer's state: rows
`part_rows(n, rank, size)` of the first dimension, as `torch.chunk` and FSDP2 deal them. A run that one process makes
needs none of this: `ALONE` answers every question at once. Numbers and text travel, never objects: nothing is pickled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ojak.errors import OjakError, UsageError

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder

CPU = torch.device("cpu")
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets beside WORLD_SIZE


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run as one of them sees them. Every method but `first` is a meeting: all must call it."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Each value summed over the processes, in float64: whole numbers below 2^53 stay exact."""
        if self.size == 1:
            return [float(value) for value in values]
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process: a signal to stop reaches one of them first."""
        return self.total(flag)[0] > 0

    def from_first(self, value: int) -> int:
        """The first process's value."""
        return int(self.texts(str(value))[0])

    def texts(self, text: str) -> list[str]:
        """The text of each process, by rank."""
        if self.size == 1:
            return [text]
        import torch.distributed as dist

        own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([own.numel()], dtype=torch.int64, device=self.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        widest = max(int(found) for found in lengths)
        padded = torch.nn.functional.pad(own, (0, widest - own.numel()))
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        pairs = zip(found, lengths, strict=True)
        return [bytes(each[: int(count)].tolist()).decode() for each, count in pairs]

    def gather(self, part: Tensor, shape: Sequence[int]) -> Tensor:
        """The whole tensor of `shape`, of which each process has its rows. On every process, on its device."""
        if self.size == 1:
            return part
        import torch.distributed as dist

        rows = -(-shape[0] // self.size)
        own = part.new_zeros((rows, *shape[1:]), device=self.device)
        own[: part.shape[0]] = part
        whole = own.new_empty((rows * self.size, *shape[1:]))
        dist.all_gather(list(whole.split(rows)), own)
        return whole[: shape[0]]  # only the last parts are short, so what was padded is at the end

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """What one process cannot do, none has done: an error in the block of any of them is raised in all."""
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:  # noqa: BLE001 (raised below, when the others know)
            error = caught
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise OjakError(f"{doing} failed in another process", fix="see what that process said")


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Meet the processes that torchrun started with this one, over NCCL on GPUs and gloo on CPUs; alone without it.

    device: the kind that the run computes on; of several GPUs, each process takes that of its place on the machine.
    Raises UsageError where the environment is not torchrun's.
    """
    size = _number("WORLD_SIZE", 1)
    if size <= 1:
        yield Processes(device=device)
        return
    import torch.distributed as dist

    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set",
            why="several processes can only meet where torchrun started them",
            fix="use `torchrun --nproc-per-node N -m ojak train ...`, or unset WORLD_SIZE",
        )
    if device.type == "cuda":
        device = torch.device("cuda", _number("LOCAL_RANK", 0))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {name} is {text[:40]!r}, not a number", fix="use torchrun"
        )
    return int(text)


def part_rows(rows: int, rank: int, size: int) -> tuple[int, int]:
    """The first row of a process's part and the row after its last; equal where it has none."""
    each = math.ceil(rows / size)
    return min(rank * each, rows), min((rank + 1) * each, rows)


def split_weights(decoder: Decoder, processes: Processes, compute: torch.dtype) -> dict[str, Tensor]:
    """Split the weights of `decoder` among the processes, in place: FSDP2, one unit a layer and one for the rest.

    The decoder must be float32 and on this process's device: what is split are the master weights. They are gathered
    as `compute` for forward and backward, gradients are summed (not averaged) over the processes in float32, so that
    the loop divides by the number of supervised tokens of the whole step, as one process does. After `decoder.hidden`
    the output layer's weight stays whole until backward, for the loss that is fused with it.

    Returns the trained weights under Hugging Face's names, as DTensors: `local` gives this process's rows of a weight
    or of its `.grad`, `.shape` the whole shape. (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html)
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(processes.device.type, (processes.size,))
    # Inputs stay as they are: the cosines and sines of RoPE are float32 on purpose.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    units = [fully_shard(layer, mesh=mesh, mp_policy=policy) for layer in decoder.model.layers]
    units.append(fully_shard(decoder, mesh=mesh, mp_policy=policy, reshard_after_forward=False))
    for unit in units:
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no average
        unit.set_gradient_divide_factor(1.0)
    register_fsdp_forward_method(decoder, "hidden")
    return {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor that `split_weights` split; any other tensor is whole."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
