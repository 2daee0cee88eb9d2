"""Public functions that join two parts which do not know each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ojak import chat
from ojak._progress import silent

if TYPE_CHECKING:
    from ojak.model.load import Model
    from ojak.train.config import TrainConfig
    from ojak.train.run import TrainResult


def chat_prefix(model: Model, *, system: str | None = None, turns: int = 1) -> chat.ChatPrefix:
    """What the model's chat template puts around a user's first turn, and the ids that end a turn.

    `system` replaces the template's own system turn; `turns`: for conversations of up to so many of a user's. Raises
    InputRefused for a model without a template (a base model), and for a template that changes what is said.
    """
    return chat.chat_prefix(
        model.chat_template, model.tokenizer, eos_ids=model.stop_ids, system=system, turns=turns
    )


def train_model(
    config: TrainConfig,
    *,
    notify: Callable[[str], None] = silent,
    progress: Callable[[Mapping[str, Any]], None] = lambda figures: None,
) -> TrainResult:
    """Trains a model, or goes on with a run, in the folder `config.out`; see `ojak.train.run.train`.

    `progress` is told the figures of every step, `notify` what else happens.
    """
    from ojak.train.run import train

    return train(config, notify=notify, progress=progress)
