"""What a model writes: answers to requests, greedily, and what can be said of them without asking anyone.

Of each answer: whether it ended by itself, its length, repetition and refusals; where the row has an answer of its own,
chrF against that (Popovic 2015, through sacrebleu) and ROUGE-L (Lin 2004, through rouge-score), both 0 to 100, and how
likely the model finds that answer, in mean nats a token (`reference_logprob`). Where the row carries a limit of length
(`rules.lengths`), whether it is longer than that.
"""

from __future__ import annotations

import functools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ojak._progress import Listener, Progress
from ojak.chat import ChatPrefix
from ojak.engines.base import Engine
from ojak.errors import InputRefused, UsageError
from ojak.formats import template_turns
from ojak.judge.statistics import share
from ojak.model.request import Completion, Request
from ojak.records import Conversation, Message
from ojak.rules import is_refusal
from ojak.rules.lengths import FIELD, Limit, limit_of
from ojak.rules.responses import repetition

LOOPS_FROM = (
    0.3  # the share of repeated runs of words from which an answer counts as a loop; as in `default`'s filter
)
VIOLATION = "length_violation"  # the score of an answer that is longer (1) or not (0) than its request allows
COMPARED = ("chrf", "rouge_l", "reference_logprob", "judge_score")  # scores of which the summary has means


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the turns up to a user's, and the reference, empty where there is none.

    given: the input at the end of an Alpaca row's request, which some templates set apart. limit: how long an answer
    may be.
    """

    id: str
    turns: tuple[Message, ...]
    reference: str = ""
    given: str = ""
    limit: Limit | None = None

    def conversation(self, answer: str) -> Conversation:
        """The turns with an answer to them."""
        said: Message = {"role": "assistant", "content": answer}
        meta: dict[str, Any] = {"alpaca_input": self.given} if self.given else {}
        if self.limit:
            meta[FIELD] = {"limit": self.limit.most, "unit": self.limit.unit}
        return Conversation(self.id, [*self.turns, said], meta=meta)


Render = Callable[[Question], str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `finish_reason`: "stop", or "length" for one that the cap cut. `scores`: numbers by name."""

    question: Question
    text: str
    tokens: int
    finish_reason: str
    scores: dict[str, float] = field(default_factory=dict)


def question_of(record: Conversation) -> Question | None:
    """The last request of a conversation, with the answer to it as reference; None if it has no user's turn."""
    turns = list(record.messages)
    reference = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    if not turns or turns[-1]["role"] != "user":
        return None
    given = template_turns(record)[len(turns) - 1].get("input", "")
    return Question(record.id, tuple(turns), reference, given, limit_of(record.meta))


def ask(
    engine: Engine,
    questions: Iterable[Question],
    *,
    max_tokens: int,
    render: Render | None = None,
    listener: Listener | None = None,
) -> tuple[list[Answer], dict[str, int]]:
    """The answers in the order of the questions, and the questions that could not be asked, by reason: `template` (it
    refuses the turns), `too_long` (no room for an answer), `failed` (the engine gave up).

    render: the whole prompt of a question with an input of its own; without it, such an input stays where it stands.

    Raises InputRefused for a model without a chat template, UsageError if sacrebleu or rouge-score is missing where a
    row has a reference.
    """
    skipped: Counter[str] = Counter()
    requests = list(_requests(engine, questions, max_tokens, render, skipped))
    if any(question.reference for question, _ in requests):
        _chrf()  # missing, it is told before any work
        _rouge()
    answered: dict[int, Answer] = {}
    state = Progress(len(requests), phase="answering")
    for done in _generated(engine, [request for _, request in requests], max_tokens):
        if done.error is not None:
            skipped["failed"] += 1
        else:
            question = requests[done.request.tag][0]
            answered[done.request.tag] = _answer(question, done.text, done.token_count, done.finish_reason)
            state.accepted += 1
        state.rows_done += 1
        state.completion_tokens += done.token_count
        if listener:
            listener.update(state)
    return [answered[place] for place in sorted(answered)], dict(skipped)


def _requests(
    engine: Engine,
    questions: Iterable[Question],
    max_tokens: int,
    render: Render | None,
    skipped: Counter[str],
) -> Iterator[tuple[Question, Request]]:
    prefixes: dict[tuple[str | None, int], ChatPrefix] = {}
    engine.chat_prefix()  # a model without a template is refused as a whole, not row by row
    most, place = engine.context_tokens, 0
    for question in questions:
        try:
            prefix, text = _prompt(engine, question, prefixes)
            text = render(question) if render and question.given else text
        except InputRefused:
            skipped["template"] += 1
            continue
        if most and engine.count_tokens(text) + max_tokens > most:
            skipped["too_long"] += 1
            continue
        yield (
            question,
            Request(
                prompt=text,
                max_tokens=max_tokens,
                stop_ids=prefix.stop_ids,
                stop_strings=prefix.stop_strings,
                tag=place,
            ),
        )
        place += 1


def _prompt(
    engine: Engine, question: Question, prefixes: dict[tuple[str | None, int], ChatPrefix]
) -> tuple[ChatPrefix, str]:
    turns = list(question.turns)
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
    number = len(turns) // 2 + 1
    wanted = [("user", "assistant")[i % 2] for i in range(2 * number - 1)]
    if [turn["role"] for turn in turns] != wanted:
        raise InputRefused(f"the turns of row {question.id!r} do not alternate")
    if (system, number) not in prefixes:
        prefixes[system, number] = engine.chat_prefix(system, turns=number)
    prefix = prefixes[system, number]
    return prefix, prefix.text([turn["content"] for turn in turns])


def _generated(engine: Engine, waiting: Sequence[Request], max_tokens: int) -> Iterator[Completion]:
    if not waiting:
        return
    longest = max_tokens + max(engine.count_tokens(str(request.prompt)) for request in waiting)
    yield from engine.generate(iter(waiting), longest=longest)


def _answer(question: Question, text: str, tokens: int, finish_reason: str) -> Answer:
    scores = {"repetition": round(repetition(text), 6)}
    if question.reference:
        scores["chrf"] = chrf(text, question.reference)
        scores["rouge_l"] = rouge_l(text, question.reference)
    if question.limit:
        scores[VIOLATION] = float(question.limit.violated(text))
        scores["length_ratio"] = round(question.limit.length(text) / question.limit.most, 6)
    return Answer(question, text, tokens, finish_reason, scores)


def chrf(text: str, reference: str) -> float:
    """chrF2 of one text against one reference, 0 to 100. Raises UsageError if sacrebleu is not installed."""
    return float(_chrf()(text, [reference]).score)


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L (F1) of one text against one reference, 0 to 100, without stemming. Raises UsageError if rouge-score is
    not installed.

    Words are runs of letters and digits of any script; the library's own tokenizer knows ASCII alone, and gives the
    same there.
    """
    return 100 * float(_rouge().score(reference, text)["rougeL"].fmeasure)


class Words:
    """Splits texts for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _chrf() -> Callable[..., Any]:
    try:
        from sacrebleu import sentence_chrf
    except ImportError as error:
        raise _missing("sacrebleu") from error
    return sentence_chrf


@functools.cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge-score") from error
    return RougeScorer(["rougeL"], tokenizer=Words())


def _missing(package: str) -> UsageError:
    return UsageError(f"comparing answers with references needs {package}", fix="pip install 'ojak[eval]'")


def with_scores(answers: Iterable[Answer], name: str, values: Iterable[float | None]) -> list[Answer]:
    """The answers, each with its value as another score; without, where that is None."""
    return [
        each if value is None else replace(each, scores={**each.scores, name: value})
        for each, value in zip(answers, values, strict=True)
    ]


def summary(answers: Sequence[Answer], skipped: dict[str, int]) -> dict[str, Any]:
    """Means and shares over the answers; shares are [value, low, high] with Wilson's interval of 95 %."""
    count = len(answers)
    found: dict[str, Any] = {"rows": count, "skipped": skipped}
    if not count:
        return found
    found |= {
        "stopped": list(share(sum(each.finish_reason == "stop" for each in answers), count)),
        "empty": list(share(sum(not each.text.strip() for each in answers), count)),
        "refused": list(share(sum(is_refusal(each.text) for each in answers), count)),
        "looping": list(share(sum(each.scores["repetition"] > LOOPS_FROM for each in answers), count)),
        "tokens_median": statistics.median(each.tokens for each in answers),
    }
    limited = [each.scores[VIOLATION] for each in answers if VIOLATION in each.scores]
    if limited:
        found["length_violations"] = list(share(int(sum(limited)), len(limited)))
    for name in (*COMPARED, "length_ratio"):
        values = [each.scores[name] for each in answers if name in each.scores]
        if values:
            found[name] = {"mean": statistics.fmean(values), "rows": len(values)}
    return found
