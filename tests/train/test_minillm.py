"""MiniLLM and DPKD on answers: against all answers there are, against known losses, with the engine that draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import batch_maker
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.errors import UsageError
from ojak.model.decoder import Decoder
from ojak.model.load import Model
from ojak.train.batches import Batch
from ojak.train.distil_loss import DenseTeacher, distil_loss
from ojak.train.dpkd import DPKD
from ojak.train.live import Answer, LiveSampler, Prompt, answer_batch
from ojak.train.live_mix import Mix
from ojak.train.minillm import MiniLLM, importance
from ojak.train.objectives import Loss, NextToken

Ids = tuple[int, ...]
VOCAB, END, LONGEST = 4, 0, 3
OWN = NextToken()
PROMPT: Ids = (1, 2, 2, 1)


def small(seed: int, family: str = "gemma2", vocabulary: int = VOCAB) -> Decoder:
    """A layer, in float64, with caps."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
    }
    made = tiny.decoder(family, seed=seed, scale=0.6, **sizes)
    return made.to(torch.float64).requires_grad_(True)


def given(answers: Sequence[Ids], *, alpha: float = 0.0, temperature: float = 1.0) -> Any:
    """A sampler that writes these."""

    def sample(prompts: Sequence[Prompt], *, epoch: int, samples: int = 1) -> list[Answer]:
        return [Answer(p, 0, ids, "", True) for p, ids in zip(prompts, answers, strict=bool(prompts))]

    mix = SimpleNamespace(alpha=alpha) if alpha else None
    return SimpleNamespace(sample=sample, mix=mix, sampling=SimpleNamespace(temperature=temperature))


def asked(learnt: Sequence[int], prompts: Sequence[Ids] = ()) -> Batch:
    """A row for each number: a prompt, and so many learnt tokens."""
    rows = [([*PROMPT, *[2] * n], [False] * len(PROMPT) + [True] * n) for n in learnt]
    if prompts:
        rows = [([*p, *[2] * n], [False] * len(p) + [True] * n) for p, n in zip(prompts, learnt, strict=True)]
    return replace(batch_maker.packed(rows), rows=tuple(range(len(rows))))


def log_probs(decoder: Decoder, answer: Ids, temperature: float = 1.0) -> Tensor:
    """The log-probabilities of all tokens at each place of an answer (T, V), with their graph."""
    logits = decoder(torch.tensor([[*PROMPT, *answer]]))[0, len(PROMPT) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def of_tokens(table: Tensor, answer: Ids) -> Tensor:
    return table.gather(1, torch.tensor(answer)[:, None])[:, 0]


def gradients(total: Tensor, decoder: Decoder) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(decoder.parameters())))


def check_equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Norms and attention work in float32, however answers are laid out."""
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6 * max(1.0, float(want.abs().max())))


def all_answers(vocabulary: int) -> Iterator[Ids]:
    """Every answer: what ends, and what is cut at LONGEST."""
    for length in range(1, LONGEST + 1):
        for ids in product(range(vocabulary), repeat=length):
            if END not in ids[:-1] and (ids[-1] == END or length == LONGEST):
                yield ids


@pytest.mark.parametrize("single_step", [True, False])
def test_the_mean_gradient_over_all_answers_is_that_of_the_reverse_kl(single_step: bool) -> None:
    """By brute force over 15 answers, without what trades bias for variance (lengths, clip, a single token's weight)."""
    student, teacher = small(0, vocabulary=3), small(1, vocabulary=3).requires_grad_(False)
    found = [torch.zeros_like(p) for p in student.parameters()]
    divergence, mass = torch.zeros((), dtype=torch.float64), 0.0
    for answer in all_answers(3):
        q, p = (of_tokens(log_probs(each, answer), answer).sum() for each in (student, teacher))
        divergence = divergence + q.exp() * (q - p)
        mass += float(q.detach().exp())
        learnt = MiniLLM(given([answer]), teacher, OWN, single_step=single_step, length_norm=False, clip=1e9)(
            student, asked([len(answer)])
        )
        for total, grad in zip(found, gradients(learnt.sum, student), strict=True):
            total += float(q.detach().exp()) * grad
    assert mass == pytest.approx(1.0)
    check_equal(found, gradients(divergence, student))


def test_answers_of_a_mixture_are_weighted_back() -> None:
    """Of one token, where the single token's weight is the whole one: the mean over p' is that over q."""
    student, teacher = small(0), small(1).requires_grad_(False)
    q, p = (log_probs(each, (0,))[0] for each in (student, teacher))
    mixture = 0.2 * p.exp() + 0.8 * q.detach().exp()
    found = [torch.zeros_like(w) for w in student.parameters()]
    for token in range(VOCAB):
        objective = MiniLLM(given([(token,)], alpha=0.2), teacher, OWN, single_step=False, clip=1e9)
        for total, grad in zip(found, gradients(objective(student, asked([1])).sum, student), strict=True):
            total += float(mixture[token]) * grad
    check_equal(found, gradients((q.exp() * (q - p)).sum(), student))


def naive(student: Decoder, teacher: Decoder, answer: Ids, settings: dict[str, Any], alpha: float) -> Tensor:
    """The paper's loss of an answer, token by token, with PPO's own clip (arXiv 1707.06347, equation 7)."""
    at, gamma, clip = 1.3, settings["gamma"], settings["clip"]
    q_TV, p_TV = (log_probs(each, answer, at) for each in (student, teacher))
    q, p = of_tokens(q_TV, answer), of_tokens(p_TV, answer)
    gain = (p - q).detach()
    w = (q.exp() / (alpha * p.exp() + (1 - alpha) * q.exp())).detach()
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(answer)):
        first = t + 1 if settings["single_step"] else t
        discounts = [gamma ** (i - first) for i in range(first, len(answer))]
        reward = sum(d * float(gain[first + i]) for i, d in enumerate(discounts))
        if settings["length_norm"] and discounts:
            reward /= sum(discounts)
        reward *= gamma if settings["single_step"] else 1.0
        ratio = (q[t] - q[t].detach()).exp() * w[t]
        total = total + torch.max(-reward * ratio, -reward * ratio.clamp(1 - clip, 1 + clip))
        if settings["single_step"]:
            total = total + w[t] * (q_TV[t].exp() * (q_TV[t] - p_TV[t])).sum()
    return total


@pytest.mark.parametrize("single_step", [True, False])
@pytest.mark.parametrize(("gamma", "length_norm"), [(1.0, True), (0.6, True), (1.0, False), (0.0, True)])
def test_all_of_it_is_the_sum_token_by_token(single_step: bool, gamma: float, length_norm: bool) -> None:
    """Answers of unlike lengths, each of which counts as its row's learnt tokens do; temperature, weights, clip."""
    student, teacher = small(0, "llama"), small(1).requires_grad_(False)
    settings = {"single_step": single_step, "gamma": gamma, "length_norm": length_norm, "clip": 0.2}
    answers: list[Ids] = [(3, 2, 2, 1, 0), (1, 0), (2, 3, 3)]
    learnt = [2, 5, 3]
    wanted = sum(
        (
            naive(student, teacher, a, settings, 0.2) * n / len(a)
            for a, n in zip(answers, learnt, strict=True)
        ),
        start=torch.zeros(()),
    )
    objective = MiniLLM(given(answers, alpha=0.2, temperature=1.3), teacher, OWN, **settings)
    found = objective(student, asked(learnt))
    check_equal(gradients(found.sum, student), gradients(wanted, student))
    tokens = sum(len(a) for a in answers)
    assert found.supervised == sum(learnt)
    assert found.extras["answer_tokens"] == (tokens, 3)
    assert 0 < found.extras["clipped"][0] < tokens or gamma < 1, "the clip is tried, and does not take all"


@pytest.mark.parametrize("kind", ["reverse-kl", "jsd"])
def test_a_single_step_alone_is_gkd_on_the_students_answers(kind: Any) -> None:
    """Acceptance test 11: gamma = 0 is GKD with beta = 1, fully on-policy, in value and in gradient."""
    student, teacher = small(0), small(1).requires_grad_(False)
    answers: list[Ids] = [(3, 2, 2, 1, 0), (1, 0)]
    found = MiniLLM(given(answers), teacher, OWN, gamma=0.0)(student, asked([5, 2]))
    batch = answer_batch([Answer(Prompt(0, PROMPT), 0, ids, "", True) for ids in answers])
    hidden, targets, _ = OWN.states(student, batch)
    known = DenseTeacher(OWN.states(teacher, batch)[0], teacher.get_parameter("lm_head.weight"), 5.0)
    wanted, count = distil_loss(
        hidden, student.get_parameter("lm_head.weight"), targets, known, kind=kind, beta=1.0, softcap=5.0
    )
    assert count == found.supervised == 7
    assert float(found.sum.detach()) == pytest.approx(float(wanted.detach()))
    check_equal(gradients(found.sum, student), gradients(wanted, student))


def test_without_the_single_step_gamma_0_weighs_each_token_by_its_own_gain() -> None:
    student, teacher = small(0), small(1).requires_grad_(False)
    answer: Ids = (3, 2, 2, 1, 0)
    found = MiniLLM(given([answer]), teacher, OWN, gamma=0.0, single_step=False)(student, asked([5]))
    q, p = (of_tokens(log_probs(each, answer), answer) for each in (student, teacher))
    check_equal(gradients(found.sum, student), gradients((-(p - q).detach() * q).sum(), student))
    assert float(found.sum.detach()) == pytest.approx(float((q - p).sum().detach())), (
        "what is logged is the reverse KL of the tokens"
    )


def test_weights_of_tokens() -> None:
    gain = torch.tensor([0.0, 50.0, -50.0], dtype=torch.float64)
    assert importance(gain, 0.0).tolist() == [1, 1, 1]
    assert importance(gain, 0.2).tolist() == pytest.approx([1.0, 0.0, 1.25])


# DPKD, the paper's form


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_dpkd_is_the_preference_for_the_teachers_answers(temperature: float) -> None:
    student, teacher = small(0), small(1).requires_grad_(False)
    theirs: list[Ids] = [(2, 2, 0), (1, 0)]
    own: list[Ids] = [(3, 2, 2, 1, 0), (1, 0)]
    learnt, beta = [2, 5], 0.7
    ours = given(own, temperature=temperature)
    found = DPKD(ours, teacher, given(theirs), OWN, beta=beta)(student, asked(learnt))

    def ratio(answer: Ids) -> Tensor:
        q, p = (of_tokens(log_probs(each, answer, temperature), answer) for each in (student, teacher))
        return (q - p).mean()

    margins = [beta * (ratio(a) - ratio(b)) for a, b in zip(theirs, own, strict=True)]
    wanted = sum((-n * F.logsigmoid(m) for n, m in zip(learnt, margins, strict=True)), start=torch.zeros(()))
    assert float(found.sum.detach()) == pytest.approx(float(wanted.detach()))
    check_equal(gradients(found.sum, student), gradients(wanted, student))
    assert found.extras["margin"] == pytest.approx((float(torch.stack(margins).detach().sum()), 2.0))
    assert found.extras["answer_tokens"] == (7.0, 2.0)


def test_dpkd_with_the_rows_own_answers() -> None:
    """They stand for the teacher's; the cross-entropy with them has its share."""
    student, teacher = small(0), small(1).requires_grad_(False)
    batch, own = asked([2, 3]), [(3, 2, 0), (1, 0)]
    found = DPKD(given(own), teacher, None, OWN, ce_weight=0.25)(student, batch)
    paired = DPKD(given(own), teacher, given([(2, 2), (2, 2, 2)]), OWN)(student, batch)
    wanted = 0.75 * paired.sum + 0.25 * OWN(student, batch).sum
    assert float(found.sum.detach()) == pytest.approx(float(wanted.detach()))
    check_equal(gradients(found.sum, student), gradients(wanted, student))


# With the engine


Objective = Callable[[Decoder, Batch], Loss]


def made(name: str, model: Model, teacher: Model) -> Objective:
    """With answers of up to 6 tokens, of the student and the teacher."""
    draws: dict[str, Any] = {"max_tokens": 6, "longest_prompt": 40}
    if name == "minillm":
        return MiniLLM(
            LiveSampler(model, seed=1, mix=Mix(teacher.decoder), **draws), teacher.decoder, OWN, ce_weight=0.1
        )
    samplers = [LiveSampler(each, seed=seed, **draws) for seed, each in enumerate((model, teacher))]
    return DPKD(samplers[0], teacher.decoder, samplers[1], OWN)


def rows(count: int) -> Batch:
    return replace(batch_maker.packed(batch_maker.some(count=count)), rows=tuple(range(count)), epoch=2)


def part(batch: Batch, first: int, last: int) -> Batch:
    made = batch_maker.packed(batch_maker.some(count=len(batch.lengths))[first:last])
    return replace(made, rows=batch.rows[first:last], epoch=batch.epoch)


@pytest.mark.parametrize("name", ["minillm", "dpkd"])
def test_a_step_is_the_same_in_any_micro_batches(name: str) -> None:
    """Draws, weights and normalisation belong to the row: 1 x 4 = 4 x 1; a batch without rows adds nothing."""
    model, teacher = tiny.model("llama", scale=0.2), tiny.model("qwen3", seed=5, scale=0.2)
    model.decoder.requires_grad_(True)
    objective, batch = made(name, model, teacher), rows(4)
    whole = objective(model.decoder, batch)
    apart = [objective(model.decoder, part(batch, i, i + 1)) for i in range(4)]
    assert sum(loss.supervised for loss in apart) == whole.supervised == batch.supervised
    total = sum((loss.sum for loss in apart), start=torch.zeros(()))
    for got, want in zip(gradients(total, model.decoder), gradients(whole.sum, model.decoder), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    empty = objective(model.decoder, batch_maker.packed([([0], [False])]))
    assert (float(empty.sum.detach()), empty.supervised) == (0.0, 0)
    assert empty.extras.keys() == whole.extras.keys()


def test_a_student_comes_nearer_to_its_teacher() -> None:
    """The divergence on rows, over a few steps on what is drawn after their prompts."""
    model, teacher = tiny.model("llama", scale=0.15), tiny.model("llama", seed=5, scale=0.15)
    model.decoder.requires_grad_(True)
    objective = made("minillm", model, teacher)
    batch = rows(4)
    before = divergence_of(model.decoder, teacher.decoder, batch)
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=1e-2)
    for step in range(4):
        loss = objective(model.decoder, replace(batch, epoch=step))
        optimizer.zero_grad()
        (loss.sum / loss.supervised).backward()
        optimizer.step()
    after = divergence_of(model.decoder, teacher.decoder, batch)
    assert after < 0.95 * before, (after, before)


@torch.no_grad()
def divergence_of(student: Decoder, teacher: Decoder, batch: Batch) -> float:
    q, p = (each(batch.ids_BT).log_softmax(-1) for each in (student, teacher))
    return float((q.exp() * (q - p)).sum(-1).mean())


def test_settings_out_of_range_are_refused() -> None:
    teacher = small(1)
    for make in (
        lambda: MiniLLM(given([]), teacher, OWN, gamma=1.5),
        lambda: MiniLLM(given([]), teacher, OWN, clip=0.0),
        lambda: MiniLLM(given([], temperature=0.0), teacher, OWN),
        lambda: DPKD(given([]), teacher, None, OWN, beta=0.0),
        lambda: DPKD(given([]), teacher, None, OWN, ce_weight=2.0),
    ):
        with pytest.raises(UsageError):
            make()
    other = tiny.decoder("llama", vocab_size=9).to(torch.float64)
    with pytest.raises(UsageError, match="vocabularies"):
        MiniLLM(given([(1, 0)]), other, OWN)(small(0), asked([2]))
