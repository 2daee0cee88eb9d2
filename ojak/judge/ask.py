"""Questions about rows, put to an engine many at once, and their answers read.

Where the engine can `score`, it writes only the free-text fields, and the label is read from the probability of each
allowed one after them: no label is ever lost, and its certainty is known. Elsewhere the engine writes all, the label is
parsed and must be an allowed one; one more request asks for nothing but the label; what then is none is `unparsed`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ojak.chat import ChatPrefix
from ojak.engines.base import Engine, Scored, require
from ojak.judge.labels import UNPARSED, read_fields, read_label
from ojak.judge.prompts import Question, Row, answer_lines, mark_of, neutral
from ojak.model.request import Request

ROW_TOKENS = 768  # of each text of a row that a judge is shown, at most
LABEL_TOKENS = 12  # for a label that is written
FIELD_CHARS = 300  # of a free-text field, at most
REPAIR_TOKENS = 192  # that asking again for a label adds to a prompt, about
LONGEST_STEP = 128  # the engine's room for a row grows by so many tokens at a time


@dataclass(frozen=True, slots=True)
class Answer:
    """A label and where it comes from: `how` is scored, parsed, repaired or unparsed.

    `probabilities`: of each label, in the question's order; empty if unparsed.
    """

    label: str
    how: str
    fields: dict[str, str]
    probabilities: dict[str, float]

    @property
    def level(self) -> float | None:
        """The expected place of the label between the first (0) and the last (1); None if there is no label."""
        if not self.probabilities:
            return None
        last = len(self.probabilities) - 1
        return sum(p * place for place, p in enumerate(self.probabilities.values())) / last


@dataclass(slots=True)
class Spent:
    """What asking took. `prompt_tokens`: those of all prompts, each counted once for each question."""

    rows: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        seconds = max(self.seconds, 1e-9)
        rates = {"rows_per_s": self.rows / seconds, "tokens_per_s": self.prompt_tokens / seconds}
        return {"rows": self.rows, "prompt_tokens": self.prompt_tokens, "seconds": self.seconds, **rates}


@dataclass(slots=True)
class Asker:
    """Asks an engine. `reason_tokens` replaces that of the questions; with 0 they are asked without free-text fields.

    Raises UsageError for an engine that only takes chats, InputRefused for a model without a chat template.
    """

    engine: Engine
    seed: int = 0
    reason_tokens: int | None = None
    spent: Spent = field(default_factory=Spent)
    around: ChatPrefix = field(init=False)
    special: tuple[str, ...] = field(init=False)
    _longest: int = 0

    def __post_init__(self) -> None:
        require(self.engine, "judging", "raw_prompt")
        self.around = self.engine.chat_prefix()
        self.special = tuple({*self.engine.special_tokens, *self.around.stop_strings})

    def ask(self, question: Question, rows: Sequence[Row]) -> list[Answer]:
        """The answers about `rows`, in their order."""
        if not rows:
            return []
        begin = time.perf_counter()
        question = _shaped(question, self.reason_tokens)
        prompts = self._prompts(question, rows)
        if self.engine.capabilities.scores:
            answers = self._scored(question, prompts)
        else:
            answers = self._written(question, prompts)
        self.spent.rows += len(rows)
        self.spent.seconds += time.perf_counter() - begin
        return answers

    def _prompts(self, question: Question, rows: Sequence[Row]) -> list[str]:
        """Each up to where the assistant begins to speak."""
        prompts = [self.prompt(question, row) for row in rows]
        tokens = [self.engine.count_tokens(prompt) for prompt in prompts]
        self.spent.prompt_tokens += sum(tokens)
        room = max(tokens) + question.reason_tokens * len(question.fields) + 2 * LABEL_TOKENS + REPAIR_TOKENS
        self._longest = max(self._longest, -(-room // LONGEST_STEP) * LONGEST_STEP)
        return prompts

    def prompt(self, question: Question, row: Row) -> str:
        """The chat with `question` about `row`, up to the assistant's first word."""
        safe = Row(*(neutral(shortened(self.engine, text), self.special) for text in row))
        body = question.body(safe, mark_of(safe, self.seed))
        return f"{self.around.pre_query}{question.head}{body}{self.around.post_query}"

    # ------------------------------------------------------------------------------------------- with probabilities

    def _scored(self, question: Question, prompts: Sequence[str]) -> list[Answer]:
        values = self._reasons(question, prompts)
        texts = (
            Scored(f"{prompt}{answer_lines(question, list(found.values()))}", f" {label}")
            for prompt, found in zip(prompts, values, strict=True)
            for label in question.labels
        )
        sums = map(sum, self.engine.score(texts))
        each = _groups(sums, len(question.labels))
        return [_by_probability(question, found, logs) for found, logs in zip(values, each, strict=True)]

    def _reasons(self, question: Question, prompts: Sequence[str]) -> list[dict[str, str]]:
        if not question.fields:
            return [{} for _ in prompts]
        first = question.fields[0]
        begun = [f"{prompt}{first}:" for prompt in prompts]
        tokens = question.reason_tokens * len(question.fields)
        written = self._write(question, begun, tokens, (f"\n{question.label}:", "\n\n"))
        return [self._fields(question, f"{first}:{text}") for text in written]

    def _fields(self, question: Question, text: str) -> dict[str, str]:
        """The free-text fields in `text`; what is missing is a dash."""
        found = read_fields(text, question.fields)
        return {
            name: neutral(found.get(name, ""), self.special)[:FIELD_CHARS] or "-" for name in question.fields
        }

    # --------------------------------------------------------------------------------------------- with text alone

    def _written(self, question: Question, prompts: Sequence[str]) -> list[Answer]:
        first = (*question.fields, question.label)[0]
        tokens = question.reason_tokens * len(question.fields) + LABEL_TOKENS
        written = self._write(question, [f"{prompt}{first}:" for prompt in prompts], tokens, ("\n\n",))
        answers = [self._parsed(question, f"{first}:{text}", "parsed") for text in written]
        lost = [i for i, answer in enumerate(answers) if answer.label == UNPARSED]
        again = self._write(
            question, [self._repair(question, prompts[i]) for i in lost], LABEL_TOKENS, ("\n",)
        )
        for i, text in zip(lost, again, strict=True):
            found = self._parsed(question, f"{question.label}:{text}", "repaired")
            answers[i] = replace(found, fields=answers[i].fields)
        return answers

    def _parsed(self, question: Question, text: str, how: str) -> Answer:
        values = self._fields(question, text)
        label = read_label(read_fields(text, (question.label,)).get(question.label, ""), question.labels)
        if label is None:
            return Answer(UNPARSED, UNPARSED, values, {})
        return Answer(label, how, values, {each: float(each == label) for each in question.labels})

    def _repair(self, question: Question, prompt: str) -> str:
        post = self.around.post_query
        listed = ", ".join(question.labels)
        asked = f"Write one of these and nothing else: {listed}."
        return f"{prompt.removesuffix(post)}\n{asked}{post}{question.label}:"

    # ---------------------------------------------------------------------------------------------------- requests

    def _write(
        self, question: Question, prompts: Sequence[str], tokens: int, stops: tuple[str, ...]
    ) -> list[str]:
        """What the engine writes after each prompt: the most probable text."""
        around = self.around
        shared = f"{around.pre_query}{question.head}"
        requests = (
            Request(
                prompt=prompt,
                max_tokens=tokens,
                stop_ids=around.stop_ids,
                stop_strings=(*around.stop_strings, *stops),
                shared_prefix=shared,
                tag=place,
            )
            for place, prompt in enumerate(prompts)
        )
        found = [""] * len(prompts)
        for done in self.engine.generate(requests, longest=self._longest) if prompts else ():
            found[done.request.tag] = done.text
        return found


def _shaped(question: Question, reason_tokens: int | None) -> Question:
    """The question with so many tokens for free text; with 0 of them, without its fields."""
    if reason_tokens is None:
        return question
    if reason_tokens > 0:
        return replace(question, reason_tokens=reason_tokens)
    bare = tuple(example._replace(fields=()) for example in question.examples)
    return replace(question, fields=(), examples=bare, reason_tokens=0)


def _by_probability(question: Question, fields: dict[str, str], logs: Sequence[float]) -> Answer:
    """The likeliest label; the probabilities are those among the allowed labels."""
    top = max(logs)
    if any(map(math.isnan, logs)) or not math.isfinite(top):
        return Answer(UNPARSED, UNPARSED, fields, {})
    weights = [math.exp(log - top) for log in logs]
    total = sum(weights)
    found = {label: weight / total for label, weight in zip(question.labels, weights, strict=True)}
    return Answer(max(found, key=found.__getitem__), "scored", fields, found)


def _groups(values: Iterable[float], size: int) -> Iterator[tuple[float, ...]]:
    """Groups of `size` values."""
    stream = iter(values)
    while group := tuple(islice(stream, size)):
        yield group


def shortened(engine: Engine, text: str, most: int = ROW_TOKENS) -> str:
    """`text` if it has at most `most` tokens; else its beginning and its end, with a sign between them."""
    if len(text.encode("utf-8", "replace")) <= most:
        return text
    text = _middle_out(text, most * 16)
    while (count := engine.count_tokens(text)) > most:
        text = _middle_out(text, int(len(text) * most / count * 0.95))
    return text


def _middle_out(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail]} [...] {text[len(text) - tail :]}"
