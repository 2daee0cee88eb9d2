"""How much an answer's probability owes to its text, and to its question, as a model reads them.

text_gain: log p(answer | text, question) - log p(answer | question). question_gain: log p(answer | text, question) -
log p(answer | text). Both in nats a token. An answer to another question of the same text owes little to the question,
an invented one little to the text. given: log p(answer | text, question), per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ojak.augment.pairs import Pair
from ojak.augment.parsed import final_answer
from ojak.augment.verify_text import ground
from ojak.engines.base import Engine, require
from ojak.errors import InputRefused, UsageError
from ojak.judge.ask import shortened
from ojak.judge.likelihood import Read, read_after
from ojak.judge.prompts import neutral

MOST_PASSAGE = 3_000  # characters of a text that are shown, around the answer
Prompt = Callable[[str, str], str]


def gains(engine: Engine, items: Sequence[tuple[str, Pair]]) -> Iterator[dict[str, float] | None]:
    """For each (text, pair): text_gain, question_gain, given; None for one that the engine refuses to read.

    Items of one text should follow each other: what their prompts share is read once. Raises UsageError for an engine
    that cannot `score`.
    """
    require(engine, "verification", "raw_prompt", "scores")
    prompt, special, before = _prompt(engine)

    def shown(text: str) -> str:
        return neutral(shortened(engine, text), special)

    def rows() -> Iterator[tuple[tuple[str, str, str], str]]:
        for text, pair in items:
            answer = final_answer(pair.answer)
            passage = shown(ground(text).passage(pair.question, answer, MOST_PASSAGE))
            asked = shown(pair.question)
            yield (prompt(passage, asked), prompt("", asked), prompt(passage, "")), before + shown(answer)

    yield from map(_gain, _read(engine, list(rows())))


def _read(engine: Engine, rows: list[tuple[tuple[str, ...], str]]) -> list[Read | None]:
    """Of each row; one that is too long for the model is None, and keeps no other from being read."""
    try:
        return list(read_after(engine, rows))
    except UsageError:
        if len(rows) == 1:
            return [None]
        middle = len(rows) // 2
        return [*_read(engine, rows[:middle]), *_read(engine, rows[middle:])]


def _gain(read: Read | None) -> dict[str, float] | None:
    if read is None or not read.tokens:
        return None
    whole, without_text, without_question = (total / read.tokens for total in read.sums)
    found = {"text_gain": whole - without_text, "question_gain": whole - without_question, "given": whole}
    return {name: round(value, 4) for name, value in found.items()}


def _prompt(engine: Engine) -> tuple[Prompt, tuple[str, ...], str]:
    """How text and question are put to the model (either may be empty), what neither may hold, and what stands before
    the answer: the turns of a chat, or, for a model without a template, plain lines."""
    try:
        around = engine.chat_prefix()
    except InputRefused:
        return _plain, engine.special_tokens, " "
    special = tuple({*engine.special_tokens, *around.stop_strings})

    def prompt(text: str, question: str) -> str:
        body = "\n\n".join(part for part in (text, question) if part)
        return f"{around.pre_query}{body}{around.post_query}"

    return prompt, special, ""


def _plain(text: str, question: str) -> str:
    lines = [text, ""] if text else []
    return "\n".join([*lines, *([f"Question: {question}"] if question else []), "Answer:"])
