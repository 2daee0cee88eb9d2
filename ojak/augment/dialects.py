"""The ways in which a model is asked for pairs: the published format, and a plain request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ojak.augment import asked, tagged
from ojak.augment.pairs import Pair
from ojak.augment.parsed import Parsed
from ojak.chat import ChatPrefix
from ojak.engines.base import Engine

FormatName = Literal["auto", "published", "asked"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """ask: a text as the user's turn. write: pairs as the assistant's. parse: what a model said, and whether it was
    cut. marks: what a text must not hold. begin: what an answer begins with; the model goes on after it."""

    name: str
    ask: Callable[[str], str]
    write: Callable[[Sequence[Pair]], str]
    parse: Callable[[str, bool], Parsed]
    marks: tuple[str, ...] = ()
    begin: str = ""


def _as_it_is(text: str) -> str:
    return text


PUBLISHED = Dialect("published", _as_it_is, tagged.write_pairs, tagged.parse, tagged.TAGS)
ASKED = Dialect("asked", asked.ask, asked.write_pairs, asked.parse, begin=asked.BEGIN)


def speak(engine: Engine, shots: int, wanted: FormatName) -> tuple[Dialect, ChatPrefix]:
    """The dialect of a model, and the text around the turns of chains of `shots` examples.

    "auto": a model whose chat template writes the published format was trained with it; others are asked. "published":
    the checkpoint that was published has no template, and literal `<s>` and `</s>`.

    Raises InputRefused for a model without a chat template, or whose template does not take so many turns.
    """
    if wanted == "published":
        return PUBLISHED, tagged.prefix(shots, stop_ids=engine.stop_ids)
    prefix = engine.chat_prefix(turns=shots)
    return (PUBLISHED if wanted == "auto" and tagged.is_prefix(prefix) else ASKED), prefix
