"""Questions with right answers from context-QA sets, and wrong answers planted beside them, from a seed."""

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ojak.augment.pairs import Pair
from ojak.augment.rules_text import Reading, Term
from ojak.augment.sources import YES_NO, read_grounds
from ojak.augment.verify_text import ground, holds
from ojak.judge.corrupt import contradicting
from ojak.judge.prompts import Row
from ojak.similarity import normalize

FILES = {
    "xquad": "xquad.en.json.gz",
    "tatqa": "tatqa_dev.json.gz",
    "pubmedqa": "pubmedqa_pqal_dev500.json.gz",
}
WORKED_OUT = "tatqa worked out"
LEAST_ANSWER_WORDS = 4  # of one that can be negated
ENTITIES = ("name", "year", "percent", "number")
NAMES = (
    "Orlan Veskaard", "Mirabeth Tolworth", "Kesselby Trust", "Dunmarrow", "Ilvane Croft", "Port Asherby",
    "Tamsin Quill", "the Harrowgate Pact", "Velmora", "Edric Lonsmith", "Callowmere", "Bryndale Society",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """A question about a text, with its right answer."""

    set: str
    text: str
    question: str
    answer: str

    def pair(self, answer: str | None = None) -> Pair:
        return Pair(self.question, self.answer if answer is None else answer)


# --------------------------------------------------------------------------------------------------------- the sets


def read_items(folder: Path) -> Iterator[Item]:
    """The right pairs of the sets of `FILES` that are there, but for bare yes and no. Answers of TAT-QA that are
    counted or computed, and so stand in no text, are a set of their own, `WORKED_OUT`."""
    for name, file in FILES.items():
        if not (folder / file).is_file():
            continue
        worked_out = _worked_out(folder / file) if name == "tatqa" else frozenset()
        for grounds in read_grounds(folder / file, Counter()):
            for text, pairs in grounds.pairs.items():
                for pair in pairs:
                    if pair.answer not in YES_NO:
                        of_set = WORKED_OUT if pair.question in worked_out else name
                        yield Item(of_set, text, pair.question, pair.answer)


def _worked_out(path: Path) -> frozenset[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        asked = [question for entry in json.load(file) for question in entry["questions"]]
    return frozenset(
        each["question"].strip() for each in asked if each["answer_type"] in ("arithmetic", "count")
    )


# ------------------------------------------------------------------------------------------------------- the answers


def same_text(item: Item, items: Sequence[Item], dice: random.Random) -> str | None:
    """The answer to another question about the same text."""
    others = [other.answer for other in items if other.text == item.text and _differs(item, other.answer)]
    return dice.choice(others) if others else None


def other_text(item: Item, items: Sequence[Item], dice: random.Random) -> str | None:
    """The answer to a question about another text, which this one does not hold."""
    for _ in range(20):
        other = dice.choice(items)
        if other.set == item.set and other.text != item.text and not ground(item.text).holds(other.answer):
            return other.answer
    return None


def swapped(item: Item, items: Sequence[Item], dice: random.Random) -> str | None:
    """A name or figure in the answer replaced by another of the text."""
    reading = _reading(item.text)
    inside = [term for kind in ENTITIES for term in reading.by_kind.get(kind, ()) if term.text in item.answer]
    pairs = [
        (term, other)
        for term in inside
        for other in reading.by_kind[term.kind]
        if _apart(term, other) and other.text not in item.answer
    ]
    if not pairs:
        return None
    term, other = dice.choice(pairs)
    return item.answer.replace(term.text, other.text)


def negated(item: Item, items: Sequence[Item], dice: random.Random) -> str | None:
    """The answer with a verb negated or an opposite put in."""
    if re.search(r"\d", item.answer) or len(item.answer.split()) < LEAST_ANSWER_WORDS:
        return None
    return contradicting(Row(item.question, item.answer), dice)


def invented(item: Item, items: Sequence[Item], dice: random.Random) -> str | None:
    """A figure or name of the answer replaced by one that the text does not have."""
    if figure := re.search(r"\d+", item.answer):
        other = next(n for n in iter(lambda: str(_as_long(figure[0], dice)), None) if n not in item.text)
        return item.answer.replace(figure[0], other)
    names = [term for term in _reading(item.text).by_kind.get("name", ()) if term.text in item.answer]
    return item.answer.replace(max(names, key=_length).text, dice.choice(NAMES)) if names else None


PLANTED: dict[str, Callable[[Item, Sequence[Item], random.Random], str | None]] = {
    "same_text": same_text,
    "other_text": other_text,
    "swapped": swapped,
    "negated": negated,
    "invented": invented,
}


def wrong_answers(items: Sequence[Item], among: Sequence[Item], seed: int) -> list[dict[str, str]]:
    """For each item, by kind: a wrong answer, where one can be made. among: all items, to take other answers from."""
    found = []
    for number, item in enumerate(items):
        made = {
            kind: rule(item, among, random.Random(f"{seed} {kind} {number}"))
            for kind, rule in PLANTED.items()
        }
        found.append({kind: answer for kind, answer in made.items() if answer and _differs(item, answer)})
    return found


def with_wrong(items: Sequence[Item], among: Sequence[Item], seed: int) -> list[tuple[str, Item]]:
    """(kind, item) of all: "right" as it is, then those with planted answers."""
    planted = zip(items, wrong_answers(items, among, seed), strict=True)
    return [
        (kind, replace(item, answer=answer))
        for item, wrong in planted
        for kind, answer in {"right": item.answer, **wrong}.items()
    ]


@lru_cache(maxsize=8)
def _reading(text: str) -> Reading:
    return Reading(text)


def _differs(item: Item, answer: str) -> bool:
    """Neither holds the other, so that the other answer is not as right."""
    right, other = normalize(item.answer), normalize(answer)
    return right != other and not holds(right, other) and not holds(other, right)


def _apart(term: Term, other: Term) -> bool:
    return not set(term.text.casefold().split()) & set(other.text.casefold().split())


def _length(term: Term) -> int:
    return len(term.text)


def _as_long(digits: str, dice: random.Random) -> int:
    low = 10 ** (min(len(digits), 12) - 1)
    return dice.randrange(max(2, low), 10 * low + 90 * (low < 100))
