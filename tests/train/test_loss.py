"""Chunked cross-entropy against the plain one, in float64: caps, ignored rows, z-loss, gradients, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.train import loss as module
from ojak.train.live_bytes import Peaks
from ojak.train.loss import chunked_cross_entropy

N, D, V = 13, 6, 700
IGNORED_ROWS = [1, 4, 5]
COUNT = N - len(IGNORED_ROWS)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=random, dtype=torch.float64)
    weight = torch.randn(V, D, generator=random, dtype=torch.float64)
    targets = torch.randint(0, V, (N,), generator=random)
    targets[IGNORED_ROWS] = -100
    targets[2], targets[3] = 0, V - 1
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, z_loss: float) -> Tensor:
    """The definition, with all logits at once."""
    logits = hidden @ weight.t()
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    squares = logits.logsumexp(-1)[targets != -100].square().sum()
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") + z_loss * squares


def exact(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of the definition in float64, for the same rounded inputs."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    wanted = dense(h, w, targets, softcap, 0.0)
    wanted.backward()
    assert h.grad is not None and w.grad is not None
    return wanted.detach(), h.grad, w.grad


def rows(count: int, dtype: torch.dtype = torch.float64) -> int:
    """Bytes of the logits of so many rows."""
    return count * V * dtype.itemsize


@pytest.mark.parametrize("chunk", [1, rows(1), rows(3), rows(COUNT) - 1, rows(COUNT), None])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_value_and_gradients_are_those_of_the_plain_form(
    chunk: int | None, softcap: float | None, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 2 * V)  # slopes of two rows at once
    hidden, weight, targets = inputs()
    total, count = chunked_cross_entropy(hidden, weight, targets, softcap=softcap, z_loss=z_loss, chunk=chunk)
    (total / count).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    wanted = dense(hidden, weight, targets, softcap, z_loss)
    (wanted / count).backward()
    assert count == COUNT
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)
    for got, want in zip(found, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets = inputs()
    part = weight[:300].detach().requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return chunked_cross_entropy(h, w, targets.clamp(max=299), softcap=2.0, z_loss=0.01)[0]

    assert torch.autograd.gradcheck(loss, (hidden, part))


def test_rows_that_are_all_ignored_give_zero() -> None:
    hidden, weight, targets = inputs(torch.float32)
    total, count = chunked_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    total.backward()
    assert (float(total.detach()), count) == (0.0, 0)
    assert hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_single_row(softcap: float | None) -> None:
    hidden, weight, targets = inputs()
    one, target = hidden[3:4].detach().requires_grad_(), targets[3:4]
    total, count = chunked_cross_entropy(one, weight, target, softcap=softcap, chunk=1)
    total.backward()
    value, hidden_grad, weight_grad = exact(one, weight, target, softcap)
    assert count == 1
    for got, want in ((total.detach(), value), (one.grad, hidden_grad), (weight.grad, weight_grad)):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, rows(4, torch.bfloat16), None])
@pytest.mark.parametrize("panel", [256, 1 << 12])
def test_bfloat16_stays_within_its_rounding(
    chunk: int | None, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PANEL", panel)
    hidden, weight, targets = inputs(torch.bfloat16)
    total, count = chunked_cross_entropy(hidden, weight, targets, softcap=5.0, chunk=chunk)
    (total / count).backward()
    value, hidden_grad, weight_grad = exact(hidden, weight, targets, 5.0)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.detach().double(), value, rtol=0.01, atol=0.0)
    for got, want in ((hidden.grad, hidden_grad), (weight.grad, weight_grad)):
        assert got is not None and got.dtype == torch.bfloat16
        assert float((got.double() * count - want).norm() / want.norm()) < 0.01


def test_large_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight, targets = inputs(torch.float32)
    far = (hidden * 200).detach().requires_grad_()
    total, _ = chunked_cross_entropy(far, weight, targets, chunk=rows(3, torch.float32))
    total.backward()
    value, hidden_grad, weight_grad = exact(far, weight, targets, None)
    torch.testing.assert_close(total.detach().double(), value, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(far.grad, hidden_grad.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weight.grad, weight_grad.float(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("chunk", [1, None])
def test_a_frozen_output_layer_gets_no_gradient(chunk: int | None) -> None:
    hidden, weight, targets = inputs()
    frozen = weight.detach()
    chunked_cross_entropy(hidden, frozen, targets, chunk=chunk)[0].backward()
    _, wanted, _ = exact(hidden, weight, targets, None)
    assert frozen.grad is None
    torch.testing.assert_close(hidden.grad, wanted, rtol=1e-9, atol=1e-11)


def test_without_gradients_the_value_is_the_same_and_no_slope_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets = inputs(torch.float32)
    learnt = chunked_cross_entropy(hidden, weight, targets, chunk=rows(4, torch.float32))[0].detach()
    monkeypatch.setattr(module, "_added", None)
    with torch.no_grad(), Peaks(torch.device("cpu")) as peaks:
        measured, _ = chunked_cross_entropy(hidden, weight, targets, chunk=rows(4, torch.float32))
    assert torch.equal(measured, learnt)
    assert peaks.found[0] < 2 * rows(4, torch.float32) + N * D * 4 + 4096


def test_the_sum_and_the_gradient_in_bfloat16_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several chunks: the sum with the logits, then the sum with the gradient, never all three."""
    monkeypatch.setattr(module, "PIECE", 1 << 16)
    monkeypatch.setattr(module, "PANEL", 1 << 8)
    tokens, width, rows = 16_384, 64, 64
    hidden = torch.randn(3 * rows, width).bfloat16().requires_grad_()
    weight = torch.randn(tokens, width).bfloat16().requires_grad_()
    targets, logits = torch.zeros(3 * rows, dtype=torch.int64), rows * tokens * 2
    with Peaks(torch.device("cpu")) as peaks:
        total, _ = chunked_cross_entropy(hidden, weight, targets, chunk=logits)
        total.backward()
    piece = module.PIECE * 4 + module.PANEL * width * 8
    assert peaks.found[0] < 2 * weight.nbytes + max(logits, weight.nbytes) + 2 * piece
    assert weight.grad is not None and weight.grad.untyped_storage().nbytes() == weight.nbytes


def test_several_chunks_give_their_gradients_once() -> None:
    hidden, weight, targets = inputs(torch.float32)
    total, _ = chunked_cross_entropy(hidden, weight, targets, chunk=1)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be asked for once"):
        total.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_tokens(dtype: torch.dtype) -> None:
    """What is beyond the gradients is bounded by the chunk, however many rows there are."""
    taken: list[int] = []
    for times in (2, 20):
        hidden, weight, targets = inputs(dtype)
        many = hidden.detach().repeat(times, 1).requires_grad_()
        with Peaks(torch.device("cpu")) as peaks:
            total, _ = chunked_cross_entropy(many, weight, targets.repeat(times), chunk=rows(4, dtype))
            total.backward()
        taken.append(peaks.found[0] - 3 * many.nbytes)
    assert taken[1] - taken[0] < 0.02 * rows(20 * COUNT, dtype)
