"""Preference training: from pairs of answers to a model that finds the better one the likelier of the two.

The losses are functions of four numbers a pair, `pair_losses`; the objective makes these out of a micro-batch: the two
documents of a pair share their prompt, which is computed once, and the output layer's products are made chunk by chunk
(`log_probs.py`). What the reference says is looked up (`reference.py`): it was asked once, before the first step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.train.log_probs import answer_log_probs
from ojak.train.objectives import Loss
from ojak.train.prefer_config import PreferConfig
from ojak.train.reference import reference_log_probs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig
    from ojak.train.objectives import Material

EXTRAS = ("accuracy", "margin", "chosen_log_prob", "rejected_log_prob")


@dataclass(frozen=True, slots=True)
class PairLosses:
    """Of each pair, shape (P,): its loss, and by how much the loss's own measure has the better answer ahead."""

    loss_P: Tensor
    margin_P: Tensor


def pair_losses(
    config: PreferConfig, sums_P2: Tensor, lengths_P2: Tensor, reference_P2: Tensor, gaps_P: Tensor
) -> PairLosses:
    """The loss of each pair, as `PreferConfig` writes it down.

    sums_P2: log p of the better and of the worse answer; lengths_P2: their tokens; reference_P2: the sums under the
    reference; gaps_P: differences of scores, NaN where there are none. Float64, with gradient through sums_P2.
    """
    means_P2 = sums_P2 / lengths_P2
    measured_P2 = sums_P2 - reference_P2 if config.needs_reference else sums_P2
    if config.by_length:
        measured_P2 = measured_P2 / lengths_P2
    ahead_P = measured_P2[:, 0] - measured_P2[:, 1]
    margin_P = config.scale * ahead_P
    if config.loss == "ipo":
        loss_P = (ahead_P - 1 / (2 * config.scale)) ** 2
    else:
        gamma = config.gamma if config.loss == "simpo" else 0.0
        loss_P = _divergence(config, margin_P - gamma, gaps_P)
    return PairLosses(loss_P - config.nll_weight * means_P2[:, 0], margin_P)


def _targets(config: PreferConfig, gaps_P: Tensor) -> Tensor:
    """How probable it should be that the better answer is the better one."""
    certain_P = torch.full_like(gaps_P, 1 - config.label_smoothing)
    if config.loss != "rpo" or config.eta is None:
        return certain_P
    return torch.where(gaps_P.isnan(), certain_P, torch.sigmoid(config.eta * gaps_P))


def _divergence(config: PreferConfig, logits_P: Tensor, gaps_P: Tensor) -> Tensor:
    """-t log sigmoid(z) - (1 - t) log sigmoid(-z), of scored pairs less the entropy of t, so that it can reach 0."""
    targets_P = _targets(config, gaps_P)
    loss_P = -targets_P * F.logsigmoid(logits_P) - (1 - targets_P) * F.logsigmoid(-logits_P)
    if config.loss != "rpo" or config.eta is None:
        return loss_P
    entropy_P = torch.special.entr(targets_P) + torch.special.entr(1 - targets_P)
    return torch.where(gaps_P.isnan(), loss_P, loss_P - entropy_P)


@dataclass(frozen=True, slots=True)
class Prefer:
    """The loss of a micro-batch of pairs, a sum over pairs.

    references float64[rows, 2] and gaps float64[rows] are those of the run's rows; None: zeros, and no scores.
    """

    config: PreferConfig
    references: NDArray[np.float64] | None = None
    gaps: NDArray[np.float64] | None = None
    share: bool = True

    def __call__(self, decoder: Decoder, batch: Batch) -> Loss:
        found = answer_log_probs(decoder, batch, share=self.share)
        if not batch.pairs:
            return Loss(found.sums_A.sum() * 0.0, 0, found.tokens, dict.fromkeys(EXTRAS, (0.0, 0.0)))
        sums_P2, lengths_P2 = found.sums_A.view(-1, 2), found.lengths_A.view(-1, 2)
        reference_P2, gaps_P = self._known(batch, sums_P2)
        losses = pair_losses(self.config, sums_P2, lengths_P2, reference_P2, gaps_P)
        values = (losses.margin_P > 0, losses.margin_P, sums_P2[:, 0], sums_P2[:, 1])
        sums = torch.stack([value.detach().double().sum() for value in values]).tolist()
        extras = {name: (value, float(batch.pairs)) for name, value in zip(EXTRAS, sums, strict=True)}
        return Loss(losses.loss_P.sum(), batch.pairs, found.tokens, extras)

    def _known(self, batch: Batch, like_P2: Tensor) -> tuple[Tensor, Tensor]:
        """(what the reference says, differences of scores) of the batch's pairs."""
        rows = list(batch.rows)
        none = np.zeros((len(rows), 2)), np.full(len(rows), math.nan)
        reference = none[0] if self.references is None else self.references[rows]
        gaps = none[1] if self.gaps is None else self.gaps[rows]
        return torch.from_numpy(reference).to(like_P2.device), torch.from_numpy(gaps).to(like_P2.device)


def prefer_objective(config: TrainConfig, material: Material | None) -> Prefer:
    """The objective of a run, or of its held-out pairs; the reference is asked now, unless its answers are kept.

    material: without it, as for a plan, nothing is known of the reference.
    """
    assert config.prefer is not None
    share = config.share_prefixes and not (config.lora and config.lora.dropout)
    if material is None:
        return Prefer(config.prefer, share=share)
    references = reference_log_probs(config, material) if config.prefer.needs_reference else None
    return Prefer(config.prefer, references, material.rows.gaps, share)
