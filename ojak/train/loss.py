"""Losses fused with the output layer: the logits of some rows are in memory at a time, in one buffer.

Where a chunk's logits stand, their slopes come to stand (the gradients with respect to them), and from those the
chunk's part of both gradients, still in the forward pass: three products a row, as in the plain form, none made twice
(Liger Kernel, arXiv 2410.10989, section 3.2). What the sum will be scaled by is known in the backward pass only. So the
slopes of the last chunk are kept for it, and the product that adds them to the output layer's gradient scales all.

`fused` does this for any loss that is a sum over rows; `chunked_cross_entropy` is the one of next tokens, those of a
teacher are in distil_loss.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

CHUNK = 1 << 28  # bytes of logits at once
CUDA_CHUNK = 1 << 30
PIECE = 1 << 20  # logits that become slopes at once: what a CPU's cache holds, in float32
CUDA_PIECE = 1 << 25
PANEL = 1 << 12  # tokens of the vocabulary whose gradient is added to at once, for the same reason

IGNORED = -100

# (logits of a chunk, which rows these are, whether slopes are wanted) -> the loss of each row. Leaves in place of the
# logits, if asked, its gradient with respect to them. Logits are those of the product, in its dtype, without a cap.
RowLosses: TypeAlias = Callable[[Tensor, slice, bool], Tensor]
# (capped logits of a piece, in float32 at least, which rows of the chunk these are) -> the same.
PieceLosses: TypeAlias = Callable[[Tensor, slice], Tensor]


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
    places = counted(targets_N)
    if len(places) < len(targets_N):
        hidden_ND, targets_N = hidden_ND.index_select(0, places), targets_N[places]
    if not len(places):
        return nothing(hidden_ND, weight_VD), 0
    losses = of_targets(targets_N, softcap=softcap, z_loss=z_loss)
    return fused(hidden_ND, weight_VD, losses, chunk=chunk), len(places)


def token_log_probs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """log p(target) of each row at the temperature, without gradients; no row is ignored. float32 at least."""
    losses = of_targets(targets_N, softcap=softcap, temperature=temperature)
    return -row_values(hidden_ND, weight_VD, losses, chunk=chunk)


def weighted_log_probs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """The sum over rows of weight * log p(target), the weights being constants: a policy gradient's surrogate.

    No row is ignored. With weights that are the slopes of a loss with respect to `token_log_probs`, its gradients are
    that loss's.
    """
    losses = of_targets(targets_N, -weights_N, softcap=softcap, temperature=temperature)
    return fused(hidden_ND, weight_VD, losses, chunk=chunk)


def of_targets(
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
) -> RowLosses:
    """weight * -log p(target) of each row, 1 being the weight where none is given."""
    weights_N = torch.ones(len(targets_N), device=targets_N.device) if weights_N is None else weights_N

    def losses(logits_RV: Tensor, rows: slice, slopes: bool) -> Tensor:
        own, weights = targets_N[rows, None], weights_N[rows, None]

        def of_piece(x_RV: Tensor, at: slice) -> Tensor:
            return target_losses(
                x_RV, own[at], weights[at], temperature=temperature, z_loss=z_loss, slopes=slopes
            )

        return by_pieces(logits_RV, softcap, slopes, of_piece)

    return losses


def fused(hidden_ND: Tensor, weight_VD: Tensor, row_losses: RowLosses, *, chunk: int | None = None) -> Tensor:
    """The sum of the losses of N > 0 rows, a scalar; its backward gives hidden states and output layer their gradients.

    `chunk`, and how often gradients can be asked for: as in `chunked_cross_entropy`.
    """
    rows = _rows(len(hidden_ND), len(weight_VD) * hidden_ND.element_size(), chunk or most_bytes(hidden_ND))
    total = _Fused.apply(hidden_ND, weight_VD, row_losses, rows, torch.is_grad_enabled())
    assert isinstance(total, Tensor)
    return total


@torch.no_grad()
def row_values(
    hidden_ND: Tensor, weight_VD: Tensor, row_losses: RowLosses, *, chunk: int | None = None
) -> Tensor:
    """The losses that `fused` adds up, one by one, N > 0 of them; no slope is made."""
    rows = _rows(len(hidden_ND), len(weight_VD) * hidden_ND.element_size(), chunk or most_bytes(hidden_ND))
    buffer_RV = hidden_ND.new_empty(rows, len(weight_VD))
    losses: list[Tensor] = []
    for begin in range(0, len(hidden_ND), rows):
        part = hidden_ND[begin : begin + rows]
        logits_RV = torch.mm(part, weight_VD.t(), out=buffer_RV[: len(part)])
        losses.append(row_losses(logits_RV, slice(begin, begin + len(part)), False))
    return torch.cat(losses)


def most_bytes(hidden_ND: Tensor) -> int:
    """Of logits in memory at once, where the caller says nothing."""
    return CUDA_CHUNK if hidden_ND.is_cuda else CHUNK


def counted(targets_N: Tensor) -> Tensor:
    """The places of the rows that count, int64."""
    return (targets_N != IGNORED).nonzero()[:, 0]


def nothing(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """The loss of no rows: 0, with zero gradients."""
    return (hidden_ND.sum() + 0.0 * weight_VD[0].sum()).float()


def _rows(count: int, width: int, chunk: int) -> int:
    """Rows of a chunk, so that all chunks are about alike. width: bytes of a row's logits."""
    chunks = -(-count // max(1, chunk // width))
    return -(-count // chunks)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is worked out from logits of a dtype is in this one."""
    return torch.promote_types(dtype, torch.float32)


class _Fused(torch.autograd.Function):
    """The sum over rows; its backward gives the gradients of the hidden states and of the output layer."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, row_losses: RowLosses, rows: int, learning: bool
    ) -> Tensor:
        N = len(hidden)
        wants_hidden, wants_weight = (learning and wanted for wanted in ctx.needs_input_grad[:2])
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        losses: list[Tensor] = []
        weight_sum, last = None, hidden
        logits = buffer_RV = hidden.new_empty(rows, len(weight))
        for begin in range(0, N, rows):
            last = hidden[begin : begin + rows]
            logits = torch.mm(last, weight.t(), out=buffer_RV[: len(last)])
            losses.append(row_losses(logits, slice(begin, begin + len(last)), wants_hidden or wants_weight))
            if hidden_grad is not None:
                torch.mm(logits, weight, out=hidden_grad[begin : begin + rows])
            if wants_weight and begin + rows < N:
                weight_sum = _added(weight_sum, logits, last)
        # Saved tensors live until the backward pass is over. Of several chunks, sum and slopes are not saved but held:
        # so the slopes' memory is free again when the gradient takes its own.
        ctx.several = weight_sum is not None
        ctx.held = (weight_sum, logits) if ctx.several else None
        saved = (last, None if ctx.several else logits) if wants_weight else (None, None)
        ctx.save_for_backward(hidden_grad, *saved)
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, last, slopes = ctx.saved_tensors
        scale, weight_sum = float(grads[0]), None
        if ctx.several:
            if ctx.held is None:
                raise RuntimeError("the gradients of a loss in several chunks can be asked for once")
            (weight_sum, slopes), ctx.held = ctx.held, None
        weight_grad = None if slopes is None else _finished(weight_sum, slopes, last, scale)
        if weight_grad is not None:
            del weight_sum, slopes
            weight_grad = _alone(weight_grad)
        return None if hidden_grad is None else hidden_grad * scale, weight_grad, None, None, None


def by_pieces(logits_RV: Tensor, softcap: float | None, slopes: bool, piece_losses: PieceLosses) -> Tensor:
    """The losses of a chunk's rows, worked out for so few at a time that they stay in a cache; as `RowLosses` says."""
    rows = max(1, (CUDA_PIECE if logits_RV.is_cuda else PIECE) // logits_RV.shape[1])
    losses: list[Tensor] = []
    for begin in range(0, len(logits_RV), rows):
        part = logits_RV[begin : begin + rows]
        x, bend = capped(part, softcap)
        losses.append(piece_losses(x, slice(begin, begin + len(part))))
        if slopes:
            if bend is not None:
                x.mul_(1 - bend.square_())
            if x is not part:
                part.copy_(x)
    return torch.cat(losses)


def capped(part_RV: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """(softcap * tanh(logits / softcap) in float32 at least, the tanh); the logits and None where there is no cap."""
    x = part_RV.to(exact_dtype(part_RV.dtype))
    if softcap is None:
        return x, None
    bend = (x / softcap).tanh_()
    return bend * softcap, bend


def target_losses(
    x_RV: Tensor,
    target_R1: Tensor,
    weight_R1: Tensor,
    *,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    slopes: bool,
) -> Tensor:
    """weight * (-log p(target) + z_loss * log(Z)^2) of each row of capped logits, p at the temperature.

    The logits are used up: their place takes the slopes, if asked.
    """
    if temperature != 1:
        x_RV.div_(temperature)
    chosen, top = x_RV.gather(1, target_R1), x_RV.amax(-1, keepdim=True)
    x_RV.sub_(top).exp_()
    size = x_RV.sum(-1, keepdim=True)
    log_z = size.log() + top
    weight_R1 = weight_R1.to(x_RV.dtype)
    if slopes:
        scale = weight_R1 / temperature
        x_RV.mul_((1 + 2 * z_loss * log_z) / size * scale)
        x_RV.scatter_add_(1, target_R1, -scale)
    return (weight_R1 * (log_z - chosen + z_loss * log_z * log_z))[:, 0]


def _added(total_VD: Tensor | None, slopes_RV: Tensor, hidden_RD: Tensor) -> Tensor:
    """The output layer's gradient with a chunk's part added, in float32 at least, not yet scaled."""
    shape, exact = (slopes_RV.shape[1], hidden_RD.shape[1]), exact_dtype(hidden_RD.dtype)
    into = hidden_RD.new_empty(shape, dtype=exact) if total_VD is None else total_VD
    if exact == hidden_RD.dtype:
        return into.addmm_(slopes_RV.t(), hidden_RD, beta=0 if total_VD is None else 1)
    for begin in range(0, len(into), PANEL):
        own, part = into[begin : begin + PANEL], slopes_RV[:, begin : begin + PANEL].t() @ hidden_RD
        _ = own.copy_(part) if total_VD is None else own.add_(part)
    return into


def _finished(total_VD: Tensor | None, slopes_RV: Tensor, hidden_RD: Tensor, scale: float) -> Tensor:
    """The gradient of all chunks in the weight's dtype, scaled; the sum is used up.

    A narrower dtype than the sum's comes to lie in the first half of its memory, as both together take half as much
    again: `_alone` gives it a place of its own.
    """
    if total_VD is not None and total_VD.dtype == hidden_RD.dtype:
        return total_VD.addmm_(slopes_RV.t(), hidden_RD, beta=scale, alpha=scale)
    if total_VD is None:
        grad = hidden_RD.new_empty(slopes_RV.shape[1], hidden_RD.shape[1])
        return grad.addmm_(slopes_RV.t(), hidden_RD, beta=0, alpha=scale)
    grad = total_VD.view(-1).view(hidden_RD.dtype)[: total_VD.numel()].view(total_VD.shape)
    for begin in range(0, len(grad), PANEL):
        part = slopes_RV[:, begin : begin + PANEL].t() @ hidden_RD
        own = total_VD[begin : begin + PANEL].add_(part).mul_(scale)
        grad[begin : begin + PANEL] = own.to(
            grad.dtype
        )  # a copy first: the first panel lies in its own memory
    return grad


def _alone(grad_VD: Tensor) -> Tensor:
    """The gradient, in memory that holds nothing else."""
    return grad_VD if grad_VD.untyped_storage().nbytes() == grad_VD.nbytes else grad_VD.clone()
