"""AdamW and Muon against PyTorch's own and against float64; masters, micro-batches, moving means, schedules."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ojak.train import optimizer as module
from ojak.train.config import OptimizerConfig, ScheduleConfig
from ojak.train.ema import MovingMean
from ojak.train.optimizer import Optimizer, orthogonal
from ojak.train.schedule import rate

STEPS = 6


def weights(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (7, 5), "b.weight": (12, 3), "norm.weight": (9,), "lm_head.weight": (11, 4)}
    return {n: nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for n, shape in shapes.items()}


def gradient(step: int, number: int, weight: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(100 * step + number)
    return torch.randn(weight.shape, generator=random) * (1 + step)


def give(made: dict[str, nn.Parameter], step: int, factor: float = 1.0) -> None:
    for number, weight in enumerate(made.values()):
        weight.grad = (gradient(step, number, weight) * factor).to(weight.dtype)


@pytest.mark.parametrize("piece", [1 << 20, 4])
def test_adamw_is_pytorchs(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    ours, theirs = weights(), weights()
    made = Optimizer(OptimizerConfig(weight_decay=0.1), ours)
    groups: Any = [
        {"params": [w for w in theirs.values() if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in theirs.values() if w.ndim == 1], "weight_decay": 0.0},
    ]
    wanted = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for step in range(STEPS):
        give(ours, step, factor=4.0)
        give(theirs, step)
        made.step(0.01, 1.0, scale=0.25)
        wanted.step()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-6, atol=1e-7)


def test_bfloat16_weights_are_their_masters_rounded() -> None:
    rounded, exact = weights(torch.bfloat16), weights()
    with torch.no_grad():
        for name, weight in exact.items():
            weight.copy_(rounded[name])
    made, wanted = Optimizer(OptimizerConfig(), rounded), Optimizer(OptimizerConfig(), exact)
    for step in range(STEPS):
        give(rounded, step)
        for name, weight in exact.items():
            grad = rounded[name].grad
            assert grad is not None
            weight.grad = grad.float()
        made.step(1e-4, 1.0, 1.0)  # far less than a bfloat16 weight can tell
        wanted.step(1e-4, 1.0, 1.0)
    for slot in made.slots:
        assert torch.equal(slot.master, exact[slot.name])
        assert torch.equal(rounded[slot.name], slot.master.bfloat16())
        assert slot.parameter.grad is None


def test_micro_batches_are_summed_in_float32() -> None:
    made = weights(torch.bfloat16)
    held = Optimizer(OptimizerConfig(), made)
    give(made, 0, factor=256.0)
    for _ in range(4):
        held.gather()
        give(made, 1, factor=1 / 16)  # lost, if it were added to the first in bfloat16
    held.finish()
    big, small = ([gradient(step, n, w) for n, w in enumerate(made.values())] for step in (0, 1))
    for slot, first, rest in zip(held.slots, big, small, strict=True):
        wanted = (first * 256).bfloat16().float() + 4 * (rest / 16).bfloat16().float()
        assert slot.gradient is not None
        torch.testing.assert_close(slot.gradient, wanted, rtol=1e-6, atol=1e-6)
    whole = sum(
        float(slot.gradient.double().square().sum()) for slot in held.slots if slot.gradient is not None
    )
    assert held.square_norm() == pytest.approx(whole, rel=1e-5)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    made = weights()
    held = Optimizer(OptimizerConfig(), made)
    give(made, 0)
    assert math.isfinite(held.square_norm())
    made["b.weight"].grad[3, 1] = float("inf")  # pyright: ignore[reportOptionalSubscript]
    assert not math.isfinite(held.square_norm())


def test_muon_is_pytorchs_on_matrices_and_adamw_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs_alone = importlib.import_module("torch.optim._muon")._zeropower_via_newtonschulz
    monkeypatch.setattr(module, "orthogonal", lambda x: theirs_alone(x, module.NEWTON_SCHULZ, 5, 1e-7))
    ours, theirs, tables = weights(), weights(), weights()
    made = Optimizer(OptimizerConfig(name="muon", weight_decay=0.1, muon_lr=0.02), ours)
    inner = [theirs[name] for name in ("a.weight", "b.weight")]
    wanted = torch.optim.Muon(inner, lr=0.01, weight_decay=0.1, momentum=0.95)
    others = Optimizer(
        OptimizerConfig(weight_decay=0.1), {n: tables[n] for n in ("norm.weight", "lm_head.weight")}
    )
    for step in range(STEPS):
        for each in (ours, theirs, tables):
            give(each, step)
        made.step(0.003, 0.5, 1.0)
        wanted.step()
        others.step(0.003, 0.5, 1.0)
    for name in ours:
        expected = theirs[name] if name in ("a.weight", "b.weight") else tables[name]
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 6), (16, 5), (5, 16)])
def test_an_update_is_made_orthogonal(shape: tuple[int, int]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(update, full_matrices=False)
    found = orthogonal(update)
    singular = torch.linalg.svdvals(found)
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.25
    inner = u.t() @ found @ vt.t()  # U and V are kept: what is left is diagonal
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-8)
    assert (
        float((orthogonal(update.float()).double() - found).abs().max()) < 0.08
    )  # bfloat16, five times over


def test_a_moving_mean_is_its_definition() -> None:
    made = weights()
    held = Optimizer(OptimizerConfig(), made)
    mean = MovingMean(0.7, held)
    wanted = made["a.weight"].detach().double()
    for step in range(STEPS):
        give(made, step)
        held.step(0.1, 1.0, 1.0)
        mean.update()
        decay = min(0.7, (2 + step) / (11 + step))
        wanted = decay * wanted + (1 - decay) * made["a.weight"].detach().double()
    torch.testing.assert_close(mean.tensors()["ema.a.weight"].double(), wanted, rtol=1e-6, atol=1e-6)
    mean.put()
    torch.testing.assert_close(made["a.weight"].detach().double(), wanted, rtol=1e-6, atol=1e-6)


def curve(name: str, steps: int, **changes: Any) -> list[float]:
    config = ScheduleConfig(name=name, **changes)  # pyright: ignore[reportArgumentType]
    return [rate(config, step, steps) for step in range(steps)]


def test_schedules_rise_stay_and_fall() -> None:
    cosine = curve("cosine", 100, warmup=10, final=0.1)
    assert cosine[0] == pytest.approx(1 / 11) and cosine[10] > 0.99 and cosine[-1] == pytest.approx(0.1)
    assert cosine[54] == pytest.approx(0.55, abs=0.01)
    linear = curve("linear", 100, warmup=0.1, final=0)
    assert linear[:11] == sorted(linear[:11]) and linear[10:] == sorted(linear[10:], reverse=True)
    assert linear[54] == pytest.approx(0.5) and linear[-1] == 0
    wsd = curve("wsd", 100, warmup=10, decay=0.2, final=0)
    assert wsd[10:80] == [1.0] * 70 and wsd[80] < 1 and wsd[-1] == 0
    assert curve("constant", 5, warmup=0) == [1.0] * 5


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_run_has_a_rate_above_zero(name: str, steps: int) -> None:
    found = curve(name, steps, warmup=50)
    assert all(0 < share <= 1 for share in found)
