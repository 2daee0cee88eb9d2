"""Chunked cross-entropy against the plain one, in float64: caps, ignored rows, z-loss, gradients, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.train.loss import LEAST_WIDTH, chunked_cross_entropy

N, D, V = 13, 6, 700


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=random, dtype=torch.float64)
    weight = torch.randn(V, D, generator=random, dtype=torch.float64)
    targets = torch.randint(0, V, (N,), generator=random)
    targets[[1, 4, 5]] = -100
    targets[2], targets[3] = 0, V - 1
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, z_loss: float) -> Tensor:
    """The definition, with all logits at once."""
    logits = hidden @ weight.t()
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    squares = logits.logsumexp(-1)[targets != -100].square().sum()
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") + z_loss * squares


@pytest.mark.parametrize("chunk", [1, N * LEAST_WIDTH, 1 << 20])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_value_and_gradients_are_those_of_the_plain_form(
    chunk: int, softcap: float | None, z_loss: float
) -> None:
    hidden, weight, targets = inputs()
    total, count = chunked_cross_entropy(hidden, weight, targets, softcap=softcap, z_loss=z_loss, chunk=chunk)
    (total / count).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    wanted = dense(hidden, weight, targets, softcap, z_loss)
    (wanted / count).backward()
    assert count == N - 3
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)
    for got, want in zip(found, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets = inputs()
    part = weight[:300].detach().requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return chunked_cross_entropy(h, w, targets.clamp(max=299), softcap=2.0, z_loss=0.01, chunk=1)[0]

    assert torch.autograd.gradcheck(loss, (hidden, part))


def test_rows_that_are_all_ignored_give_zero() -> None:
    hidden, weight, targets = inputs(torch.float32)
    total, count = chunked_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    total.backward()
    assert (float(total.detach()), count) == (0.0, 0)
    assert hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_bfloat16_stays_within_its_rounding(chunk: int) -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    total, _ = chunked_cross_entropy(hidden, weight, targets, softcap=5.0, chunk=chunk)
    total.backward()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    wanted = dense(exact_hidden, exact_weight, targets, 5.0, 0.0)
    wanted.backward()
    torch.testing.assert_close(total.double(), wanted, rtol=0.01, atol=0.0)
    for got, want in ((hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
        assert got is not None and want is not None and got.dtype == torch.bfloat16
        assert float((got.double() - want).norm() / want.norm()) < 0.02


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, targets = inputs(torch.float32)
    frozen = weight.detach()
    chunked_cross_entropy(hidden, frozen, targets)[0].backward()
    assert frozen.grad is None and hidden.grad is not None and bool(hidden.grad.any())


def test_only_a_chunk_of_the_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import ojak.train.loss as module

    widest: list[int] = []
    plain = module._logits

    def watched(hidden: Tensor, part: Tensor, softcap: float | None) -> Tensor:
        widest.append(len(hidden) * len(part))
        return plain(hidden, part, softcap)

    monkeypatch.setattr(module, "_logits", watched)
    hidden, weight, targets = inputs(torch.float32)
    chunked_cross_entropy(hidden, weight, targets, chunk=(N - 3) * 300)[0].backward()
    assert len(widest) == 6 and max(widest) == (N - 3) * 300  # three parts, forward and backward
