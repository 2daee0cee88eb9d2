"""Weights laid out for generation: the same products, and a decoder that can still be saved."""

from __future__ import annotations

import pytest
import tiny
import torch

from ojak.model.fuse import JoinedLinear, can_lay_out, fuse, weight_bytes

IDS_BT = torch.randint(0, tiny.VOCAB, (2, 20), generator=torch.Generator().manual_seed(1))
FAMILIES = {**{family: {} for family in tiny.FAMILIES}, "llama_bias": {"attention_bias": True}}


def decoder(case: str, dtype: torch.dtype, seed: int = 0) -> tiny.Decoder:
    return tiny.decoder(case.removesuffix("_bias"), dtype=dtype, seed=seed, **FAMILIES[case])


@pytest.mark.parametrize("case", FAMILIES)
def test_in_float32_the_fused_decoder_says_the_same(case: str) -> None:
    plain, fused = decoder(case, torch.float32), decoder(case, torch.float32)
    fuse(fused)
    assert fused.model.layers[0].get_submodule("self_attn.fused_qkv") is not None
    torch.testing.assert_close(fused(IDS_BT), plain(IDS_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FAMILIES)
def test_in_bf16_the_fused_decoder_is_as_near_to_float32_as_the_plain_one(case: str) -> None:
    plain, fused = decoder(case, torch.bfloat16), decoder(case, torch.bfloat16)
    exact = decoder(case, torch.bfloat16).float()(IDS_BT)
    fuse(fused)
    errors = [(model(IDS_BT).float() - exact).abs().mean() / exact.abs().mean() for model in (plain, fused)]
    assert errors[1] < errors[0] * 1.5 + 1e-3
    assert errors[1] < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", FAMILIES)
def test_the_parameters_stay_as_they_were(case: str, dtype: torch.dtype) -> None:
    """A model is saved as it was loaded, whether it has generated or not."""
    plain, fused = decoder(case, dtype), decoder(case, dtype)
    fuse(fused)
    before, after = plain.state_dict(), fused.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in fused.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_time_changes_nothing(dtype: torch.dtype) -> None:
    fused = decoder("llama", dtype)
    fuse(fused)
    once, module = fused(IDS_BT), fused.model.layers[0].get_submodule("self_attn.fused_qkv")
    fuse(fused)
    assert fused.model.layers[0].get_submodule("self_attn.fused_qkv") is module
    assert torch.equal(fused(IDS_BT), once)


@pytest.mark.parametrize("laid_out", [False, True])
def test_joined_layers_give_each_its_own_part(laid_out: bool) -> None:
    if laid_out and not can_lay_out(decoder("llama", torch.bfloat16)):
        pytest.skip("this machine's PyTorch lays nothing out")
    random = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(24, width).bfloat16().requires_grad_(False) for width in (5, 16, 1)]
    for layer in layers:
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=random))
    joined = JoinedLinear(layers, laid_out=laid_out)
    x = torch.randn(7, 3, 24, generator=random).bfloat16()
    for got, layer in zip(joined(x).split((5, 16, 1), -1), layers, strict=True):
        torch.testing.assert_close(got, layer(x), rtol=0.02, atol=0.02)


def test_only_bf16_on_a_cpu_is_laid_out() -> None:
    assert not can_lay_out(decoder("llama", torch.float32))
    with torch.device("meta"):
        assert not can_lay_out(tiny.Decoder(decoder("llama", torch.float32).config).bfloat16())


def test_bytes_of_the_second_copy() -> None:
    tied = decoder("qwen2", torch.bfloat16)
    linear = sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in tied.modules()
                 if isinstance(m, torch.nn.Linear))  # fmt: skip
    assert weight_bytes(tied) == 2 * linear
