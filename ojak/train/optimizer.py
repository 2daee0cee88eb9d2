"""AdamW and Muon over float32 master weights, in one pass over each weight.

A decoder in bfloat16 has a master copy of each weight in float32, which is what is learnt; after each step the
decoder's own weight is the master, rounded. A float32 weight is its own master. A step goes through each weight in
pieces: gradient widened, moments and master updated, weight rounded, while the piece is in the CPU's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ojak.train.config import OptimizerConfig

PIECE = 1 << 18  # numbers at once: with what belongs to them, what a CPU's cache holds
CUDA_PIECE = 1 << 26
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's quintic, five times over
NEWTON_SCHULZ_STEPS = 5
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Local = Callable[[Tensor], Tensor]


def _piece(tensor: Tensor) -> int:
    return CUDA_PIECE if tensor.is_cuda else PIECE


def whole(tensor: Tensor) -> Tensor:
    """What a process holds of a tensor that is not split: all of it."""
    return tensor


class Slot:
    """A weight that is learnt: what the decoder computes with, its master, its gradient, its optimizer's state.

    Of weights that are split, FSDP keeps the masters and computes with their rounded copies; then `weight` is such a
    copy, kept for checkpoints alone, so that they are the same whatever number of processes writes them.
    """

    def __init__(self, name: str, parameter: Tensor, local: Local, compute: torch.dtype | None) -> None:
        self.name, self.parameter, self._local = name, parameter, local
        own = local(parameter.detach())
        self.master = own if own.dtype == torch.float32 else own.float()
        self.weight = own.to(compute or own.dtype)
        self.sum: Tensor | None = None  # of the gradients of several micro-batches, float32
        self.state: dict[str, Tensor] = {}

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the step so far, None where the weight had no part in it."""
        if self.sum is not None:
            return self.sum
        return None if self.parameter.grad is None else self._local(self.parameter.grad)

    def collect(self) -> None:
        """Adds the gradient of a micro-batch, in float32, to those before it."""
        if self.parameter.grad is None:
            return
        grad = self._local(self.parameter.grad)
        self.sum = grad.float() if self.sum is None else self.sum.add_(grad)
        self.parameter.grad = None

    def clear(self) -> None:
        """Forgets the gradient."""
        self.parameter.grad, self.sum = None, None

    def pieces(self, grad: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """(where, weight, master, gradient) of each piece of the flattened weight."""
        weight, master, flat = self.weight.view(-1), self.master.view(-1), grad.reshape(-1)
        size = _piece(grad)
        for begin in range(0, len(master), size):
            where = slice(begin, begin + size)
            yield where, weight[where], master[where], flat[where]


class Optimizer:
    """The weights that are learnt and how.

    local: gives this process's part of a weight that is split; compute: what the decoder multiplies in where that is
    not the weights' own dtype. A step is `gather` after each micro-batch but the last, `finish`, `square_norm`, `step`.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        weights: Mapping[str, Tensor],
        *,
        local: Local = whole,
        compute: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.slots = [Slot(name, weight, local, compute) for name, weight in weights.items()]
        self.steps = 0
        for slot in self.slots:
            for key in ("momentum",) if self._by_muon(slot) else ("exp_avg", "exp_avg_sq"):
                dtype = STATE_DTYPES[config.state_dtype]
                slot.state[key] = torch.zeros_like(slot.master, dtype=dtype)

    def _by_muon(self, slot: Slot) -> bool:
        """Muon is for the matrices between other layers; embeddings and the output layer are tables."""
        inner = slot.master.ndim == 2 and not slot.name.endswith(("embed_tokens.weight", "lm_head.weight"))
        return self.config.name == "muon" and inner

    def gather(self) -> None:
        """Puts the gradients of a micro-batch by, so that the next one's can be added in float32."""
        for slot in self.slots:
            slot.collect()

    def finish(self) -> None:
        """After the last micro-batch: adds its gradients to those put by, where there are any."""
        for slot in self.slots:
            if slot.sum is not None:
                slot.collect()

    @torch.no_grad()
    def square_norm(self) -> float:
        """The sum of the squares of this process's part of the gradient; not a number where one of it is none."""
        found = (slot.gradient for slot in self.slots)
        pieces = (
            piece for grad in found if grad is not None for piece in grad.reshape(-1).split(_piece(grad))
        )
        norms = [torch.linalg.vector_norm(piece, dtype=torch.float32) for piece in pieces]
        return float(torch.stack(norms).double().square().sum()) if norms else 0.0

    @torch.no_grad()
    def step(self, lr: float, share: float, scale: float) -> None:
        """One update. lr: AdamW's; share: the schedule's, for Muon's rate; scale: what gradients are taken times."""
        self.steps += 1
        for slot in self.slots:
            grad = slot.gradient
            if grad is None or not grad.numel():
                continue
            if self._by_muon(slot):
                self._muon(slot, grad, self.config.muon_lr * share, scale)
            else:
                self._adamw(slot, grad, lr, scale)
            slot.clear()

    def _adamw(self, slot: Slot, grad: Tensor, lr: float, scale: float) -> None:
        """Loshchilov and Hutter 2019, algorithm 2, in PyTorch's fused form."""
        decay = self.config.weight_decay if slot.master.ndim > 1 else 0.0
        beta1, beta2 = self.config.betas
        moments = [slot.state[key].view(-1) for key in ("exp_avg", "exp_avg_sq")]
        steps = torch.tensor(float(self.steps), device=slot.master.device)
        divisor = None if scale == 1.0 else torch.tensor(1 / scale, device=slot.master.device)
        for where, weight, master, piece in slot.pieces(grad):
            held = [moment[where] for moment in moments]
            exact = [moment.float() for moment in held]  # the moments themselves where they are float32
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                [master], [piece.float()], [exact[0]], [exact[1]], [], [steps], grad_scale=divisor, amsgrad=False,
                beta1=beta1, beta2=beta2, lr=lr, weight_decay=decay, eps=self.config.eps, maximize=False,
            )  # fmt: skip
            for moment, value in zip(held, exact, strict=True):
                if moment.dtype != value.dtype:
                    moment.copy_(value)
            if weight.dtype != master.dtype:
                weight.copy_(master)

    def _muon(self, slot: Slot, grad: Tensor, lr: float, scale: float) -> None:
        """Momentum, made orthogonal (https://kellerjordan.github.io/posts/muon/)."""
        beta, exact = self.config.muon_momentum, grad.float() * scale
        momentum = slot.state["momentum"].float().lerp_(exact, 1 - beta)
        update = orthogonal(exact.lerp_(momentum, beta))
        slot.state["momentum"].copy_(momentum)
        rows, columns = slot.master.shape
        slot.master.mul_(1 - lr * self.config.weight_decay)
        slot.master.add_(update, alpha=-lr * math.sqrt(max(1.0, rows / columns)))
        if slot.weight is not slot.master:
            slot.weight.copy_(slot.master)

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, as a checkpoint names it: `NAME`, `master.NAME`, `optimizer.NAME.SLOT`."""
        found: dict[str, Tensor] = {slot.name: slot.weight for slot in self.slots}
        for slot in self.slots:
            if slot.master is not slot.weight:
                found[f"master.{slot.name}"] = slot.master
            found |= {f"optimizer.{slot.name}.{key}": value for key, value in slot.state.items()}
        return found


def orthogonal(update: Tensor) -> Tensor:
    """About U V^T of update = U S V^T: singular values go to between 0.7 and 1.2, by five Newton-Schulz steps.

    Products in bfloat16, as its authors do; in float64 for float64.
    """
    a, b, c = NEWTON_SCHULZ
    x = update if update.dtype == torch.float64 else update.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.t() if tall else x
