"""Requests whose answers a rule can check: does a model do what it is told, judged by nobody?

The idea is IFEval's (Zhou et al. 2023, arXiv 2311.07911): each request holds one demand on form that a program can
verify. The requests are our own: a task, and a demand drawn from `KINDS`. Scored twice, as there: `strict` is the
answer as it is; `loose` also accepts it without its first line, its last line, or asterisks, for models like prefaces.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ojak.judge.statistics import share
from ojak.records import Message
from ojak.rules.form import bullets, has_word, is_json_object, letters, paragraphs, sentences
from ojak.rules.rule import word_count

Check = Callable[[str], bool]

TASKS = (
    "Explain why the sky looks blue.",
    "Describe how bread is made.",
    "Give advice to someone who learns to swim.",
    "Tell a short story about a lighthouse keeper.",
    "Explain what a budget is good for.",
    "Describe a walk through a forest in autumn.",
    "Explain how a bicycle stays upright.",
    "Recommend what to see on a first visit to a museum.",
    "Describe the life of a honey bee.",
    "Explain how to write a polite complaint.",
    "Describe your ideal kitchen.",
    "Explain what happens when water freezes.",
    "Give tips for sleeping well.",
    "Tell a short story about a lost key.",
    "Explain how a library is organised.",
    "Describe a storm at sea.",
    "Explain the difference between weather and climate.",
    "Give advice on keeping houseplants alive.",
    "Describe a busy railway station.",
    "Explain why we brush our teeth.",
)
WORDS = ("river", "window", "quiet", "morning", "copper", "garden", "paper", "winter", "bridge", "lantern")
ENDS = ("That is all.", "And so it goes.", "The end is near.", "Any other questions?")


@dataclass(frozen=True, slots=True)
class Demand:
    """A demand on form, as it is said, and what verifies it."""

    kind: str
    text: str
    check: Check


@dataclass(frozen=True, slots=True)
class Instruction:
    """A request with one demand."""

    id: str
    demand: Demand
    messages: tuple[Message, ...]


Draw = Callable[[np.random.Generator], Demand]


def _matches(pattern: str) -> Check:
    """Whether the beginning of a text matches."""
    return lambda text: re.match(pattern, text) is not None


def _pick(random: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(random.integers(len(choices)))]


def _include(random: np.random.Generator) -> Demand:
    word = _pick(random, WORDS)
    return Demand(
        "include_word", f'Use the word "{word}" somewhere in your answer.', lambda t: has_word(t, word)
    )


def _avoid(random: np.random.Generator) -> Demand:
    word = _pick(random, ("the", "and", "is", "of", "to"))
    return Demand("avoid_word", f'Never use the word "{word}".', lambda t: not has_word(t, word))


def _at_most(random: np.random.Generator) -> Demand:
    most = int(random.integers(20, 61))
    return Demand("at_most_words", f"Use at most {most} words.", lambda t: word_count(t) <= most)


def _at_least(random: np.random.Generator) -> Demand:
    least = int(random.integers(60, 121))
    return Demand("at_least_words", f"Use at least {least} words.", lambda t: word_count(t) >= least)


def _sentence_count(random: np.random.Generator) -> Demand:
    count = int(random.integers(2, 6))
    return Demand("sentences", f"Answer in exactly {count} sentences.", lambda t: sentences(t) == count)


def _bullet_count(random: np.random.Generator) -> Demand:
    count = int(random.integers(2, 6))
    text = f'Answer as a list of exactly {count} bullet points that begin with "- ".'
    return Demand("bullets", text, lambda t: bullets(t) == count)


def _paragraph_count(random: np.random.Generator) -> Demand:
    count = int(random.integers(2, 4))
    text = f"Write exactly {count} paragraphs with an empty line between them."
    return Demand("paragraphs", text, lambda t: paragraphs(t) == count)


def _ends(random: np.random.Generator) -> Demand:
    end = _pick(random, ENDS)
    return Demand(
        "ends_with", f'End your answer with exactly this: "{end}"', lambda t: t.rstrip().endswith(end)
    )


def _starts(random: np.random.Generator) -> Demand:
    word = _pick(random, WORDS).capitalize()
    return Demand(
        "starts_with", f'The first word must be "{word}".', lambda t: re.match(rf"{word}\b", t) is not None
    )


def _fixed(kind: str, text: str, check: Check) -> Draw:
    return lambda _random: Demand(kind, text, check)


KINDS: tuple[Draw, ...] = (
    _include,
    _avoid,
    _at_most,
    _at_least,
    _sentence_count,
    _bullet_count,
    _paragraph_count,
    _starts,
    _ends,
    _fixed("lower_case", "Write everything in lower case.", lambda t: letters(t) == letters(t).lower()),
    _fixed("upper_case", "WRITE EVERYTHING IN CAPITAL LETTERS.", lambda t: letters(t) == letters(t).upper()),
    _fixed("no_commas", "Do not use any commas.", lambda t: "," not in t),
    _fixed("json", 'Answer only with a JSON object with the single key "answer".', is_json_object),
    _fixed("quoted", "Put your whole answer in double quotation marks.", _matches(r'"[^"]+"$')),
    _fixed("title", "Begin with a title in double angle brackets, such as <<title>>.", _matches(r"<<[^<>\n]+>>")),
    _fixed("postscript", 'Add a postscript at the end that begins with "P.S."', _matches(r"(?:.*\n)*P\.S\.\s*\S")),
)  # fmt: skip


def instructions(count: int, seed: int = 0) -> list[Instruction]:
    """`count` requests, the kinds in turn, the rest drawn from `seed`. The first n of any count are the same."""
    return list(itertools.islice(_endless(seed), count))


def _endless(seed: int) -> Iterator[Instruction]:
    for number in itertools.count():
        random = np.random.default_rng([seed & (1 << 63) - 1, number])
        task, demand = _pick(random, TASKS), KINDS[number % len(KINDS)](random)
        asked: Message = {"role": "user", "content": f"{task} {demand.text}"}
        yield Instruction(f"instruction-{number:04d}", demand, (asked,))


def follows(demand: Demand, answer: str, *, loose: bool = False) -> bool:
    """Whether the answer meets the demand; an empty one never does."""
    variants = _loosened(answer) if loose else [answer]
    return any(variant.strip() and demand.check(variant.strip()) for variant in variants)


def _loosened(answer: str) -> Iterator[str]:
    lines = answer.strip().split("\n")
    for first, last in itertools.product((0, 1), (0, 1)):
        kept = "\n".join(lines[first : len(lines) - last]).strip()
        yield kept
        yield kept.replace("*", "")


def summary(asked: Sequence[Instruction], answers: Mapping[str, str]) -> dict[str, Any]:
    """Shares of demands met, [value, low, high] with Wilson's interval of 95 %, over all and by kind."""
    there = [each for each in asked if each.id in answers]
    met = {
        way: {each.id: follows(each.demand, answers[each.id], loose=way == "loose") for each in there}
        for way in ("strict", "loose")
    }
    kinds = sorted({each.demand.kind for each in there})
    by_kind = {}
    for kind in kinds:
        ids = [each.id for each in there if each.demand.kind == kind]
        by_kind[kind] = list(share(sum(met["strict"][i] for i in ids), len(ids)))
    found: dict[str, Any] = {"rows": len(there)}
    for way, each in met.items():
        found[way] = list(share(sum(each.values()), len(each)))
    return {**found, "by_kind": by_kind}
