"""Public functions that join two parts which do not know each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ojak import chat

if TYPE_CHECKING:
    from ojak.model.load import Model


def chat_prefix(model: Model, *, system: str | None = None, turns: int = 1) -> chat.ChatPrefix:
    """What the model's chat template puts around a user's first turn, and the ids that end a turn.

    `system` replaces the template's own system turn; `turns`: for conversations of up to so many of a user's. Raises
    InputRefused for a model without a template (a base model), and for a template that changes what is said.
    """
    return chat.chat_prefix(
        model.chat_template, model.tokenizer, eos_ids=model.stop_ids, system=system, turns=turns
    )
