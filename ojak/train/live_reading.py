"""Answers that a student and its teacher read beside each other: what the objectives that sample answers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ojak.train.distil_loss import DenseTeacher, check_teacher
from ojak.train.documents import learnt_tokens
from ojak.train.loss import token_log_probs
from ojak.train.objectives import Loss, NextToken

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch


@dataclass(frozen=True, slots=True)
class Reading:
    """S learnt tokens of some documents, in their order: the student's states (with their graph), the teacher's.

    counts: learnt tokens of each document that has any, S together. computed: tokens that the student multiplied.
    """

    hidden_SD: Tensor
    weight_VD: Tensor
    softcap: float | None
    teacher: DenseTeacher
    targets_S: Tensor
    counts: tuple[int, ...]
    computed: int

    def log_probs(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(log q, log p) of each token, by the student and by the teacher, without gradients; float32 at least."""
        of_student = self.hidden_SD.detach(), self.weight_VD.detach(), self.softcap
        of_teacher = self.teacher.hidden_ND, self.teacher.weight_VD, self.teacher.softcap
        log_q_S, log_p_S = (
            token_log_probs(hidden, weight, self.targets_S, softcap=cap, temperature=temperature)
            for hidden, weight, cap in (of_student, of_teacher)
        )
        return log_q_S, log_p_S

    def each(self, values: Tensor) -> Tensor:
        """A value of each document at each of its tokens."""
        return values.repeat_interleave(torch.tensor(self.counts, device=values.device))


def read(own: NextToken, decoder: Decoder, teacher: Decoder, batch: Batch) -> Reading:
    """The documents of a batch, read by both; `own` says how they are laid out.

    Raises UsageError for vocabularies of different sizes.
    """
    hidden_SD, targets_S, computed = own.states(decoder, batch)
    with torch.no_grad():
        theirs_SD, _, _ = own.states(teacher, batch)
    known = DenseTeacher(
        theirs_SD, teacher.get_parameter("lm_head.weight"), teacher.config.final_logit_softcapping
    )
    weight_VD, softcap = decoder.get_parameter("lm_head.weight"), decoder.config.final_logit_softcapping
    check_teacher(weight_VD, known, "reverse-kl")
    return Reading(hidden_SD, weight_VD, softcap, known, targets_S, tuple(learnt_counts(batch)), computed)


def learnt_counts(batch: Batch) -> list[int]:
    """Learnt tokens of each row that has any: one number for each of `live.prompts_of`."""
    return [count for count in learnt_tokens(batch) if count]


def mixed(
    own: NextToken, decoder: Decoder, batch: Batch, found: Loss | None, ce_weight: float, names: Sequence[str]
) -> Loss:
    """(1 - ce_weight) * found + ce_weight * the cross-entropy of the batch's own tokens; 0 where nothing was found.

    names: of the extras, which a batch without answers has, too.
    """
    if found is not None and not ce_weight:
        return found
    plain = own(decoder, batch)
    if found is None:  # a batch without learnt tokens, whose loss is 0
        return Loss(plain.sum, plain.supervised, plain.computed, dict.fromkeys(names, (0.0, 0.0)))
    total = (1 - ce_weight) * found.sum + ce_weight * plain.sum
    return Loss(total, found.supervised, found.computed + plain.computed, found.extras)
