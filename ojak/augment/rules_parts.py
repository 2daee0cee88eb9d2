"""The parts that the rule-made tasks are put together from: what to take out of a sentence, and what to put in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ojak.augment.draws import Draws
from ojak.augment.rules_text import Reading, Sentence, Term
from ojak.rules.rule import WIDE

BLANK = "____"
SWAPPED = ("name", "year", "percent", "number", "quoted")  # kinds of terms that a statement turns on
MOST_KEYWORDS, LONGEST_PASSAGE = 8, 600
MOST_CANDIDATES = 64  # other terms of a text that are looked at
MOST_TRIES = 2  # terms of a sentence that are swapped, and others for each, until one gives a false statement

_PREPOSITIONS_TEXT = """
    of in on at by for with from to into onto over under between among through during against about as than via
    within without upon toward towards across since until after before im am vom zum zur beim aus bei mit nach
    seit von zu für durch gegen ohne um an auf hinter neben über unter vor zwischen de du des en dans par pour
    avec sans sur sous vers chez entre del con por para sin sobre desde hasta según
"""
_PREPOSITIONS = frozenset(_PREPOSITIONS_TEXT.split())
_PIECE = re.compile(r"\S+")
_WORD = re.compile(r"[^\W_]+")
_ENDING = re.compile(
    r"[.!?\u2026\u061f\u06d4\u0964\u0965\u3002\uff01\uff1f\uff61\s\"'\u201d\u2019\u00bb)\]\u300d\u300f]+\Z"
)
_CLAUSE = re.compile(r"[,;:] ")
_WIDE_COMMA = re.compile("[\u3001\uff0c]")
LEAST_BEFORE, MOST_PIECES, LEAST_PIECES = 5, 8, 2  # pieces (between blanks) before the last phrase, and in it


class Phrase(NamedTuple):
    """A sentence in two: what comes before its last phrase, and that phrase without the sign at the end."""

    before: str
    last: str


class Passage(NamedTuple):
    """Sentences of one paragraph that follow each other, and the terms in them."""

    text: str
    terms: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------- taking out


def blanks(reading: Reading, number: int) -> Iterator[Term]:
    """The terms that can be taken out of a sentence: one answer fits only, and the rest does not give it away."""
    sentence = reading.prose[number].text
    for term in reading.terms[number]:
        rest = f"{sentence[: term.start]} {sentence[term.end :]}".casefold()
        if (
            len(rest) - 1 > len(term.text)
            and reading.is_only(number, term)
            and not gives_away(rest, term.text)
        ):
            yield term


def gives_away(rest: str, answer: str) -> bool:
    """Whether a case-folded text holds a word of the answer, or one that begins alike."""
    words = set(_WORD.findall(rest))
    for word in _WORD.findall(answer.casefold()):
        stem = word[: max(4, len(word) - 2)]
        if word in words or (len(word) >= 4 and any(other.startswith(stem) for other in words)):
            return True
    return WIDE.search(answer) is not None and answer in rest


def completions(sentence: str) -> Phrase | None:
    """The sentence cut after the last preposition that leaves a telling phrase; without one, before its last third."""
    pieces = list(_PIECE.finditer(sentence))
    if len(pieces) < LEAST_BEFORE + LEAST_PIECES:
        return _wide_completion(sentence)
    first, last = max(LEAST_BEFORE, len(pieces) - MOST_PIECES), len(pieces) - LEAST_PIECES
    at_word = [i for i in range(first, last + 1) if pieces[i - 1][0].casefold() in _PREPOSITIONS]
    third = len(pieces) - min(MOST_PIECES, max(LEAST_PIECES, len(pieces) // 3))
    for cut in (*reversed(at_word), max(first, third)):
        if phrase := _cut_at(sentence, pieces[cut].start()):
            return phrase
    return None


def _wide_completion(sentence: str) -> Phrase | None:
    """Of a script without blanks: the part after the last comma."""
    commas = list(_WIDE_COMMA.finditer(sentence))
    return _cut_at(sentence, commas[-1].end()) if commas else None


def _cut_at(sentence: str, place: int) -> Phrase | None:
    """Both sides, if the phrase tells something, is whole, and does not stand in what comes before."""
    before, last = sentence[:place].rstrip(), _ENDING.sub("", sentence[place:])
    words = _WORD.findall(last.casefold())
    telling = [word for word in words if word not in _PREPOSITIONS and (len(word) >= 4 or not word.isascii())]
    closed = (
        all(last.count(a) == last.count(b) for a, b in ("()", "[]", "\u201c\u201d"))
        and last.count('"') % 2 == 0
    )
    whole = closed and not _CLAUSE.search(last)
    known = set(_WORD.findall(before.casefold()))
    new = [word for word in telling if word not in known]
    return Phrase(before, last) if new and whole and last.casefold() not in before.casefold() else None


# ------------------------------------------------------------------------------------------------------- putting in


def distractors(reading: Reading, number: int, answer: Term, draws: Draws) -> list[str]:
    """Other terms of the text, of the same kind and form, none of them in the sentence; in a drawn order."""
    sentence = reading.prose[number].text.casefold()
    found: dict[str, str] = {}
    for term in _others(reading, answer, draws):
        folded = term.text.casefold()
        if folded not in sentence and not gives_away(folded, answer.text):
            found.setdefault(folded, term.text)
    alike = [text for text in found.values() if _form(text) == _form(answer.text)]
    return [*alike, *(text for text in found.values() if text not in alike)]


def _others(reading: Reading, answer: Term, draws: Draws) -> list[Term]:
    """Terms of the same kind, drawn: `MOST_CANDIDATES` neighbours in the text at most, so that long texts take no
    longer."""
    of_kind = reading.by_kind[answer.kind]
    begin = draws.bits("begin", answer.start) % len(of_kind)
    near = (of_kind[begin : begin + MOST_CANDIDATES] + of_kind[: min(begin, MOST_CANDIDATES)])[
        :MOST_CANDIDATES
    ]
    return draws.shuffled(f"others of {answer.start}", near)


def _form(text: str) -> tuple[bool, bool, int, str]:
    """What a reader sees of a term without reading it: capitals, calls, its number of words (from three on: many), and
    of a small word its end, which often tells its part of speech."""
    end = text[-2:] if text.islower() else ""
    return text[:1].isupper(), text.isupper() or "(" in text, min(3, len(text.split())), end


def swapped(reading: Reading, number: int, draws: Draws) -> str | None:
    """The sentence with one of its terms replaced by another of the text; None if none fits, or the text says so."""
    sentence = reading.prose[number].text
    terms = [term for term in reading.terms[number] if term.kind in SWAPPED]
    for term in draws.shuffled("term", terms)[:MOST_TRIES]:
        for other in distractors(reading, number, term, draws)[:MOST_TRIES]:
            false = sentence[: term.start] + other + sentence[term.end :]
            if false.casefold() not in reading.folded:
                return false
    return None


# ------------------------------------------------------------------------------------------------------- whole texts


def keywords(reading: Reading) -> list[str]:
    """The most telling terms, none part of another, in the order in which they first stand in the text."""
    chosen: list[str] = []
    for text in sorted(reading.weights, key=lambda text: (-reading.weights[text], text))[:MOST_CANDIDATES]:
        folded = text.casefold()
        apart = all(folded not in other.casefold() and other.casefold() not in folded for other in chosen)
        if len(chosen) < MOST_KEYWORDS and apart and ";" not in text:
            chosen.append(text)
    return sorted(chosen, key=lambda text: (reading.collapsed.find(text), text))


def opening(reading: Reading) -> Passage | None:
    """The first prose of the text: as many of the sentences that follow each other as fit."""
    return _passage(reading, 0, 99) if reading.prose else None


def passages(reading: Reading) -> list[Passage]:
    """From each sentence on, two that follow each other."""
    found = (_passage(reading, number, 2) for number in range(len(reading.prose)))
    return [passage for passage in found if passage is not None]


def _passage(reading: Reading, number: int, most: int) -> Passage | None:
    """Sentences from `number` on, in one paragraph, and the terms in them; None for fewer than two sentences."""
    chosen: list[Sentence] = []
    terms: dict[str, str] = {}
    for sentence, found in zip(reading.prose[number : number + most], reading.terms[number:], strict=False):
        length = sum(len(each.text) + 1 for each in chosen) + len(sentence.text)
        if chosen and (not _follows(chosen[-1], sentence) or length > LONGEST_PASSAGE):
            break
        chosen.append(sentence)
        for term in found:
            terms.setdefault(term.text.casefold(), term.text)
    if len(chosen) < 2:
        return None
    joined = " ".join(each.text for each in chosen)
    if joined not in reading.collapsed:  # of a script that sets sentences without a blank between them
        joined = "".join(each.text for each in chosen)
    distinct = [text for text in terms.values() if ";" not in text]
    return Passage(joined, tuple(distinct[:MOST_KEYWORDS])) if joined in reading.collapsed else None


def _follows(before: Sentence, sentence: Sentence) -> bool:
    return sentence.paragraph == before.paragraph and sentence.place == before.place + 1
