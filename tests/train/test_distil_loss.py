"""Distillation losses against their definitions with all logits in float64: gradients, tails, caps, memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.errors import UsageError
from ojak.train import loss as module
from ojak.train.distil_loss import KINDS, DenseTeacher, Kind, SparseTeacher, Teacher, distil_loss
from ojak.train.live_bytes import Peaks
from ojak.train.loss import token_log_probs, weighted_log_probs

N, D, E, V = 9, 6, 4, 53
IGNORED_ROWS = [1, 4]
KEPT = [i for i in range(N) if i not in IGNORED_ROWS]
TEACHER_CAP = 2.5
DIVERGENCES: tuple[Kind, ...] = ("forward-kl", "reverse-kl", "jsd")


def inputs(dtype: torch.dtype = torch.float64, width: int = V) -> tuple[Tensor, Tensor, Tensor, DenseTeacher]:
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)  # noqa: E731
    targets = torch.randint(0, width, (N,), generator=random)
    targets[IGNORED_ROWS] = -100
    teacher = DenseTeacher(draw(N, E), draw(width, E) * 2, TEACHER_CAP)
    return draw(N, D).requires_grad_(), draw(width, D).requires_grad_(), targets, teacher


def capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


def log_p(teacher: DenseTeacher, temperature: float) -> Tensor:
    logits = teacher.hidden_ND.double() @ teacher.weight_VD.double().t()
    return (capped(logits, teacher.softcap) / temperature).log_softmax(-1)


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of each row of log-probabilities."""
    return F.kl_div(b, a, reduction="none", log_target=True).sum(-1)


def divergence(p: Tensor, q: Tensor, kind: Kind, beta: float) -> Tensor:
    """Of each row, from log-probabilities; jsd as TRL's `GKDTrainer.generalized_jsd_loss` defines it."""
    if kind == "dpkd":
        t, s = p.argmax(-1, keepdim=True), q.argmax(-1, keepdim=True)
        ratio = q - p
        return -F.logsigmoid(beta * (ratio.gather(1, t) - ratio.gather(1, s)))[:, 0]
    if kind == "forward-kl" or (kind == "jsd" and beta == 0):
        return kl(p, q)
    if kind == "reverse-kl" or (kind == "jsd" and beta == 1):
        return kl(q, p)
    m = torch.logsumexp(torch.stack([q + math.log(1 - beta), p + math.log(beta)]), 0)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def in_buckets(log_probs: Tensor, indices: Tensor) -> Tensor:
    """log-probabilities of the tokens in `indices`, and of all others together."""
    outside = log_probs.scatter(1, indices.long(), -math.inf)
    return torch.cat([log_probs.gather(1, indices.long()), outside.logsumexp(-1, keepdim=True)], 1)


def cached(teacher: DenseTeacher, k: int, temperature: float = 1.0) -> SparseTeacher:
    p = log_p(teacher, temperature)
    indices = p.topk(k).indices[:, torch.randperm(k, generator=torch.Generator().manual_seed(3))]
    buckets = in_buckets(p, indices)
    return SparseTeacher(indices.int(), buckets[:, :-1], buckets[:, -1])


Settings = dict[str, Any]


def definition(
    hidden: Tensor, weight: Tensor, targets: Tensor, teacher: DenseTeacher, settings: Settings, k: int | None = None
) -> Tensor:  # fmt: skip
    """The sum over rows that count, with all logits at once; by K + 1 buckets where `k` is given."""
    T, cap = settings.get("temperature", 1.0), settings.get("softcap")
    logits = capped(hidden @ weight.t(), cap)
    p, q = log_p(teacher, T), (logits / T).log_softmax(-1)
    if k is not None:
        indices = p.topk(k).indices
        p, q = in_buckets(p, indices), in_buckets(q, indices)
    kind, beta, share = settings["kind"], settings.get("beta", 0.5), settings.get("ce_weight", 0.0)
    own = divergence(p, q, kind, beta)[targets != -100].sum()
    return (1 - share) * own + share * F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


def gradients(total: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    return [total.detach(), *torch.autograd.grad(total / 3, (hidden, weight))]


def check(teacher: Teacher, settings: Settings, k: int | None = None, **options: Any) -> None:
    """Value and gradients are those of the definition."""
    hidden, weight, targets, dense = inputs()
    total, count = distil_loss(hidden, weight, targets, teacher, **settings, **options)
    assert count == len(KEPT)
    wanted = definition(hidden, weight, targets, dense, settings, k)
    for got, want in zip(gradients(total, hidden, weight), gradients(wanted, hidden, weight), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


CASES: list[Settings] = [
    {},
    {"temperature": 2.0, "softcap": 3.0},
    {"ce_weight": 0.3, "softcap": 3.0},
    {"ce_weight": 0.3, "temperature": 0.7},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 2 * 5 * V * 8, None])  # a row, five rows of both, all
def test_an_online_teacher(kind: Kind, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 2 * V)
    for case in CASES:
        check(inputs()[3], case | {"kind": kind, "beta": 0.3}, chunk=chunk)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 5, V - 1, V])
def test_a_cached_teacher(kind: Kind, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The K likeliest tokens and one bucket for the rest, against the same with all logits. K = V is dense (test 10)."""
    monkeypatch.setattr(module, "PIECE", 2 * V)
    dense = inputs()[3]
    for case in CASES:
        teacher = cached(dense, k, case.get("temperature", 1.0))
        check(teacher, case | {"kind": kind, "beta": 0.3}, None if k == V else k, chunk=3 * V * 8)


@pytest.mark.parametrize(("beta", "same"), [(0.0, "forward-kl"), (1.0, "reverse-kl")])
def test_the_ends_of_jsd(beta: float, same: Kind) -> None:
    hidden, weight, targets, dense = inputs()
    both: list[Settings] = [{"kind": "jsd", "beta": beta}, {"kind": same}]
    for teacher in (dense, cached(dense, 4)):
        mixed, plain = (
            gradients(distil_loss(hidden, weight, targets, teacher, **settings)[0], hidden, weight)
            for settings in both
        )
        assert all(torch.equal(a, b) for a, b in zip(mixed, plain, strict=True))


def test_two_tokens_by_hand() -> None:
    """p = (1/4, 3/4), q = (1/2, 1/2); the slope by the first logit is q - p, and q (log q/p - KL)."""
    hidden = torch.zeros(1, 1, dtype=torch.float64).requires_grad_()
    weight, at = torch.eye(2, dtype=torch.float64)[:, :1].contiguous(), torch.tensor([1])
    teacher = SparseTeacher(torch.tensor([[1]]), torch.tensor([[0.75]]).log(), torch.tensor([0.25]).log())
    middle = math.log(3) / 2
    expected: list[tuple[Settings, float, float]] = [
        ({"kind": "forward-kl"}, 0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.25),
        ({"kind": "reverse-kl"}, math.log(2) - middle, math.log(3) / 4),
        ({"kind": "forward-kl", "ce_weight": 1.0}, math.log(2), 0.5),
    ]
    for settings, value, slope in expected:
        total, _ = distil_loss(hidden, weight, at, teacher, **settings)
        (found,) = torch.autograd.grad(total, hidden)
        assert float(total.detach()) == pytest.approx(value, abs=1e-7)
        assert float(found) == pytest.approx(slope, abs=1e-7)


def test_dpkd_as_released_is_log_2_where_both_argmaxes_agree() -> None:
    """Trap table: the constant log 2, with zero gradient; a student that is its teacher has nothing else."""
    hidden, weight, targets, _ = inputs(torch.float32)
    same = DenseTeacher(hidden.detach() * 3, weight.detach())
    total, count = distil_loss(hidden, weight, targets, same, kind="dpkd", beta=0.1)
    value, *grads = gradients(total, hidden, weight)
    assert float(value) == pytest.approx(count * math.log(2), rel=1e-6)
    assert not any(grad.any() for grad in grads)


def test_rows_that_are_all_ignored_give_zero() -> None:
    hidden, weight, targets, dense = inputs(torch.float32)
    for teacher in (dense, cached(dense, 4)):
        total, count = distil_loss(hidden, weight, torch.full_like(targets, -100), teacher, ce_weight=0.5)
        value, *grads = gradients(total, hidden, weight)
        assert (float(value), count) == (0.0, 0)
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparse", [False, True])
def test_rounded_numbers_stay_within_their_rounding(dtype: torch.dtype, sparse: bool) -> None:
    hidden, weight, targets, dense = inputs(dtype)
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    within = 1e-5 if dtype == torch.float32 else 0.02
    for kind in DIVERGENCES:
        settings: Settings = {"kind": kind, "ce_weight": 0.3, "softcap": 4.0}
        teacher = cached(dense, 7) if sparse else dense
        wanted = definition(h, w, targets, dense, settings, 7 if sparse else None)
        total, _ = distil_loss(hidden, weight, targets, teacher, **settings, chunk=600)
        assert total.dtype == torch.float32
        for got, want in zip(gradients(total, hidden, weight), gradients(wanted, h, w), strict=True):
            assert float((got.double() - want).norm() / want.norm()) < within, kind


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_certain_teachers_and_far_logits_give_finite_numbers(kind: Kind) -> None:
    """A tail that rounds to nothing, tokens without any probability, logits far beyond what float32 can exponentiate."""
    hidden, weight, targets, dense = inputs(torch.float32)
    far = (hidden * 300).detach().requires_grad_()
    certain = cached(dense, 4)
    none = torch.full((N, 3), -math.inf)
    sharp = SparseTeacher(
        certain.indices_NK, torch.cat([torch.zeros(N, 1), none], 1), torch.full((N,), -math.inf)
    )
    for teacher in (DenseTeacher(dense.hidden_ND * 300, dense.weight_VD), sharp):
        total, _ = distil_loss(far, weight, targets, teacher, kind=kind)
        assert all(bool(x.isfinite().all()) for x in gradients(total, far, weight))


@pytest.mark.parametrize("sparse", [False, True])
def test_memory_does_not_grow_with_the_tokens(sparse: bool) -> None:
    """Beyond the gradients of hidden states, the peak is that of a chunk, however many tokens there are."""
    width, taken = 700, []
    for times in (2, 20):
        hidden, weight, targets, dense = inputs(torch.float32, width)
        rows = DenseTeacher(dense.hidden_ND.repeat(times, 1), dense.weight_VD, dense.softcap)
        teacher = cached(rows, 4) if sparse else rows
        many = hidden.detach().repeat(times, 1).requires_grad_()
        with Peaks(torch.device("cpu")) as peaks:
            total, _ = distil_loss(many, weight, targets.repeat(times), teacher, chunk=8 * width * 4)
            total.backward()
        taken.append(peaks.found[0] - 3 * many.nbytes)
    per_token = 4 * (4 * 3 + 3) * 2  # a cached teacher's own numbers, of the rows that count
    assert taken[1] - taken[0] < 18 * N * (per_token if sparse else 8 * E) + 4096
    assert taken[0] < 12 * 8 * width * 4


def test_a_teacher_that_does_not_fit_is_refused() -> None:
    hidden, weight, targets, dense = inputs()
    other = DenseTeacher(dense.hidden_ND, dense.weight_VD[:-1])
    refused: list[tuple[Teacher, Settings, str]] = [
        (other, {}, "vocabularies of different sizes"),
        (cached(dense, 4), {"kind": "dpkd"}, "needs the teacher itself"),
        (dense, {"kind": "backward-kl"}, "no loss"),
        (dense, {"temperature": 0.0}, "temperature"),
        (dense, {"kind": "jsd", "beta": 1.5}, "beta"),
        (dense, {"ce_weight": -0.1}, "cross-entropy"),
    ]
    for teacher, settings, message in refused:
        with pytest.raises(UsageError, match=message):
            distil_loss(hidden, weight, targets, teacher, **settings)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_log_probabilities_of_tokens_and_a_weighted_sum_of_them(temperature: float) -> None:
    hidden, weight, targets, _ = inputs()
    targets, factors = targets.clamp(min=0), torch.linspace(-2, 3, N, dtype=torch.float64)
    logits = capped(hidden @ weight.t(), 3.0) / temperature
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    found = token_log_probs(hidden, weight, targets, softcap=3.0, temperature=temperature, chunk=4 * V * 8)
    torch.testing.assert_close(found, log_probs.detach(), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    total = weighted_log_probs(
        hidden, weight, targets, factors, softcap=3.0, temperature=temperature, chunk=4 * V * 8
    )
    wanted = gradients((factors * log_probs).sum(), hidden, weight)
    for got, want in zip(gradients(total, hidden, weight), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
