"""MiniLLM: a student taught by what its teacher thinks of the student's own answers (arXiv 2306.08543, section 2.2).

To be made small is KL(q || p) over whole answers y, of the student q from the teacher p. With r_t = log p(y_t) / q(y_t)
given all before it, its gradient is minus the mean over y ~ q of

    sum_t  grad sum_v q(v) log p(v) / q(v)  +  R_{t+1} grad log q(y_t),     R_t = r_t + gamma R_{t+1}

The first part, of a single step, is known exactly: the sum over the vocabulary stands for the draw of y_t. The second
is a policy gradient for what comes after. Three measures keep it steady, as in the paper:

- answers are drawn from p' = alpha p + (1 - alpha) q, both parts of token t then weighted by w_t = q(y_t) / p'(y_t),
  a single token's ratio in the place of the product of all up to t;
- R_t is divided by the number of tokens that it is a sum over (by the sum of their discounts, where gamma is below 1);
- w_t is clipped as in PPO (arXiv 1707.06347, section 3): no gradient where it is beyond 1 + clip and R_{t+1} > 0, or
  below 1 - clip and R_{t+1} < 0.

Answers are drawn anew for each step, so the student that learns is the one that wrote: PPO's own ratio is 1. Special
cases: gamma = 0 leaves the single step alone, which is GKD with beta = 1 on the student's answers (arXiv 2306.13649);
gamma = 0 without `single_step` (then R_t stands for R_{t+1}) weighs each token's gradient by its own r_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ojak.errors import UsageError
from ojak.train.distil_loss import Terms, summed_terms
from ojak.train.live import answer_batch, prompts_of
from ojak.train.live_reading import Reading, learnt_counts, mixed, read
from ojak.train.loss import weighted_log_probs
from ojak.train.objectives import Loss, NextToken

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch
    from ojak.train.live import LiveSampler

EXTRAS = ("answer_tokens", "reverse_kl", "importance", "clipped")


@dataclass(frozen=True, slots=True)
class MiniLLM:
    """The objective. `sampler` draws from the trained model, with a `Mix` of this teacher for alpha > 0.

    The temperature is the sampler's, for both distributions; `own` says how rows are laid out. An answer's tokens count
    as much together as its row's own learnt tokens do, however many they are: so a step is the same in any
    micro-batches. The sum that is given has the reverse KL's value (estimated by the tokens drawn without
    `single_step`) and the gradient above. ce_weight: share of the cross-entropy with the rows' own tokens, in the place
    of the paper's loss of pre-training texts.

    extras: mean tokens of an answer, log q / p and w of a token, share of the tokens clipped. Raises UsageError for
    settings out of range.
    """

    sampler: LiveSampler
    teacher: Decoder
    own: NextToken
    single_step: bool = True
    gamma: float = 1.0
    length_norm: bool = True
    clip: float = 0.2
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("gamma", "ce_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name):g}", fix="give a number from 0 to 1")
        if self.clip <= 0:
            raise UsageError(f"clip is {self.clip:g}", fix="give a number above 0")
        if not self.sampler.sampling.temperature:
            raise UsageError("minillm cannot learn from greedy answers", fix="give a temperature above 0")

    def __call__(self, decoder: Decoder, batch: Batch) -> Loss:
        answers = self.sampler.sample(prompts_of(batch), epoch=batch.epoch)
        found = None
        if answers:
            reading = read(self.own, decoder, self.teacher, answer_batch(answers, epoch=batch.epoch))
            found = self._loss(reading, learnt_counts(batch))
        return mixed(self.own, decoder, batch, found, self.ce_weight, EXTRAS)

    def _loss(self, reading: Reading, learnt: list[int]) -> Loss:
        """Of the answers drawn for rows with so many learnt tokens."""
        at = self.sampler.sampling.temperature
        log_q_S, log_p_S = reading.log_probs(at)
        gain_S = log_p_S - log_q_S
        weight_S = importance(gain_S, self.sampler.mix.alpha if self.sampler.mix else 0.0)
        returns_S = torch.cat(
            [
                returns(part, self.gamma, later=self.single_step, mean=self.length_norm)
                for part in gain_S.split(reading.counts)
            ]
        )
        clipped_S = torch.where(returns_S > 0, weight_S > 1 + self.clip, weight_S < 1 - self.clip)
        clipped_S &= returns_S != 0
        per_token = [count / n for count, n in zip(learnt, reading.counts, strict=True)]
        share_S = reading.each(weight_S.new_tensor(per_token)) * weight_S
        push_S = share_S * returns_S.masked_fill(clipped_S, 0.0)
        total = self._sum(reading, share_S, push_S, at)
        value = (push_S * log_q_S).sum()  # what the surrogate adds to the sum, and says nothing
        if not self.single_step:
            value = value - (share_S * gain_S).sum()
        extras = _extras(gain_S, weight_S, clipped_S, len(reading.counts))
        return Loss(total + value, sum(learnt), reading.computed, extras)

    def _sum(self, reading: Reading, share_S: Tensor, push_S: Tensor, temperature: float) -> Tensor:
        """share * KL(q || p) - push * log q(y), over all tokens; the second alone without the single step."""
        student = reading.hidden_SD, reading.weight_VD, reading.targets_S
        if self.single_step:
            terms = Terms(
                share_S, push_S, "reverse-kl", temperature=temperature, target_temperature=temperature
            )
            return summed_terms(*student, reading.teacher, terms, softcap=reading.softcap)
        return weighted_log_probs(*student, -push_S, softcap=reading.softcap, temperature=temperature)


def importance(gain_S: Tensor, alpha: float) -> Tensor:
    """w = q / (alpha p + (1 - alpha) q) of tokens with gain log p / q."""
    return 1 / ((1 - alpha) + alpha * gain_S.exp())


def returns(gain_T: Tensor, gamma: float, *, later: bool, mean: bool) -> Tensor:
    """R_t of one answer, or gamma R_{t+1} with `later`; with `mean` R is divided by the sum of its terms' discounts."""
    found = torch.empty_like(gain_T)
    total = size = 0.0
    for t, gain in reversed(list(enumerate(gain_T.tolist()))):
        behind, width = gamma * total, size
        total, size = gain + behind, 1.0 + gamma * size
        value, terms = (behind, width) if later else (total, size)
        found[t] = value / max(terms, 1.0) if mean else value
    return found


def _extras(
    gain_S: Tensor, weight_S: Tensor, clipped_S: Tensor, answers: int
) -> dict[str, tuple[float, float]]:
    tokens = float(len(gain_S))
    values = (tokens, float(-gain_S.sum()), float(weight_S.sum()), float(clipped_S.sum()))
    return {
        name: (value, tokens if i else answers)
        for i, (name, value) in enumerate(zip(EXTRAS, values, strict=True))
    }
