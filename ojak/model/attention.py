"""Attention over whole sequences: a plain form that says what is meant, and PyTorch's fused one where it can serve.

Both take q (B, T, H, E) and k, v (B, T, K, E) and give (B, T, H, E). The plain form is the reference, and the only one
that caps scores; the fused one must agree with it (tests/model/test_attention.py).

For training, many documents lie in one flat row without padding (`DocumentAttention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.model.gradients import ShortAttention

if TYPE_CHECKING:
    from ojak.model.decoder import DecoderConfig

SHORT = 512  # tokens up to which, on a CPU, keeping the attention weights beats computing them twice


def softcap(scores: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(scores / cap), or the scores themselves (Gemma 2, arXiv 2408.00118, section 2)."""
    return scores if cap is None else torch.tanh(scores / cap) * cap


def plain_attention(
    q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, mask_BTS: Tensor, scale: float, cap: float | None
) -> Tensor:
    """softmax(cap(q k^T * scale) where mask) v, the softmax in float32. The cap comes before the mask."""
    B, T, H, E = q_BTHE.shape
    K = k_BSKE.shape[2]
    q_BKGTE = q_BTHE.view(B, T, K, H // K, E).permute(0, 2, 3, 1, 4)
    k_BK1ES = k_BSKE.permute(0, 2, 3, 1)[:, :, None]
    v_BK1SE = v_BSKE.transpose(1, 2)[:, :, None]
    scores = softcap((q_BKGTE @ k_BK1ES).float() * scale, cap)
    scores = scores.masked_fill(~mask_BTS[:, None, None], float("-inf"))
    out_BKGTE = scores.softmax(-1).type_as(v_BSKE) @ v_BK1SE
    return out_BKGTE.permute(0, 3, 1, 2, 4).reshape(B, T, H, E)


def fused_attention(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, mask_BTS: Tensor, scale: float) -> Tensor:
    """The same by scaled_dot_product_attention, which knows no cap."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHE, k_BSKE, v_BSKE))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTS[:, None], scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def causal_mask(positions_BT: Tensor, window: int | None) -> Tensor:
    """Which token (row) may see which (column), by position: none later, none `window` or more back. Bool (B, T, T)."""
    distance_BTT = positions_BT[:, :, None] - positions_BT[:, None, :]
    visible = distance_BTT >= 0
    return visible if window is None else visible & (distance_BTT < window)


class CausalAttention:
    """Attention of whole sequences upon themselves; each layer by its own window."""

    def __init__(self, config: DecoderConfig, positions_BT: Tensor, *, plain: bool = False) -> None:
        self.config = config
        self.plain = plain or config.attn_logit_softcapping is not None
        windows = {config.window(i) for i in range(config.num_hidden_layers)}
        self.masks = {window: causal_mask(positions_BT, window) for window in windows}

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        config, mask = self.config, self.masks[self.config.window(layer)]
        if self.plain:
            cap = config.attn_logit_softcapping
            return plain_attention(q_BTHE, k_BTKE, v_BTKE, mask, config.attention_scale, cap)
        return fused_attention(q_BTHE, k_BTKE, v_BTKE, mask, config.attention_scale)


class DocumentAttention:
    """Attention of documents whose tokens lie in one flat row of N; none sees another.

    places: for each document the index in the row of its tokens, first to last. Documents that begin alike may name the
    same places for what they share: a token's keys and values then serve all of them, its output is computed once for
    one of them, and its gradient is the sum over all. Without sharing, places are the numbers from 0 to N - 1 in order.

    Only attention itself pads: documents of like length are gathered into a rectangle. Raises ValueError for a row
    with a token in no document.
    """

    def __init__(
        self, config: DecoderConfig, places: Sequence[Tensor], *, device: torch.device, plain: bool = False
    ) -> None:
        self.config, self.plain = config, plain or config.attn_logit_softcapping is not None
        self.count = 1 + max(int(place.max()) for place in places)
        groups = _alike([len(place) for place in places])
        rectangles = [
            torch.nn.utils.rnn.pad_sequence([places[i] for i in group], batch_first=True) for group in groups
        ]
        self.shapes = [(len(rectangle), rectangle.shape[1]) for rectangle in rectangles]
        lengths = [torch.tensor([len(places[i]) for i in group]) for group in groups]
        self.gather = torch.cat([rectangle.flatten() for rectangle in rectangles]).to(device)
        self.pick = self._sources(rectangles, lengths).to(device)
        self.repeats = len(self.gather) > self.count
        windows = {config.window(i) for i in range(config.num_hidden_layers)}
        self.masks = {
            (window, length): self._mask(window, length, device)
            for window in windows
            for _, length in self.shapes
        }
        self.added: dict[tuple[int | None, int, torch.dtype], Tensor] = {}

    def _sources(self, rectangles: Sequence[Tensor], lengths: Sequence[Tensor]) -> Tensor:
        """For each token of the row, where in the rectangles, one after another, its output is found."""
        found = torch.full((self.count,), -1)
        begin = 0
        for rectangle, length in zip(rectangles, lengths, strict=True):
            real = torch.arange(rectangle.shape[1]) < length[:, None]
            found[rectangle[real]] = begin + real.flatten().nonzero()[:, 0]
            begin += rectangle.numel()
        if bool((found < 0).any()):
            raise ValueError("a token of the row belongs to no document")
        return found

    def _mask(self, window: int | None, length: int, device: torch.device) -> Tensor | None:
        """The mask of a rectangle, None where being causal says it all."""
        if not self.plain and (window is None or window >= length):
            return None
        return causal_mask(torch.arange(length, device=device)[None], window)

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        window, outs = self.config.window(layer), []
        q, k, v = (take_rows(x[0], self.gather, repeats=self.repeats) for x in (q_BTHE, k_BTKE, v_BTKE))
        begin = 0
        for documents, length in self.shapes:
            end = begin + documents * length
            block = [x[begin:end].view(documents, length, *x.shape[1:]) for x in (q, k, v)]
            outs.append(self._attend(*block, window).flatten(0, 1))
            begin = end
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return take_rows(out, self.pick, repeats=False)[None]

    def _attend(self, q_DTHE: Tensor, k_DTKE: Tensor, v_DTKE: Tensor, window: int | None) -> Tensor:
        length, scale = q_DTHE.shape[1], self.config.attention_scale
        mask_1TT = self.masks[window, length]
        if self.plain:
            assert mask_1TT is not None
            cap = self.config.attn_logit_softcapping
            return plain_attention(q_DTHE, k_DTKE, v_DTKE, mask_1TT, scale, cap)
        if length <= SHORT and q_DTHE.device.type == "cpu" and q_DTHE.requires_grad:
            added = self._added(window, q_DTHE)
            return ShortAttention.apply(q_DTHE, k_DTKE, v_DTKE, added, scale)  # pyright: ignore[reportReturnType]
        q, k, v = (x.transpose(1, 2) for x in (q_DTHE, k_DTKE, v_DTKE))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask_1TT is None else mask_1TT[:, None],
            is_causal=mask_1TT is None, scale=scale, enable_gqa=True,
        )  # fmt: skip
        return out.transpose(1, 2)

    def _added(self, window: int | None, q_DTHE: Tensor) -> Tensor:
        """The mask of a rectangle as numbers to add to its scores; the same one for all layers."""
        key = window, q_DTHE.shape[1], q_DTHE.dtype
        if key not in self.added:
            visible = causal_mask(torch.arange(key[1], device=q_DTHE.device)[None], window)[0]
            self.added[key] = q_DTHE.new_zeros(visible.shape).masked_fill(~visible, float("-inf"))
        return self.added[key]


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Documents in groups, none of which holds one shorter than half of its longest."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or 2 * lengths[i] < lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups


def take_rows(x: Tensor, index: Tensor, *, repeats: bool) -> Tensor:
    """Rows of x by index. Where an index may come more than once (`repeats`), gradients are summed in float32."""
    out = _Rows.apply(x, index, repeats)
    assert isinstance(out, Tensor)
    return out


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, repeats: bool) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.repeats = x.shape, repeats
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        (grad,) = grads
        if not ctx.repeats:
            return grad.new_zeros(ctx.shape).index_copy_(0, index, grad), None, None
        exact = grad.double() if grad.dtype == torch.float64 else grad.float()
        total = exact.new_zeros(ctx.shape).index_add_(0, index, exact)
        return total.to(grad.dtype), None, None
