"""Laid-out and joined products bit for bit: what generation runs is what training and a saved model run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from ojak.model import checkpoint
from ojak.model.fuse import JoinedLinear, SingleLinear, can_lay_out, fuse, lay_out
from ojak.model.load import from_source

IDS_BT = torch.randint(0, tiny.VOCAB, (2, 19), generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def _needs_layout() -> None:
    if not can_lay_out(tiny.decoder("llama", dtype=torch.bfloat16)):
        pytest.skip("this machine's PyTorch lays nothing out")


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    random = torch.Generator().manual_seed(outputs)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4, 32, 256, 300])
def test_products_do_not_change_by_a_bit(bias: bool, count: int) -> None:
    layers = [linear(576, width, bias=bias) for width in (192, 64, 80)]
    x = torch.randn(1, count, 576, generator=torch.Generator().manual_seed(count)).bfloat16()
    for parts in (
        JoinedLinear(layers, laid_out=True)(x).split((192, 64, 80), -1),
        [SingleLinear(a, laid_out=True)(x) for a in layers],
    ):
        assert all(torch.equal(part, layer(x)) for part, layer in zip(parts, layers, strict=True))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_do_not_change_by_a_bit_also_once_saved(family: str, tmp_path: Path) -> None:
    model = tiny.model(family, dtype=torch.bfloat16)
    plain = model.decoder(IDS_BT)
    fuse(model.decoder)
    assert isinstance(model.decoder.lm_head, SingleLinear)
    assert torch.equal(model.decoder(IDS_BT), plain)
    again = from_source(checkpoint.read(model.save(tmp_path / "saved")), torch.bfloat16, "cpu")
    assert torch.equal(again.decoder(IDS_BT), plain)


def test_a_layout_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ojak.model.fuse.lay_out", lambda weight: lay_out(weight.flip(0)))
    assert not can_lay_out(tiny.decoder("llama", dtype=torch.bfloat16))


def test_plain_products_stay_where_the_operators_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Tensor) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr("ojak.model.fuse.lay_out", missing)
    decoder = tiny.decoder("llama", dtype=torch.bfloat16)
    fuse(decoder)
    assert not isinstance(decoder.lm_head, SingleLinear)
    assert decoder(IDS_BT).isfinite().all()
