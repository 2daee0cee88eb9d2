"""Cross-entropy fused with the output layer: the logits of some rows are in memory at a time, in one buffer.

Where a chunk's logits stand, their slopes come to stand (the gradients with respect to them), and from those the
chunk's part of both gradients, still in the forward pass: three products a row, as in the plain form, none made twice
(Liger Kernel, arXiv 2410.10989, section 3.2). What the sum will be scaled by is known in the backward pass only. So the
slopes of the last chunk are kept for it, and the product that adds them to the output layer's gradient scales all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 28  # bytes of logits at once
CUDA_CHUNK = 1 << 30
PIECE = 1 << 20  # logits that become slopes at once: what a CPU's cache holds, in float32
CUDA_PIECE = 1 << 25
PANEL = 1 << 12  # tokens of the vocabulary whose gradient is added to at once, for the same reason

IGNORED = -100


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> tuple[Tensor, int]:
    """(sum over rows of -log p(target) + z_loss * log(Z)^2, number of rows that count).

    Rows whose target is -100 are neither multiplied nor counted; without any other the sum is 0, with zero gradients.
    Logits are softcap * tanh(h w / softcap) where there is a cap. Products are in the dtype of hidden_ND, all else in
    float32 (float64 for float64). `chunk`: the most bytes of logits in memory, though at least those of one row. Where
    one chunk does not hold all, the gradients can be asked for once.
    """
    places = (targets_N != IGNORED).nonzero()[:, 0]
    if len(places) < len(targets_N):
        hidden_ND, targets_N = hidden_ND.index_select(0, places), targets_N[places]
    if not len(places):
        return (hidden_ND.sum() + 0.0 * weight_VD[0].sum()).float(), 0
    chunk = chunk or (CUDA_CHUNK if hidden_ND.is_cuda else CHUNK)
    rows = _rows(len(places), len(weight_VD) * hidden_ND.element_size(), chunk)
    total = _Fused.apply(hidden_ND, weight_VD, targets_N, softcap, z_loss, rows, torch.is_grad_enabled())
    assert isinstance(total, Tensor)
    return total, len(places)


def _rows(count: int, width: int, chunk: int) -> int:
    """Rows of a chunk, so that all chunks are about alike. width: bytes of a row's logits."""
    chunks = -(-count // max(1, chunk // width))
    return -(-count // chunks)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Fused(torch.autograd.Function):
    """The sum over rows; its backward gives the gradients of the hidden states and of the output layer."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, z_loss: float,
        rows: int, learning: bool,
    ) -> Tensor:  # fmt: skip
        N = len(hidden)
        wants_hidden, wants_weight = (learning and wanted for wanted in ctx.needs_input_grad[:2])
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        losses: list[Tensor] = []
        weight_sum, last = None, hidden
        logits = buffer_RV = hidden.new_empty(rows, len(weight))
        for begin in range(0, N, rows):
            last = hidden[begin : begin + rows]
            logits = torch.mm(last, weight.t(), out=buffer_RV[: len(last)])
            slopes = wants_hidden or wants_weight
            losses.append(_losses(logits, targets[begin : begin + rows], softcap, z_loss, slopes=slopes))
            if hidden_grad is not None:
                torch.mm(logits, weight, out=hidden_grad[begin : begin + rows])
            if wants_weight and begin + rows < N:
                weight_sum = _added(weight_sum, logits, last)
        ctx.save_for_backward(hidden_grad, weight_sum, *((logits, last) if wants_weight else (None, None)))
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_sum, slopes, last = ctx.saved_tensors
        scale = float(grads[0])
        weight_grad = None if slopes is None else _finished(weight_sum, slopes, last, scale)
        return None if hidden_grad is None else hidden_grad * scale, weight_grad, None, None, None, None, None


def _losses(
    logits_RV: Tensor, targets_R: Tensor, softcap: float | None, z_loss: float, *, slopes: bool
) -> Tensor:
    """The loss of each row. Leaves in place of the logits, if asked, its gradient with respect to them."""
    rows = max(1, (CUDA_PIECE if logits_RV.is_cuda else PIECE) // logits_RV.shape[1])
    losses: list[Tensor] = []
    for part, target in zip(logits_RV.split(rows), targets_R[:, None].split(rows), strict=True):
        x, bend = part.to(_exact(part.dtype)), None
        if softcap is not None:
            bend = (x / softcap).tanh_()
            x = bend * softcap
        chosen, top = x.gather(1, target), x.amax(-1, keepdim=True)
        x = x.sub_(top).exp_()  # float32 logits are overwritten here
        size = x.sum(-1, keepdim=True)
        log_z = size.log() + top
        losses.append((log_z - chosen + z_loss * log_z * log_z)[:, 0])
        if slopes:
            x.mul_((1 + 2 * z_loss * log_z) / size)
            x.scatter_add_(1, target, x.new_full(target.shape, -1.0))
            if bend is not None:
                x.mul_(1 - bend.square_())
            if x is not part:
                part.copy_(x)
    return torch.cat(losses)


def _added(total_VD: Tensor | None, slopes_RV: Tensor, hidden_RD: Tensor) -> Tensor:
    """The output layer's gradient with a chunk's part added, in float32 at least, not yet scaled."""
    shape, exact = (slopes_RV.shape[1], hidden_RD.shape[1]), _exact(hidden_RD.dtype)
    into = hidden_RD.new_empty(shape, dtype=exact) if total_VD is None else total_VD
    if exact == hidden_RD.dtype:
        return into.addmm_(slopes_RV.t(), hidden_RD, beta=0 if total_VD is None else 1)
    for begin in range(0, len(into), PANEL):
        own, part = into[begin : begin + PANEL], slopes_RV[:, begin : begin + PANEL].t() @ hidden_RD
        _ = own.copy_(part) if total_VD is None else own.add_(part)
    return into


def _finished(total_VD: Tensor | None, slopes_RV: Tensor, hidden_RD: Tensor, scale: float) -> Tensor:
    """The gradient of all chunks in the weight's dtype, scaled; the sum is used up."""
    if total_VD is not None and total_VD.dtype == hidden_RD.dtype:
        return total_VD.addmm_(slopes_RV.t(), hidden_RD, beta=scale, alpha=scale)
    grad = hidden_RD.new_empty(slopes_RV.shape[1], hidden_RD.shape[1])
    if total_VD is None:
        return grad.addmm_(slopes_RV.t(), hidden_RD, beta=0, alpha=scale)
    for begin in range(0, len(grad), PANEL):
        part = slopes_RV[:, begin : begin + PANEL].t() @ hidden_RD
        grad[begin : begin + PANEL] = total_VD[begin : begin + PANEL].add_(part).mul_(scale)
    return grad
