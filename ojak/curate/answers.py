"""The answers to an instruction, and what an engine says of each: scores that stay with the answer.

A row has them in `meta["answers"]`, a list for each turn (`ojak synthesize magpie --responses K`). Scored are those
that no rule rejected; of those that say the same, the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ojak.curate.view import View
from ojak.engines.base import Engine, Scored, require
from ojak.errors import InputRefused, UsageError
from ojak.records import Conversation, Message
from ojak.similarity import normalize

BY_ENGINE = {
    "instruction_gain": "how much the instruction helps: log p(answer | instruction) - log p(answer), per token",
    "likelihood": "log p(answer | instruction), per token",
}
JUDGED = "judge_score"
PREFIXES = 64  # texts around conversations that are remembered: one for each system turn and number of turns


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers to an instruction: its sample, its text, and what its row says of it."""

    sample: int
    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """An instruction with its answers: `turns` is the conversation up to it, `turn` counts a user's turns from 1."""

    record: Conversation
    turn: int
    turns: list[Message]
    answers: tuple[Answer, ...]

    @property
    def id(self) -> str:
        """The row's id, with the turn's number from the second on."""
        return self.record.id if self.turn == 1 else f"{self.record.id}-turn-{self.turn}"


def asked_of(record: Conversation) -> Iterator[Asked]:
    """The instructions of a row, each with its usable answers. Raises InputRefused for answers of another form."""
    system = [turn for turn in record.messages[:1] if turn["role"] == "system"]
    turns = record.messages[len(system) :]
    listed = record.meta.get("answers") or [[] for _ in turns[::2]]
    if not isinstance(listed, list):
        raise _misfit(record)
    for number, group in enumerate(listed, 1):
        before = turns[: 2 * number - 1]
        if not before or before[-1]["role"] != "user" or not isinstance(group, list):
            raise _misfit(record)
        yield Asked(record, number, [*system, *before], tuple(_usable(record, group)))


def _misfit(record: Conversation) -> InputRefused:
    return InputRefused(
        f"the answers of row {record.id!r} do not fit its turns",
        fix="make the rows with ojak synthesize magpie --responses K",
    )


def _usable(record: Conversation, group: list[Any]) -> Iterator[Answer]:
    """The answers that no rule rejected, each text once."""
    seen: set[str] = set()
    for sample, facts in enumerate(group):
        text = facts.get("text") if isinstance(facts, dict) else None
        if not isinstance(text, str):
            raise InputRefused(f"answer {sample} of row {record.id!r} is no text")
        said = normalize(text)
        if facts.get("reason") is None and said not in seen:
            seen.add(said)
            yield Answer(sample, text, facts)


class AnswerScores:
    """An annotator: sets an engine's score of each usable answer in the `scores` of that answer.

    by: one of `BY_ENGINE`, or `JUDGED`, a judge's grade from 0 to 100. An answer that the engine cannot score has none.
    """

    def __init__(self, engine: Engine, by: str) -> None:
        """Raises UsageError for an engine that cannot give the score."""
        self._by, self._engine = by, engine
        self.gives = (f"answers.{by}",)
        self.identity = {"answers": by, "engine": engine.identity}
        self._prefix = functools.lru_cache(PREFIXES)(
            lambda system, turns: engine.chat_prefix(system, turns=turns)
        )
        self._judge = None
        if by == JUDGED:
            from ojak.judge import Judge

            self._judge = Judge(engine)
        else:
            require(engine, "pairs", "scores")

    def annotate(self, views: Sequence[View]) -> None:
        asked = [list(asked_of(view.conversation)) for view in views]
        scores = iter(self._scores([each for group in asked for each in group]))
        for view, group in zip(views, asked, strict=True):
            found = {(each.turn, answer.sample): next(scores) for each in group for answer in each.answers}
            view.conversation = _with_scores(view.conversation, self._by, found)

    def _scores(self, asked: Sequence[Asked]) -> Iterable[float | None]:
        """Of all answers, one after another."""
        if self._judge is not None:
            alone = (_alone(each, answer) for each in asked for answer in each.answers)
            return (score for _, score in self._judge.judge(alone))
        given = self._means(asked, [each.turns for each in asked])
        if self._by != "instruction_gain":
            return given
        empty = self._means(asked, [_emptied(each.turns) for each in asked])
        both = zip(given, empty, strict=True)
        return [None if one is None or two is None else one - two for one, two in both]

    def _means(self, asked: Sequence[Asked], before: Sequence[Sequence[Message]]) -> list[float | None]:
        """The mean log-probability of each answer's tokens after the turns `before` it."""
        prompts = [self._prompt(turns) for turns in before]
        texts = [
            Scored(prompt, answer.text)
            for prompt, each in zip(prompts, asked, strict=True)
            for answer in each.answers
        ]
        return _mean_of_each(self._engine, texts)

    def _prompt(self, turns: Sequence[Message]) -> str:
        system = turns[0]["content"] if turns[0]["role"] == "system" else None
        texts = [turn["content"] for turn in turns if turn["role"] != "system"]
        return self._prefix(system, len(texts) // 2 + 1).text(texts)


def _mean_of_each(engine: Engine, texts: Sequence[Scored]) -> list[float | None]:
    """Mean log-probabilities; None for a text that the engine refuses, as one that is too long."""
    try:
        found: Iterable[tuple[float, ...]] = list(engine.score(texts))
    except UsageError:
        if len(texts) == 1:
            return [None]
        return [mean for text in texts for mean in _mean_of_each(engine, [text])]
    return [math.fsum(logprobs) / len(logprobs) if logprobs else None for logprobs in found]


def _emptied(turns: Sequence[Message]) -> list[Message]:
    """The conversation without what was asked last."""
    return [*turns[:-1], {"role": "user", "content": ""}]


def _alone(asked: Asked, answer: Answer) -> Conversation:
    """An answer as a judge reads it: after all that was said, as one message."""
    said = "\n\n".join(turn["content"] for turn in asked.turns if turn["role"] != "system")
    turns: list[Message] = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": answer.text},
    ]
    return Conversation(f"{asked.id}.{answer.sample}", turns)


def _with_scores(
    record: Conversation, by: str, found: Mapping[tuple[int, int], float | None]
) -> Conversation:
    """The row with the scores of its answers, by (turn, sample); one that came with a scored answer is replaced."""
    listed: list[list[Any]] = [list(group) for group in record.meta.get("answers") or []]
    for (turn, sample), score in found.items():
        facts = listed[turn - 1][sample]
        scores = dict(facts["scores"]) if isinstance(facts.get("scores"), dict) else {}
        scores.pop(by, None)
        if score is not None and math.isfinite(score):
            scores[by] = score
        listed[turn - 1][sample] = {**facts, "scores": scores}
    return replace(record, meta={**record.meta, "answers": listed}) if listed else record
