"""Cross-entropy fused with the output layer: of the logits, one chunk of the vocabulary is in memory at a time.

The forward pass finds log(Z) of each row chunk by chunk; the backward pass makes the logits of a chunk anew, and from
them that chunk's part of both gradients, each summed over all rows within one product. So nothing is summed across
chunks but the gradient of the hidden states, which is in float32. Logits that fit one chunk are made once and kept.
The method is that of Cut Cross-Entropy (arXiv 2411.09009), without its filter: the gradients are exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 25  # logits that are kept, if there are no more: 128 MiB in float32
CACHED = 1 << 22  # logits at once, where there are more: these stay in a CPU's cache
LEAST_WIDTH = 256  # tokens of the vocabulary, however many rows there are

IGNORED = -100


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, int]:
    """(sum over rows of -log p(target) + z_loss * log(Z)^2, number of rows that count).

    Rows whose target is -100 are neither multiplied nor counted; without any other the sum is 0, with zero gradients.
    Logits are softcap * tanh(h w / softcap) where there is a cap. Products are in the dtype of hidden_ND, all else in
    float32 (float64 for float64). `chunk`: the most logits in memory.
    """
    places = (targets_N != IGNORED).nonzero()[:, 0]
    if len(places) < len(targets_N):
        hidden_ND, targets_N = hidden_ND.index_select(0, places), targets_N[places]
    if not len(places):
        return (hidden_ND.sum() + 0.0 * weight_VD[0].sum()).float(), 0
    total = _Fused.apply(hidden_ND, weight_VD, targets_N, softcap, z_loss, chunk)
    assert isinstance(total, Tensor)
    return total, len(places)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _logits(hidden_ND: Tensor, part_WD: Tensor, softcap: float | None) -> Tensor:
    """The logits of a part of the vocabulary, capped, float32."""
    logits_NW = _exact(hidden_ND @ part_WD.t())
    return logits_NW if softcap is None else logits_NW.div_(softcap).tanh_().mul_(softcap)


def _width(rows: int, vocabulary: int, chunk: int) -> int:
    if rows * vocabulary <= chunk:
        return vocabulary
    return min(vocabulary, max(LEAST_WIDTH, min(chunk, CACHED) // rows))


class _Fused(torch.autograd.Function):
    """The sum over rows; its backward gives the gradients of the hidden states and of the output layer."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, z_loss: float, chunk: int
    ) -> Tensor:  # fmt: skip
        V = len(weight)
        width = _width(len(hidden), V, chunk)
        log_z, chosen, logits = None, hidden.new_zeros(len(hidden), dtype=_exact(hidden[:0]).dtype), None
        for begin in range(0, V, width):
            logits = _logits(hidden, weight[begin : begin + width], softcap)
            part = logits.logsumexp(-1)
            log_z = part if log_z is None else torch.logaddexp(log_z, part)
            inside = (targets >= begin) & (targets < begin + width)
            local = (targets - begin).clamp(0, logits.shape[1] - 1)
            chosen += logits.gather(1, local[:, None])[:, 0] * inside
        assert log_z is not None
        ctx.save_for_backward(hidden, weight, targets, log_z, logits if width == V else None)
        ctx.softcap, ctx.z_loss, ctx.width = softcap, z_loss, width
        return (log_z - chosen + z_loss * log_z * log_z).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z, kept = ctx.saved_tensors
        wanted_hidden, wanted_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.zeros_like(hidden, dtype=log_z.dtype) if wanted_hidden else None
        weight_grad = torch.empty_like(weight) if wanted_weight else None
        for begin in range(0, len(weight), ctx.width):
            part = weight[begin : begin + ctx.width]
            logits = _logits(hidden, part, ctx.softcap) if kept is None else kept
            slope = _slope(ctx, logits, targets - begin, log_z, grads[0]).to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad += slope @ part
            if weight_grad is not None:
                torch.mm(slope.t(), hidden, out=weight_grad[begin : begin + ctx.width])
        return (
            None if hidden_grad is None else hidden_grad.to(hidden.dtype),
            weight_grad,
            None,
            None,
            None,
            None,
        )


def _slope(ctx: Any, logits_NW: Tensor, local_N: Tensor, log_z_N: Tensor, scale: Tensor) -> Tensor:
    """The gradient of the sum with respect to the logits before the cap."""
    slope = (logits_NW - log_z_N[:, None]).exp_()
    if ctx.z_loss:
        slope *= 1 + 2 * ctx.z_loss * log_z_N[:, None]
    rows = ((local_N >= 0) & (local_N < logits_NW.shape[1])).nonzero()[:, 0]
    slope[rows, local_N[rows]] -= 1
    if ctx.softcap is not None:
        slope *= 1 - (logits_NW / ctx.softcap).square_()
    return slope.mul_(scale)
