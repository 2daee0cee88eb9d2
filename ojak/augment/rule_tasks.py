"""Questions and answers made from a text by rules alone: Self-Tuning's tasks (arXiv 2406.06326; its released files).

Nothing is generated. Each answer stands in the text, word for word, but for the truth of a statement and for lists of
terms, each of which stands there. A pair is a pure function of the document's id, its text and a seed. The questions
are in our own words, in the language of the text where `data/rules_wordings.json` has it, else in English.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import zip_longest
from typing import Any, NamedTuple

from ojak.augment.draws import Draws
from ojak.augment.pairs import Pair
from ojak.augment.rules_parts import (
    BLANK,
    Phrase,
    blanks,
    completions,
    distractors,
    keywords,
    opening,
    passages,
    swapped,
)
from ojak.augment.rules_text import Reading, Sentence, Term, reading
from ojak.augment.verify_text import compared, holds
from ojak.judge.language import language
from ojak.records import Document

MOST_OF_A_TASK = 12  # pairs of one task from one text
RULES = "rules:"  # what the source of a rule-made pair begins with
STATEMENTS = f"{RULES}entailment"
LEAST_KEYWORDS, MOST_OPTIONS, LEAST_OPTIONS = 3, 4, 3

_PLACE = re.compile(r"\{(subject|sentence|keywords)\}")


class Task(NamedTuple):
    """A task: its name here, its label in Self-Tuning's files, the paper's group, and what it asks for."""

    name: str
    published: str
    group: str
    what: str
    share: float = 0.0  # pairs for each sentence; 0: one pair from the whole text


# Their first label, test_pure_evidence, is the plain text, to be memorised: a document has it already.
TASKS = (
    Task(
        "title",
        "title_generation",
        "comprehension",
        "the title; without one, the term that the text is about",
    ),
    Task("keywords", "gen_keywords", "comprehension", "the terms that tell most, in the order of the text"),
    Task(
        "entailment",
        "anli",
        "comprehension",
        "whether a statement is true: false ones have a term swapped",
        0.3,
    ),
    Task("recitation", "info_generation", "reflection", "how the text on a subject begins, word for word"),
    Task("description", "keyword_generation", "reflection", "the passage that holds given terms"),
    Task("blank", "open_qa", "reflection", "the term that was taken out of a sentence", 0.2),
    Task("choice", "mcqa_qa", "reflection", "the same, among other terms of the text", 0.15),
    Task("completion", "sen_completion", "reflection", "the last phrase of a sentence", 0.2),
)


@functools.cache
def wordings() -> dict[str, dict[str, Any]]:
    """By language (ISO 639-1) and task: ways to ask."""
    return json.loads(
        resources.files("ojak.augment").joinpath("data", "rules_wordings.json").read_text("utf-8")
    )


@functools.cache
def labels() -> tuple[frozenset[str], frozenset[str]]:
    """The answers that call a statement true, and those that call it false, case folded, in all languages."""
    ways = [way for bank in wordings().values() for way in bank["entailment"]]
    return frozenset(way["yes"].casefold() for way in ways), frozenset(way["no"].casefold() for way in ways)


def make_pairs(document: Document, *, seed: int, most: int | None = None) -> list[Pair]:
    """The pairs that the rules find in a document, at most `most`, every task in turn; none for a text without prose.

    At most `MOST_OF_A_TASK` of a task, of the first `MAX_CHARACTERS` characters. No sentence is used for two questions
    of one answer each, no two questions are alike, no question holds its answer.
    """
    found = reading(document.text)
    maker = _Maker(found, wordings().get(language(found.text), wordings()["en"]), Draws(seed, document.id))
    made = {task.name: maker.of_text(task.name) for task in TASKS if not task.share}
    made |= maker.of_sentences([task for task in TASKS if task.share])
    order = maker.draws.shuffled("tasks", [task.name for task in TASKS])
    in_turn = (pair for turn in zip_longest(*(made[name] for name in order)) for pair in turn if pair)
    return _different(in_turn, most)


def _different(pairs: Iterator[Pair], most: int | None) -> list[Pair]:
    """The first `most` pairs whose questions differ, and that do not tell their answers."""
    kept: list[Pair] = []
    asked: set[str] = set()
    for pair in pairs:
        question = compared(pair.question)
        if most is not None and len(kept) >= most:
            break
        tells = pair.source != STATEMENTS and holds(question, compared(pair.answer))
        if question not in asked and not tells:
            asked.add(question)
            kept.append(pair)
    return kept


@dataclass
class _Maker:
    """Makes the pairs of one text; `wordings`: those of its language."""

    reading: Reading
    wordings: dict[str, Any]
    draws: Draws
    truths: int = field(default=0)  # statements made so far: true and false ones take turns

    def of_text(self, task: str) -> list[Pair]:
        return [pair for pair in getattr(self, f"_{task}")() if pair.answer.strip()]

    def of_sentences(self, tasks: Sequence[Task]) -> dict[str, list[Pair]]:
        """Each sentence goes to the first task that still wants one and can use it; the tasks take turns."""
        count = len(self.reading.prose)
        wanted = {task.name: min(MOST_OF_A_TASK, max(1, round(task.share * count))) for task in tasks}
        made: dict[str, list[Pair]] = {name: [] for name in wanted}
        order = self.draws.shuffled("sentence tasks", list(wanted))
        for number in self.draws.shuffled("sentences", range(count)):
            for name in order:
                pair = getattr(self, f"_{name}")(number) if len(made[name]) < wanted[name] else None
                if pair is not None:
                    made[name].append(pair)
                    order = [*(other for other in order if other != name), name]
                    break
        return made

    # -- of the whole text --------------------------------------------------------------------------------------------

    def _title(self) -> Iterator[Pair]:
        if subject := self.reading.subject:
            yield self._pair("title", self._ask("title" if self.reading.title else "topic"), subject)

    def _keywords(self) -> Iterator[Pair]:
        found = keywords(self.reading)
        if len(found) >= LEAST_KEYWORDS:
            yield self._pair("keywords", self._ask("keywords"), "; ".join(found))

    def _recitation(self) -> Iterator[Pair]:
        subject, passage = self.reading.subject, opening(self.reading)
        if subject and passage:
            yield self._pair("recitation", self._ask("recitation", subject=subject), passage.text)

    def _description(self) -> Iterator[Pair]:
        subject, begins = self.reading.subject, opening(self.reading)
        fit = [
            passage
            for passage in passages(self.reading)
            if len(passage.terms) >= LEAST_KEYWORDS and not (begins and passage.text in begins.text)
        ]
        if subject and fit:
            chosen = self.draws.pick("passage", fit)
            asked = self._ask("description", subject=subject, keywords="; ".join(chosen.terms))
            yield self._pair("description", asked, chosen.text)

    # -- of one sentence ----------------------------------------------------------------------------------------------

    def _entailment(self, number: int) -> Pair | None:
        """Only of a sentence that could be made false: else all statements of a text without names would be true."""
        false = swapped(self.reading, number, self.draws.under("swap", number))
        if false is None:
            return None
        self.truths += 1
        true = (self.truths + self.draws.bits("first truth")) % 2 == 0
        way = self.draws.pick(f"entailment {number}", self.wordings["entailment"])
        sentence = self.reading.prose[number].text if true else false
        question = _filled(way["question"], sentence=sentence)
        return self._pair("entailment", question, way["yes" if true else "no"])

    def _blank(self, number: int) -> Pair | None:
        chosen = self._blanked("blank", number)
        if chosen is None:
            return None
        question = self._ask("blank", number, sentence=_without(self.reading.prose[number], chosen))
        return self._pair("blank", question, chosen.text)

    def _choice(self, number: int) -> Pair | None:
        chosen = self._blanked("choice", number)
        others = distractors(self.reading, number, chosen, self.draws.under("others")) if chosen else []
        options = [chosen.text, *others[: MOST_OPTIONS - 1]] if chosen else []
        if chosen is None or len(options) < LEAST_OPTIONS:
            return None
        shuffled = tuple(self.draws.shuffled(f"options {number}", options))
        question = self._ask("choice", number, sentence=_without(self.reading.prose[number], chosen))
        return self._pair("choice", question, chosen.text, shuffled)

    def _completion(self, number: int) -> Pair | None:
        phrase: Phrase | None = completions(self.reading.prose[number].text)
        if phrase is None:
            return None
        return self._pair(
            "completion", self._ask("completion", number, sentence=f"{phrase.before} ..."), phrase.last
        )

    def _blanked(self, task: str, number: int) -> Term | None:
        """The term to be taken out: a name, a figure or a quoted one where there is one."""
        found = list(blanks(self.reading, number))
        telling = [term for term in found if term.kind != "word"]
        return self.draws.pick(f"{task} {number}", telling or found) if found else None

    def _ask(self, wording: str, number: int = 0, **parts: str) -> str:
        return _filled(self.draws.pick(f"{wording} {number}", self.wordings[wording]), **parts)

    def _pair(self, task: str, question: str, answer: str, options: tuple[str, ...] = ()) -> Pair:
        return Pair(question, answer, options, RULES + task)


def _filled(way: str, **parts: str) -> str:
    return _PLACE.sub(lambda place: parts[place[1]], way)


def _without(sentence: Sentence, term: Term) -> str:
    return sentence.text[: term.start] + BLANK + sentence.text[term.end :]
