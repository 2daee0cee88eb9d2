"""Attention over whole sequences: a plain form that says what is meant, and PyTorch's fused one where it can serve.

Both take q (B, T, H, E) and k, v (B, T, K, E) and give (B, T, H, E). The plain form is the reference, and the only one
that caps scores; the fused one must agree with it (tests/model/test_attention.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ojak.model.decoder import DecoderConfig


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
