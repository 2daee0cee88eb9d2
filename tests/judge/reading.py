"""Scripted judges: engines that read the material out of a prompt as strictly as it is marked, and hold an opinion."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ojak.engines.base import Scored
from ojak.engines.scripted import ScriptedEngine
from ojak.judge.prompts import QUESTIONS, Question, Row
from ojak.model.request import Completion, Request

MARK = re.compile(r"between lines that say (#[0-9a-f]{8})\.")
Opinion = Callable[[Question, Row], float]  # from 0, the first label, to 1, the last one
Belief = Callable[[str, str], float]  # log p of each word of a response after a prompt


def material(prompt: str) -> list[str]:
    """What stands between the marked lines."""
    found = MARK.search(prompt)
    assert found, "no mark was announced"
    return prompt.split(f"\n{found[1]}\n")[1:-1]


def question_of(prompt: str) -> Question:
    line = prompt.rsplit("\n", 1)[-1].removesuffix(":")
    return next(each for each in QUESTIONS.values() if each.label == line)


def seen(question: Question, prompt: str) -> Row:
    """The row: one marked part for each thing that the question shows, each with its heading."""
    parts = material(prompt)
    shows = [each for each in question.shows if each[0] != "Reference" or len(parts) == len(question.shows)]
    assert len(parts) == len(shows)
    row = Row("")
    for part, (heading, field) in zip(parts, shows, strict=True):
        assert part.startswith(f"{heading}: ")
        row = row._replace(**{field: part.removeprefix(f"{heading}: ")})
    return row


class ReadingEngine(ScriptedEngine):
    """Scores labels by an opinion on the row that it reads, and responses by a belief."""

    def __init__(self, opinion: Opinion, belief: Belief = lambda _prompt, _response: -1.0) -> None:
        super().__init__(lambda _request: " it is as it is")
        self.opinion, self.belief = opinion, belief

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        for text in texts:
            prompt, continuation = str(text.prompt), str(text.continuation)
            if prompt.endswith(":") and MARK.search(prompt):
                yield (self._label(prompt, continuation.strip()),)
            else:
                words = continuation.split() or ["."]
                yield tuple(self.belief(prompt, continuation) for _ in words)

    def _label(self, prompt: str, label: str) -> float:
        question = question_of(prompt)
        wanted = self.opinion(question, seen(question, prompt))
        return -20 * abs(question.labels.index(label) / (len(question.labels) - 1) - wanted)


class WritingEngine(ScriptedEngine):
    """An engine that cannot score: every answer is a text."""

    capabilities = replace(ScriptedEngine.capabilities, scores=False)


def chance(*parts: str) -> float:
    """A number from 0 to 1 that depends on the texts alone."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Stops(ScriptedEngine):
    """Before another scripted engine: ends it with Ctrl-C after `most` answers and windows; `done` counts them."""

    most = 10**9
    done = 0

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        for completion in super().generate(requests, longest=longest):
            self._count()
            yield completion

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        self._count()
        return super().score(texts)

    def _count(self) -> None:
        if self.done == self.most:
            raise KeyboardInterrupt
        self.done += 1
