"""Good rows made bad on purpose, by rules and a seed: what a judge must tell apart before its word counts.

The rows' lengths are balanced: bad rows are as long as good ones where the corruption allows it, and are compared with
good rows of their own length in any case (`matched`). So length alone tells nothing.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from ojak.judge.prompts import Row

LEAST_WORDS = 8  # an answer that is to be cut or contradicted has at least so many
CALIPER = math.log(1.15)  # two lengths count as the same within this ratio
_OPPOSITES = (
    "always/never more/less increase/decrease increases/decreases true/false before/after first/last "
    "largest/smallest larger/smaller high/low higher/lower hot/cold warm/cool north/south east/west "
    "fast/slow faster/slower good/bad strong/weak add/subtract above/below day/night positive/negative "
    "inside/outside early/late many/few same/different begin/end begins/ends left/right long/short "
    "longer/shorter with/without up/down hard/soft heavy/light yes/no rise/fall rises/falls"
)
_PAIRS = [pair.split("/") for pair in _OPPOSITES.split()]
_SWAP = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_OPPOSED = re.compile(r"\b(?:" + "|".join(_SWAP) + r")\b", re.IGNORECASE)
_VERB = re.compile(
    r"\b(is|are|was|were|can|will|has|have|does|do|should|must)\b(?!\s+not\b)(?=\s)", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def data(name: str) -> list[dict[str, Any]]:
    """The rows of a file that comes with the package."""
    text = resources.files("ojak.judge").joinpath("data", name).read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@cache
def _sentences(kind: str) -> tuple[tuple[str, ...], ...]:
    """Texts to fill with: a tuple for each language or topic."""
    return tuple(tuple(row["sentences"]) for row in data("fillers.jsonl") if row["kind"] == kind)


def shuffled(rows: Sequence[Row], dice: random.Random) -> list[str | None]:
    """Each row with the answer of a neighbour in length."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].response), dice.random()))
    found: list[str | None] = [None] * len(rows)
    for place, i in enumerate(order):
        other = place ^ 1 if place ^ 1 < len(order) else place - 1
        answer = rows[order[other]].response if other >= 0 else None
        found[i] = answer if answer != rows[i].response else None
    return found


def truncated(row: Row, dice: random.Random) -> str | None:
    """The first third to two thirds of the words; never up to the end of a sentence."""
    words = row.response.split(" ")
    if len(words) < LEAST_WORDS:
        return None
    kept = words[: max(3, int(len(words) * dice.uniform(0.35, 0.65)))]
    return re.sub(r"\W+$", "", " ".join(kept))


def wrong_language(row: Row, dice: random.Random) -> str | None:
    """Plain sentences in another language, as long as the answer."""
    return filled(dice.choice(_sentences("language")), len(row.response), dice)


def off_topic(row: Row, dice: random.Random) -> str | None:
    """Correct sentences about something else, as long as the answer."""
    return filled(dice.choice(_sentences("topic")), len(row.response), dice)


def contradicting(row: Row, dice: random.Random) -> str | None:
    """The answer with its numbers changed, its opposites swapped, and where that is too little, its verbs negated."""
    text, numbers = _NUMBER.subn(lambda found: _other_number(found[0], dice), row.response)
    text, swaps = _OPPOSED.subn(lambda found: _like(found[0], _SWAP[found[0].lower()]), text)
    wanted = max(1, len(_SENTENCE.split(row.response)) // 2)
    if numbers + swaps < wanted:
        text, negated = _VERB.subn(lambda found: f"{found[0]} not", text, count=wanted)
        swaps += negated
    return text if numbers + swaps else None


def copied(row: Row, dice: random.Random) -> str | None:
    """The instruction instead of an answer."""
    return row.instruction


def padded(row: Row, dice: random.Random) -> str | None:
    """The answer in words that say nothing: before it, after it, about as much as the answer itself."""
    fluff = filled(_sentences("fluff")[0], max(80, int(len(row.response) * dice.uniform(0.7, 1.1))), dice)
    parts = _SENTENCE.split(fluff)
    middle = (len(parts) + 1) // 2
    return " ".join([*parts[:middle], row.response, *parts[middle:]])


CORRUPTIONS: dict[str, Callable[[Row, random.Random], str | None] | None] = {
    "shuffled": None,  # looks at all rows: `shuffled`
    "truncated": truncated,
    "wrong_language": wrong_language,
    "off_topic": off_topic,
    "contradicting": contradicting,
    "copied": copied,
    "padded": padded,
}


def corrupted(name: str, rows: Sequence[Row], seed: int) -> list[Row | None]:
    """Each row with its answer corrupted; None where the rule finds nothing to change."""
    rule = CORRUPTIONS[name]
    if rule is None:
        answers = shuffled(rows, random.Random(f"{seed} {name}"))
    else:
        answers = [rule(row, random.Random(f"{seed} {name} {i}")) for i, row in enumerate(rows)]
    return [
        row._replace(response=answer) if answer and answer != row.response else None
        for row, answer in zip(rows, answers, strict=True)
    ]


def filled(sentences: Sequence[str], length: int, dice: random.Random) -> str:
    """Sentences in a drawn order, about `length` characters; of a short one only its first words."""
    pool: list[str] = []
    text = ""
    while len(text) < length * 0.9:
        pool = pool or dice.sample(list(sentences), len(sentences))
        text = f"{text} {pool.pop()}".strip()
    if len(text) <= length * 1.1:
        return text
    kept = text[: max(length, 4)].rsplit(" ", 1)[0].rstrip(" ,;:.")
    return f"{kept}."


def _other_number(digits: str, dice: random.Random) -> str:
    """Another number with as many digits."""
    if len(digits) > 15:
        return digits[::-1]
    low = 10 ** (len(digits) - 1) if len(digits) > 1 else 0
    span = 10 ** len(digits) - low
    return str(low + (int(digits) - low + dice.randrange(1, span)) % span).zfill(len(digits))


def _like(word: str, other: str) -> str:
    return other.capitalize() if word[:1].isupper() else other


def matched(good: Sequence[int], bad: Sequence[int], dice: random.Random) -> list[tuple[int, int]]:
    """Pairs (place in good, place in bad) of about the same length; each place at most once, as many as there are."""
    left = sorted(range(len(good)), key=lambda i: (good[i], dice.random()))
    right = sorted(range(len(bad)), key=lambda i: (bad[i], dice.random()))
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        ratio = math.log(max(1, good[left[i]]) / max(1, bad[right[j]]))
        if abs(ratio) <= CALIPER:
            pairs.append((left[i], right[j]))
            i, j = i + 1, j + 1
        elif ratio < 0:
            i += 1
        else:
            j += 1
    return pairs


# ------------------------------------------------------------------------------------------------- bad instructions


def words_shuffled(text: str, dice: random.Random) -> str:
    words = text.split()
    return " ".join(dice.sample(words, len(words)))


def garbled(text: str, dice: random.Random) -> str:
    """Every word of four letters or more with its letters in another order."""
    return re.sub(r"\w{4,}", lambda found: "".join(dice.sample(found[0], len(found[0]))), text)


def vague(text: str, dice: random.Random) -> str:
    """As many words that ask for nothing in particular."""
    return filled(_sentences("vague")[0], len(text), dice)


BAD_INSTRUCTIONS = {"words_shuffled": words_shuffled, "garbled": garbled, "vague": vague}


def bad_instructions(rows: Sequence[Row], seed: int) -> list[Row]:
    """Each row's instruction spoilt, the ways taken in turn."""
    ways = list(BAD_INSTRUCTIONS)
    return [
        Row(
            BAD_INSTRUCTIONS[ways[i % len(ways)]](row.instruction, random.Random(f"{seed} {i}")), row.response
        )
        for i, row in enumerate(rows)
    ]
