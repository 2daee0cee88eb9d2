"""Layers' functions with a backward pass of their own, which keep less and go over their data less often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """x in float32, float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


class Norm(torch.autograd.Function):
    """x / rms(x) * (offset + weight), in float32, rounded once; keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        wide = exact(x)
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        scale = exact(weight) + offset
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        return (wide * inverse).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        unit, grad = exact(x) * inverse, exact(grads[0])
        weight_grad = None
        if ctx.needs_input_grad[1]:
            rows = (grad * unit).flatten(0, -2).sum(0)
            weight_grad = rows.to(weight.dtype)
        grad = grad * (exact(weight) + ctx.offset)
        along = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).mul_(inverse).to(x.dtype), weight_grad, None, None


class Rotate(torch.autograd.Function):
    """Turns each pair (x_i, x_{i + E/2}) by its angle, in float32; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x_BTHE: Tensor, cos_BT1E: Tensor, sin_BT1E: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BT1E, sin_BT1E)
        return turn(x_BTHE, cos_BT1E, sin_BT1E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_BT1E, sin_BT1E = ctx.saved_tensors
        return turn(grads[0], cos_BT1E, -sin_BT1E), None, None


def turn(x_BTHE: Tensor, cos_BT1E: Tensor, sin_BT1E: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + E/2}) by its angle; float32 inside."""
    first, second = x_BTHE.float().chunk(2, dim=-1)
    turned = (
        torch.addcmul(first * cos_BT1E, second, sin_BT1E, value=-1),
        torch.addcmul(second * cos_BT1E, first, sin_BT1E),
    )
    return torch.cat(turned, dim=-1).type_as(x_BTHE)


class ShortAttention(torch.autograd.Function):
    """softmax(scale q k^T + mask) v of short documents, with the weights (D, H, T, T) kept for the backward pass.

    q (D, T, H, E); k, v (D, T, K, E); mask (T, T) in their dtype, 0 or -inf. On a CPU the form that keeps no weights
    takes four times as long at 100 tokens and as long at 1,000; there it is the better one.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask_TT: Tensor, scale: float) -> Tensor:
        D, T, H, E = q.shape
        K = k.shape[2]
        ctx.sizes, ctx.scale = (D, T, K, H // K, E), scale
        q_NRE = _by_head(q, K)  # N = D K pairs of document and key head, R = H / K T rows
        k_NTE, v_NTE = _by_head(k, K), _by_head(v, K)
        scores_NRT = torch.baddbmm(mask_TT.repeat(H // K, 1), q_NRE, k_NTE.transpose(1, 2), alpha=scale)
        weights_NRT = scores_NRT.softmax(-1)
        ctx.save_for_backward(q_NRE, k_NTE, v_NTE, weights_NRT)
        return _by_token(weights_NRT @ v_NTE, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NRE, k_NTE, v_NTE, weights_NRT = ctx.saved_tensors
        D, T, K, _, E = ctx.sizes
        grad_NRE = _by_head(grads[0], K)
        slope = grad_NRE @ v_NTE.transpose(1, 2)
        slope = torch.ops.aten._softmax_backward_data(slope, weights_NRT, -1, slope.dtype)
        q_grad = (slope @ k_NTE).mul_(ctx.scale)
        k_grad = (slope.transpose(1, 2) @ q_NRE).mul_(ctx.scale)
        v_grad = weights_NRT.transpose(1, 2) @ grad_NRE
        flat = (D, T, K, 1, E)
        return _by_token(q_grad, ctx.sizes), _by_token(k_grad, flat), _by_token(v_grad, flat), None, None


def _by_head(x_DTHE: Tensor, K: int) -> Tensor:
    """(D K, H / K T, E): the rows of all query heads that share a key head, one head after another."""
    D, T, H, E = x_DTHE.shape
    return x_DTHE.reshape(D, T, K, H // K, E).permute(0, 2, 3, 1, 4).reshape(D * K, H // K * T, E)


def _by_token(x_NRE: Tensor, sizes: tuple[int, int, int, int, int]) -> Tensor:
    """The reverse: (D, T, H, E)."""
    D, T, K, G, E = sizes
    return x_NRE.view(D, K, G, T, E).permute(0, 3, 1, 2, 4).reshape(D, T, K * G, E)
