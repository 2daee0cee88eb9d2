"""What is learnt from a micro-batch: functions from a decoder and a batch to a loss, handed to the one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from ojak.train.documents import document_states
from ojak.train.loss import chunked_cross_entropy

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.model.load import Model
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig
    from ojak.train.ema import MovingMean
    from ojak.train.processes import Processes
    from ojak.train.rows import Rows


@dataclass(frozen=True, slots=True)
class Loss:
    """`sum` over `supervised` tokens (or pairs), to be divided by those of the whole step before `backward`.

    `computed`: tokens that went through the layers. `extras`: further figures for the log, each (sum, over how many):
    the log gets their quotient over the whole step. An objective gives the same names for every batch, an empty one
    too: the processes add them up together.
    """

    sum: Tensor
    supervised: int
    computed: int
    extras: Mapping[str, tuple[float, float]] = field(default_factory=dict)


Objective: TypeAlias = "Callable[[Decoder, Batch], Loss]"


@dataclass(frozen=True, slots=True)
class Material:
    """What an objective may be made of beside the settings: the model as it begins, and the rows it learns from.

    anchor: the moving mean of the weights that `reinforce` holds a run near.
    """

    model: Model
    rows: Rows
    processes: Processes
    notify: Callable[[str], None]
    anchor: MovingMean | None = None


@dataclass(frozen=True, slots=True)
class NextToken:
    """Cross-entropy of the next token, over what the batch supervises.

    share: documents that begin alike are computed once where they are alike. padded: a padded batch is computed as it
    is, padding and all: the plain form, with which the documents in one row must agree.
    """

    share: bool = True
    padded: bool = False
    z_loss: float = 0.0

    def __call__(self, decoder: Decoder, batch: Batch) -> Loss:
        hidden_SD, targets_S, computed = self.states(decoder, batch)
        total, count = chunked_cross_entropy(
            hidden_SD,
            decoder.get_parameter("lm_head.weight"),
            targets_S,
            softcap=decoder.config.final_logit_softcapping,
            z_loss=self.z_loss,
        )
        return Loss(total, count, computed)

    def states(self, decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """(hidden_SD, targets_S, tokens multiplied): from which state which token is to be told, in the rows' order."""
        if batch.packed or not self.padded:
            hidden_SD, targets_S, found = document_states(decoder, batch, share=self.share)
            return hidden_SD, targets_S, found.tokens
        return self._of_rectangle(decoder, batch)

    def _of_rectangle(self, decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor, int]:
        device = decoder.model.embed_tokens.weight.device
        hidden_BTD = decoder.hidden(batch.ids_BT.to(device))  # what pads a row comes after all that is in it
        return hidden_BTD.flatten(0, 1), batch.targets_BT.to(device).flatten(), batch.ids_BT.numel()


def objective(config: TrainConfig, material: Material | None = None) -> Objective:
    """The objective that the settings name; material: what a run has, and a plan has not.

    "pretrain" learns every token of texts that begin differently, so nothing is looked for that could be shared.
    Without material it is the cross-entropy with the same rows, whose time and memory a plan begins with.
    """
    if config.objective == "reinforce":
        from ojak.train.reinforce import reinforce

        return reinforce(config, material)
    if config.objective == "prefer":
        from ojak.train.prefer import prefer_objective

        return prefer_objective(config, material)
    dropout = config.lora is not None and config.lora.dropout > 0  # then what is shared would share its draws
    share = config.share_prefixes and config.reads != "pretrain" and not dropout
    own = NextToken(share=share, padded=config.padded, z_loss=config.z_loss)
    if config.objective == "distil" and material is not None:
        from ojak.train.distil import distil_objective

        return distil_objective(config, material, own)
    return own


def measured(config: TrainConfig, material: Material) -> Objective:
    """What held-out rows, those of `material`, are measured by: the cross-entropy alone; pairs, as they are learnt."""
    if config.objective == "prefer":
        return objective(config, material)
    return NextToken(share=config.reads != "pretrain", padded=config.padded)
