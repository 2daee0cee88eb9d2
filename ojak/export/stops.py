"""What ends a text of a model: one contract for everything that an export is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ojak.chat import ChatTemplate, chat_prefix, read_turn_end, special_pattern, turn_boundaries

if TYPE_CHECKING:
    from ojak.model.load import Model


@dataclass(frozen=True, slots=True)
class Stops:
    """`needed` ends an answer or a text, in whatever runs the model. `ids`: those, and tokens that open another turn.

    `strings` mark the turns of templates that have no tokens for it.
    """

    needed: tuple[int, ...]
    ids: tuple[int, ...]
    strings: tuple[str, ...]


def stops_of(model: Model) -> Stops:
    """The stops of a chat model by its files and its template, of a base model by its files.

    Raises InputRefused for a template that cannot be used.
    """
    if not model.chat_template:
        return Stops(model.stop_ids, model.stop_ids, ())
    prefix = chat_prefix(model.chat_template, model.tokenizer, eos_ids=model.stop_ids)
    template = ChatTemplate.of(model.chat_template, model.tokenizer)
    after_answer = [*turn_boundaries(template), "", ""][1]
    closing = read_turn_end(after_answer, special_pattern(model.tokenizer))[0][:1]
    needed = (*model.stop_ids, *(model.tokenizer.special_tokens[name] for name in closing))
    return Stops(tuple(dict.fromkeys(needed)), prefix.stop_ids, prefix.stop_strings)
