"""A model as judge of answers: one at a time, by the expected grade, or two against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from ojak.engines.base import Engine
from ojak.judge.ask import Answer, Asker
from ojak.judge.prompts import PAIR_QUESTION, SCORE_QUESTION, Question, Row
from ojak.records import Conversation

BLOCK = 256
BEST = 100.0


def row_of(conversation: Conversation) -> Row:
    """The first thing that the user says, and the assistant's answer to it; empty where there is none."""
    asked = answered = ""
    for turn in conversation.messages:
        if turn["role"] == "user" and not asked:
            asked = turn["content"]
        elif turn["role"] == "assistant" and asked:
            answered = turn["content"]
            break
    return Row(asked, answered)


class Judge:
    """Grades answers by a model.

    reason_tokens: for the reason before the grade; None for the default, 0 for none. Raises UsageError for an engine
    that only takes chats, InputRefused for a model without a chat template.
    """

    def __init__(self, engine: Engine, *, seed: int = 0, reason_tokens: int | None = None) -> None:
        self.asker = Asker(engine, seed, reason_tokens)

    def scores(self, rows: Iterable[Row], question: Question = SCORE_QUESTION) -> Iterator[float | None]:
        """0 to 100 for each row: the expected grade over the labels' probabilities. None where none was to be read."""
        for answer in self._answers(question, rows):
            yield None if answer.level is None else answer.level * BEST

    def prefers_first(self, rows: Iterable[Row]) -> Iterator[float | None]:
        """The probability that `response` is better than `other`, as they stand in this order."""
        for answer in self._answers(PAIR_QUESTION, rows):
            yield answer.probabilities.get("A")

    def judge(self, conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, float | None]]:
        """Each conversation with `judge_score` among its scores, and the score (None: not read, and not set)."""
        stream = iter(conversations)
        while block := list(islice(stream, BLOCK)):
            found = self.scores(row_of(conversation) for conversation in block)
            for conversation, score in zip(block, found, strict=True):
                scores = {} if score is None else {"judge_score": round(score, 3)}
                yield replace(conversation, scores={**conversation.scores, **scores}), score

    def _answers(self, question: Question, rows: Iterable[Row]) -> Iterator[Answer]:
        stream = iter(rows)
        while block := list(islice(stream, BLOCK)):
            yield from self.asker.ask(question, block)
