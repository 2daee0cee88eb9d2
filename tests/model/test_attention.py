"""Attention over whole sequences against a brute-force computation in float64, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from ojak.model.attention import CausalAttention, causal_mask, fused_attention, plain_attention, softcap
from ojak.model.config import config_from_hf

B, T, H, K, E = 2, 23, 6, 3, 8
SCALE = 0.31


def inputs(size: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = (B, T, H, E), (B, T, K, E), (B, T, K, E)
    q, k, v = (torch.randn(shape, generator=random) * size for shape in shapes)
    return q, k, v


def brute_force(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, cap: float | None, scale: float = SCALE
) -> np.ndarray:
    """Each head of each token by itself, from the definition."""
    queries, keys, values = (x.double().numpy() for x in (q, k, v))
    out = np.zeros(queries.shape)
    for b, t, h in np.ndindex(queries.shape[:3]):
        head = h // (queries.shape[2] // keys.shape[2])
        first = 0 if window is None else max(0, t - window + 1)
        scores = keys[b, first : t + 1, head] @ queries[b, t, h] * scale
        if cap is not None:
            scores = cap * np.tanh(scores / cap)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ values[b, first : t + 1, head] / weights.sum()
    return out


@pytest.mark.parametrize("window", [None, 1, 5, T, T + 9])
@pytest.mark.parametrize("cap", [None, 1.5, 50.0])
def test_plain_attention_is_what_its_definition_says(window: int | None, cap: float | None) -> None:
    q, k, v = inputs()
    mask_BTT = causal_mask(torch.arange(T).expand(B, T), window)
    got = plain_attention(q, k, v, mask_BTT, SCALE, cap)
    np.testing.assert_allclose(got.numpy(), brute_force(q, k, v, window, cap), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_agrees_with_the_plain_one(window: int | None, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs())
    mask_BTT = causal_mask(torch.arange(T).expand(B, T), window)
    fused = fused_attention(q, k, v, mask_BTT, SCALE)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        fused, plain_attention(q, k, v, mask_BTT, SCALE, None), rtol=tolerance, atol=tolerance
    )


def test_the_cap_is_reached_and_comes_before_the_mask() -> None:
    """Capped scores lie within the cap, so no visible token is quite without weight; hidden ones are."""
    q, k, v = inputs(40.0)
    mask_BTT = causal_mask(torch.arange(T).expand(B, T), None)
    capped = plain_attention(q, k, v, mask_BTT, SCALE, 0.5)
    np.testing.assert_allclose(capped.numpy(), brute_force(q, k, v, None, 0.5), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(capped, plain_attention(q, k, v, mask_BTT, SCALE, None), atol=1.0)
    v[:, -1] += 1000.0
    assert torch.equal(plain_attention(q, k, v, mask_BTT, SCALE, 0.5)[:, :-1], capped[:, :-1])


def test_softcap() -> None:
    scores = torch.linspace(-200, 200, 41)
    assert torch.equal(softcap(scores, None), scores)
    np.testing.assert_allclose(softcap(scores, 50.0).numpy(), 50 * np.tanh(scores.numpy() / 50), rtol=1e-6)


def test_masks_go_by_position() -> None:
    positions_BT = torch.tensor([[4, 5, 9, 10]])
    assert causal_mask(positions_BT, 5)[0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]
    assert causal_mask(positions_BT, None)[0].equal(torch.ones(4, 4).tril().bool())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama", "mistral"])
def test_each_layer_has_its_own_window_and_the_models_scale(family: str, plain: bool) -> None:
    config = config_from_hf(
        tiny.hf_config(family, sliding_window=4, num_attention_heads=H, num_key_value_heads=K)
    )
    q, k, v = inputs()
    attend = CausalAttention(config, torch.arange(T).expand(B, T), plain=plain)
    for layer in range(config.num_hidden_layers):
        window, cap = config.window(layer), config.attn_logit_softcapping
        wanted = brute_force(q, k, v, window, cap, config.attention_scale)
        np.testing.assert_allclose(attend(layer, q, k, v).numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert config.window(0) == (None if family == "llama" else 4)
