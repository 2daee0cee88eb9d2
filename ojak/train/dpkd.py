"""DPKD: the teacher's answer is preferred over the student's own (arXiv 2406.19774, section 3).

For a prompt with y_t, an answer of the teacher p, and y_s, one of the student q:

    -log sigmoid(beta (log q(y_t) / p(y_t) / |y_t|  -  log q(y_s) / p(y_s) / |y_s|))

DPO's form with the teacher as the reference, the log-ratios divided by the answers' lengths. Both distributions are at
the temperature that the answers are drawn at (the paper's: 1).
What the authors released is another loss, without drawn answers: `dpkd` of distil_loss.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ojak.errors import UsageError
from ojak.train.batches import IGNORED, Document, packed_batch
from ojak.train.live import answer_batch, prompts_of
from ojak.train.live_reading import Reading, learnt_counts, mixed, read
from ojak.train.loss import weighted_log_probs
from ojak.train.objectives import Loss, NextToken

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch
    from ojak.train.live import LiveSampler

EXTRAS = ("answer_tokens", "margin", "accuracy")


@dataclass(frozen=True, slots=True)
class DPKD:
    """The objective of the paper's form.

    sampler: draws the student's answers. own: how rows are laid out. teacher_sampler: draws the teacher's answers, by
    another seed (two models that are alike draw alike from one); without it the rows' own answers stand for them, as in
    data that this teacher wrote. A pair counts as much as its row's learnt tokens. ce_weight: share of the loss that is
    cross-entropy with the rows' own tokens (the paper's language-model loss).

    extras: mean tokens of an answer of the student, the pairs' margins (beta times the difference), and the share of
    pairs whose margin is above 0. Raises UsageError for settings out of range.
    """

    sampler: LiveSampler
    teacher: Decoder
    teacher_sampler: LiveSampler | None
    own: NextToken
    beta: float = 0.1
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"beta is {self.beta:g}", fix="give a number above 0")
        if not 0 <= self.ce_weight <= 1:
            raise UsageError(f"ce_weight is {self.ce_weight:g}", fix="give a number from 0 to 1")

    def __call__(self, decoder: Decoder, batch: Batch) -> Loss:
        prompts, found = prompts_of(batch), None
        if prompts:
            written = self.sampler.sample(prompts, epoch=batch.epoch)
            theirs = batch
            if self.teacher_sampler is not None:
                theirs = answer_batch(self.teacher_sampler.sample(prompts, epoch=batch.epoch))
            pairs = packed_batch([*learnt_documents(theirs), *learnt_documents(answer_batch(written))])
            found = self._loss(read(self.own, decoder, self.teacher, pairs), learnt_counts(batch))
        return mixed(self.own, decoder, batch, found, self.ce_weight, EXTRAS)

    def _loss(self, reading: Reading, learnt: list[int]) -> Loss:
        """Of the teacher's answers and then as many of the student's, for rows with so many learnt tokens."""
        at = self.sampler.sampling.temperature
        log_q_S, log_p_S = reading.log_probs(at)
        count, device = len(learnt), log_q_S.device
        ratios = torch.stack([part.mean() for part in (log_q_S - log_p_S).split(reading.counts)])
        margins = self.beta * (ratios[:count] - ratios[count:])
        share = torch.tensor(learnt, device=device)
        push = share * self.beta * torch.sigmoid(-margins)  # minus the slope by the teacher's answer's mean
        lengths = torch.tensor(reading.counts, device=device)
        weight_S = reading.each(torch.cat([-push, push]) / lengths)
        surrogate = weighted_log_probs(
            reading.hidden_SD, reading.weight_VD, reading.targets_S, weight_S, softcap=reading.softcap, temperature=at
        )  # fmt: skip
        total = surrogate - surrogate.detach() + (share * F.softplus(-margins)).sum()
        values = (sum(reading.counts[count:]), float(margins.sum()), float((margins > 0).sum()))
        extras = {name: (float(value), float(count)) for name, value in zip(EXTRAS, values, strict=True)}
        return Loss(total, sum(learnt), reading.computed, extras)


def learnt_documents(batch: Batch) -> Iterator[Document]:
    """The rows of a batch that have learnt tokens, as (ids, mask of what is learnt)."""
    begin = 0
    for place, length in enumerate(batch.lengths):
        row = 0 if batch.packed else place
        ids, targets = (x[row, begin : begin + length].numpy() for x in (batch.ids_BT, batch.targets_BT))
        learnt = np.zeros(length, np.bool_)
        learnt[1:] = targets[:-1] != IGNORED
        if learnt.any():
            yield ids.astype(np.uint32), learnt
        begin += length if batch.packed else 0
