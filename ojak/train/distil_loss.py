"""What a student loses against its teacher, fused with the output layer: no logits beyond a chunk (loss.py).

With p the teacher's distribution of the next token and q the student's, both at temperature T, the loss of a row is

    (1 - ce_weight) D(p, q) + ce_weight (-log q_1(target))                          q_1: q at temperature 1

    forward-kl   D = KL(p || q)                                                 Hinton et al. 2015, arXiv 1503.02531
    reverse-kl   D = KL(q || p)                                                 MiniLLM, arXiv 2306.08543
    jsd          D = beta KL(p || m) + (1 - beta) KL(q || m)                    GKD, arXiv 2306.13649, section 2
                 m = beta p + (1 - beta) q
    dpkd         D = -log sigmoid(beta (log q(t) / p(t) - log q(s) / p(s)))     DPKD, arXiv 2406.19774
                 t, s: the likeliest token of p, of q

beta = 0 of jsd is forward-kl and beta = 1 reverse-kl, as in TRL's GKD, whose definition has no factor T^2 either. dpkd
is the form that was released with the paper, per position on given texts (the paper's own is in dpkd.py); where both
likeliest tokens agree it is log 2 and teaches nothing.

The divergences are sums of terms f(p, q) over the tokens. With a = q df/dq (a multiple of q may be left out), the slope
by a logit is (a - q sum(a)) / T. A cached teacher knows its K likeliest tokens and the mass of the others: so there are
K + 1 terms, the last one of all others together, whose a they share as they share its q. One exponential a logit does,
as in plain cross-entropy, and K = V is the dense loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.errors import UsageError
from ojak.model.sampling import argmax
from ojak.train.loss import (
    RowLosses,
    by_pieces,
    capped,
    counted,
    exact_dtype,
    fused,
    most_bytes,
    nothing,
    target_losses,
)

Kind = Literal["forward-kl", "reverse-kl", "jsd", "dpkd"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEAST = -1e4  # log p of what a teacher gives no probability: exp of it is 0, and 0 times it, too


@dataclass(frozen=True, slots=True)
class DenseTeacher:
    """The teacher's last hidden states in the student's rows (of its own width), its output layer, its soft cap."""

    hidden_ND: Tensor
    weight_VD: Tensor
    softcap: float | None = None

    def __getitem__(self, places_M: Tensor) -> DenseTeacher:
        """Of some rows."""
        return DenseTeacher(self.hidden_ND.index_select(0, places_M), self.weight_VD, self.softcap)


@dataclass(frozen=True, slots=True)
class SparseTeacher:
    """log p of the teacher's K likeliest tokens in each row, and of all others together (-inf where K = V).

    indices_NK: int32 or int64, distinct in a row, in any order. The log-probabilities are those at the temperature of
    the loss, in any float dtype.
    """

    indices_NK: Tensor
    log_probs_NK: Tensor
    tail_logmass_N: Tensor

    def __getitem__(self, places_M: Tensor) -> SparseTeacher:
        """Of some rows."""
        return SparseTeacher(
            self.indices_NK[places_M], self.log_probs_NK[places_M], self.tail_logmass_N[places_M]
        )


Teacher: TypeAlias = DenseTeacher | SparseTeacher


def distil_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    teacher: Teacher,
    *,
    kind: Kind = "forward-kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    ce_weight: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, int]:
    """(sum over the rows that count of the module's loss, number of these rows).

    hidden_ND, weight_VD and softcap are the student's; rows whose target is -100 are left out, of the teacher too.
    Products are in the dtype of hidden_ND (the teacher's in its own), all else in float32 (float64 for float64).
    `chunk`: the most bytes of logits in memory, an online teacher's among them, though at least those of one row. Where
    one chunk does not hold all, the gradients can be asked for once. The teacher gets none.

    Raises UsageError for settings out of range, vocabularies of different sizes, and dpkd with a cached teacher.
    """
    if not 0 <= ce_weight <= 1:
        raise UsageError(f"the weight of the cross-entropy is {ce_weight:g}", fix="give a number from 0 to 1")
    places = counted(targets_N)
    if len(places) < len(targets_N):
        hidden_ND, targets_N = hidden_ND.index_select(0, places), targets_N[places]
        teacher = teacher[places]
    shares = torch.full_like(targets_N, ce_weight, dtype=exact_dtype(hidden_ND.dtype))
    terms = Terms(1 - shares, shares if ce_weight else None, kind, beta, temperature)
    check_teacher(weight_VD, teacher, kind)
    if not len(places):
        return nothing(hidden_ND, weight_VD), 0
    total = summed_terms(hidden_ND, weight_VD, targets_N, teacher, terms, softcap=softcap, chunk=chunk)
    return total, len(places)


@dataclass(frozen=True, slots=True)
class Terms:
    """What is added up in row n: divergence[n] * D + targets[n] * -log q(target), both factors constants.

    kind, beta, temperature: of D; target_temperature: of the q of the second term, which is missing for None.
    Raises UsageError for settings out of range.
    """

    divergence_N: Tensor
    targets_N: Tensor | None = None
    kind: Kind = "forward-kl"
    beta: float = 0.5
    temperature: float = 1.0
    target_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"there is no loss {self.kind!r}", fix=f"use one of {', '.join(KINDS)}")
        for name, value in (("temperature", self.temperature), ("beta", self.beta)):
            if not (0 < value < math.inf or (name, value) == ("beta", 0)):
                raise UsageError(f"{name} is {value:g}", fix="give a number above 0")
        if self.kind == "jsd" and self.beta > 1:
            raise UsageError(f"beta is {self.beta:g}", fix="give a number from 0 to 1")


def summed_terms(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    teacher: Teacher,
    terms: Terms,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The sum over N > 0 rows of what `terms` says, none ignored; the rest as in `distil_loss`."""
    chunk = chunk or most_bytes(hidden_ND)
    if isinstance(teacher, SparseTeacher):
        losses = _cached(teacher, targets_N, terms, softcap)
    else:
        losses = _online(teacher, targets_N, terms, softcap)
        own, theirs = hidden_ND.element_size(), teacher.hidden_ND.element_size()
        chunk = max(1, chunk * own // (own + theirs))
    return fused(hidden_ND, weight_VD, losses, chunk=chunk)


def check_teacher(weight_VD: Tensor, teacher: Teacher, kind: Kind) -> None:
    """Raises UsageError for a teacher from whom a student with this output layer cannot learn."""
    if isinstance(teacher, SparseTeacher):
        if kind == "dpkd":
            raise UsageError(
                "dpkd needs the teacher itself",
                why="a cache does not hold the teacher's probability of the token that the student prefers",
                fix="name the teacher's model, or choose another loss",
            )
    elif len(teacher.weight_VD) != len(weight_VD):
        raise UsageError(
            "teacher and student have vocabularies of different sizes",
            why=f"the teacher has {len(teacher.weight_VD)} tokens, the student {len(weight_VD)}",
            fix="use models with one tokenizer, or train on texts that the teacher wrote",
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What some rows are worth, as columns: factors, targets, and whether the target's q is that of the divergence."""

    terms: Terms
    divergence_R1: Tensor
    target_R1: Tensor
    weight_R1: Tensor | None

    @classmethod
    def of(cls, terms: Terms, targets_N: Tensor, rows: slice) -> _Rows:
        weights = None if terms.targets_N is None else terms.targets_N[rows, None]
        return cls(terms, terms.divergence_N[rows, None], targets_N[rows, None], weights)

    def __getitem__(self, at: slice) -> _Rows:
        weights = None if self.weight_R1 is None else self.weight_R1[at]
        return _Rows(self.terms, self.divergence_R1[at], self.target_R1[at], weights)

    @property
    def joined_R1(self) -> Tensor | None:
        """The target's factor where it needs no softmax of its own."""
        terms = self.terms
        return (
            self.weight_R1 if terms.temperature == terms.target_temperature and terms.kind != "dpkd" else None
        )

    def losses(self, x_RV: Tensor, slopes: bool, divergence: Callable[[Tensor], Tensor]) -> Tensor:
        """The divergence, and the target's term where that stands apart."""
        if self.weight_R1 is None or self.joined_R1 is not None:
            return divergence(x_RV)
        apart_RV, at = x_RV.clone(), self.terms.target_temperature
        losses = target_losses(apart_RV, self.target_R1, self.weight_R1, temperature=at, slopes=slopes)
        losses = losses + divergence(x_RV)
        if slopes:
            x_RV.add_(apart_RV)
        return losses


def _cached(teacher: SparseTeacher, targets_N: Tensor, terms: Terms, softcap: float | None) -> RowLosses:
    """Losses against a teacher of which the likeliest tokens are known."""

    def losses(logits_RV: Tensor, rows: slice, slopes: bool) -> Tensor:
        known_RK = teacher.indices_NK[rows].long()
        tails_R1 = teacher.tail_logmass_N[rows, None]
        log_p_RK = torch.cat([teacher.log_probs_NK[rows], tails_R1], 1)
        own = _Rows.of(terms, targets_N, rows)

        def of_piece(x_RV: Tensor, at: slice) -> Tensor:
            part = own[at]
            return part.losses(x_RV, slopes, lambda x: _sparse(x, known_RK[at], log_p_RK[at], part, slopes))

        return by_pieces(logits_RV, softcap, slopes, of_piece)

    return losses


def _online(teacher: DenseTeacher, targets_N: Tensor, terms: Terms, softcap: float | None) -> RowLosses:
    """Losses against a teacher whose logits are made beside the student's."""
    buffers: list[Tensor] = []
    against = _preferred if terms.kind == "dpkd" else _dense

    def losses(logits_RV: Tensor, rows: slice, slopes: bool) -> Tensor:
        hidden_RD = teacher.hidden_ND[rows]
        if not buffers:  # the first chunk is the largest
            buffers.append(hidden_RD.new_empty(logits_RV.shape))
        theirs_RV = torch.mm(hidden_RD, teacher.weight_VD.t(), out=buffers[0][: len(hidden_RD)])
        own = _Rows.of(terms, targets_N, rows)

        def of_piece(x_RV: Tensor, at: slice) -> Tensor:
            part, (y_RV, _) = own[at], capped(theirs_RV[at], teacher.softcap)
            return part.losses(x_RV, slopes, lambda x: against(x, y_RV, part, slopes))

        return by_pieces(logits_RV, softcap, slopes, of_piece)

    return losses


def _sparse(x_RV: Tensor, known_RK: Tensor, log_p_RK1: Tensor, own: _Rows, slopes: bool) -> Tensor:
    """Losses of a piece by its K + 1 terms, the last one the tail's; the logits are used up, as `RowLosses` says."""
    terms, joined = own.terms, own.joined_R1
    if terms.temperature != 1:
        x_RV.div_(terms.temperature)
    known, chosen, top = x_RV.gather(1, known_RK), x_RV.gather(1, own.target_R1), x_RV.amax(-1, keepdim=True)
    x_RV.sub_(top).exp_()
    head_RK = x_RV.gather(1, known_RK)
    x_RV.scatter_(
        1, known_RK, 0.0
    )  # the tail is added up by itself: of a small one, 1 - sum(q) is rounding alone
    tail = x_RV.sum(-1, keepdim=True).clamp_min(torch.finfo(x_RV.dtype).tiny)
    size = tail + head_RK.sum(-1, keepdim=True)
    log_z = size.log() + top
    log_q_RK1 = torch.cat([known - log_z, tail.log() - size.log()], 1)
    values, a_RK1 = _divergence(log_p_RK1.to(x_RV.dtype).clamp_min(LEAST), log_q_RK1, terms)
    losses = own.divergence_R1 * values.sum(-1, keepdim=True)
    a_RK1 = a_RK1 * own.divergence_R1
    total = a_RK1.sum(-1, keepdim=True)
    if joined is not None:
        losses, total = losses + joined * (log_z - chosen), total - joined
    if slopes:
        x_RV.mul_((a_RK1[:, -1:] / tail - total / size) / terms.temperature)
        x_RV.scatter_(1, known_RK, (a_RK1[:, :-1] - head_RK * (total / size)) / terms.temperature)
        if joined is not None:
            x_RV.scatter_add_(1, own.target_R1, -joined / terms.temperature)
    return losses[:, 0]


def _dense(x_RV: Tensor, y_RV: Tensor, own: _Rows, slopes: bool) -> Tensor:
    """Losses of a piece by all V terms; both logits are used up, as `RowLosses` says."""
    terms, joined = own.terms, own.joined_R1
    log_q_RV, log_p_RV = (_normalised(z, terms.temperature) for z in (x_RV, y_RV))
    values, a_RV = _divergence(log_p_RV.to(x_RV.dtype).clamp_min_(LEAST), log_q_RV, terms)
    losses = own.divergence_R1 * values.sum(-1, keepdim=True)
    a_RV = a_RV * own.divergence_R1
    total = a_RV.sum(-1, keepdim=True)
    if joined is not None:
        losses, total = losses - joined * log_q_RV.gather(1, own.target_R1), total - joined
    if slopes:
        x_RV.exp_().mul_(-total).add_(a_RV)
        if joined is not None:
            x_RV.scatter_add_(1, own.target_R1, -joined)
        if terms.temperature != 1:
            x_RV.div_(terms.temperature)
    return losses[:, 0]


def _normalised(x_RV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities in place of logits."""
    if temperature != 1:
        x_RV.div_(temperature)
    return x_RV.sub_(x_RV.logsumexp(-1, keepdim=True))


def _divergence(log_p: Tensor, log_q: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """(each token's part of the divergence, its a = q df/dq but for a multiple of q), of the inputs' shape."""
    kind = terms.kind
    if kind == "jsd" and terms.beta in (0, 1):  # the mixture is one of the two, and the formula below 0
        kind = "reverse-kl" if terms.beta else "forward-kl"
    if kind == "forward-kl":
        p = log_p.exp()
        return p * (log_p - log_q), -p
    if kind == "reverse-kl":
        each = log_q.exp() * (log_q - log_p)
        return each, each
    log_m = torch.logaddexp(log_p + math.log(terms.beta), log_q + math.log1p(-terms.beta))
    own = (1 - terms.beta) * log_q.exp() * (log_q - log_m)
    return terms.beta * log_p.exp() * (log_p - log_m) + own, own


def _preferred(x_RV: Tensor, y_RV: Tensor, own: _Rows, slopes: bool) -> Tensor:
    """DPKD's losses as released: the teacher's likeliest token is to be preferred over the student's own.

    The normalisers cancel, so four logits a row say all. The student's are used up, as `RowLosses` says.
    """
    terms = own.terms
    t_R1, s_R1 = argmax(y_RV)[:, None], argmax(x_RV)[:, None]
    x, y = (z.gather(1, t_R1) - z.gather(1, s_R1) for z in (x_RV, y_RV))
    rate = terms.beta / terms.temperature
    margin = rate * (x - y)
    if slopes:
        push = own.divergence_R1 * rate * torch.sigmoid(-margin)
        x_RV.zero_().scatter_add_(1, t_R1, -push).scatter_add_(1, s_R1, push)
    return (own.divergence_R1 * F.softplus(-margin))[:, 0]
