"""Texts and their pairs as documents for pre-training, written by templates drawn from a bank (`bank/en.yaml`).

There is a bank for each of some languages; the texts of a group are written by that of the first one's.

    classic     the text, then its questions; or now and then the questions first
    dialog      two people speak of it
    numbered    all questions, then all answers
    inline      earlier questions are examples within the last one's request
    next_turn   a conversation with an assistant

The texts of one group are written in one mode, by the same templates, so that they are shots of one task. Every draw
has a stream of its own (`draws.py`). Shares of the modes and of inverted order: LMOps, `read_compre_pt.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import ConfigDict, Field

from ojak import _recipe_yaml
from ojak._settings import Settings
from ojak.augment.draws import Draws
from ojak.augment.pairs import Pair
from ojak.augment.parsed import CONCLUSION, THOUGHT, chosen_option, final_answer
from ojak.errors import UsageError
from ojak.judge.language import language
from ojak.records import Document

BANKS = Path(__file__).parent / "bank"
ENGLISH = BANKS / "en.yaml"
GAP = "\n\n"
FEW = {"classic": 95, "dialog": 5}  # where a text has fewer than two pairs
MANY = {"classic": 80, "dialog": 5, "numbered": 5, "inline": 5, "next_turn": 5}
INVERTED = {False: 95, True: 5}  # of the classic ones
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_PLACES = re.compile(r"\{(text|question|answer|option|letter|number|said)\}")


class _Piece(Settings):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inverted(_Piece):
    before: str
    text: str


class OptionItem(_Piece):
    item: str
    answer: str


class Dialog(_Piece):
    opening: str
    ask: str
    reply: str


class Numbered(_Piece):
    opening: str
    ask: str
    between: str
    reply: str


class Inline(_Piece):
    opening: str
    example: str
    last: str


class NextTurn(_Piece):
    ask: str
    reply: str
    first: str


class Bank(Settings):
    """The templates of one language."""

    lead_ins: tuple[str, ...] = Field(min_length=1)
    openers: tuple[str, ...] = Field(min_length=1)
    questions: tuple[str, ...] = Field(min_length=1)
    inverted: tuple[Inverted, ...] = Field(min_length=1)
    option_openers: tuple[str, ...] = Field(min_length=1)
    option_items: tuple[OptionItem, ...] = Field(min_length=1)
    dialogs: tuple[Dialog, ...] = Field(min_length=1)
    numbered: tuple[Numbered, ...] = Field(min_length=1)
    inline: tuple[Inline, ...] = Field(min_length=1)
    next_turn: tuple[NextTurn, ...] = Field(min_length=1)


@cache
def read_bank(path: Path = ENGLISH) -> Bank:
    """The bank in a file. Raises UsageError that names what is wrong with it."""
    if not path.is_file():
        raise UsageError(f"{path} is not there", fix="give a file of templates such as ojak's bank/en.yaml")
    found = _recipe_yaml.read(path).value
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no bank of templates", fix=f"it has: {', '.join(Bank.model_fields)}")
    return Bank(**found)


@cache
def banks() -> dict[str, Bank]:
    """The banks that come with ojak, by language (ISO 639-1)."""
    return {path.stem: read_bank(path) for path in sorted(BANKS.glob("*.yaml"))}


@dataclass(frozen=True, slots=True)
class Shot:
    """A text of a group with its pairs, as the templates take them: options are part of the question by now."""

    text: str
    pairs: tuple[Pair, ...]


def render(document: Document, pairs: Sequence[Pair], random: Draws, bank: Bank | None = None) -> str:
    """A text and its pairs as one document; a text without pairs is as it was."""
    return render_group([(document, pairs)], random, bank)[0]


def render_group(
    shots: Sequence[tuple[Document, Sequence[Pair]]], random: Draws, bank: Bank | None = None
) -> list[str]:
    """The texts of a group, each with its pairs, all in the mode and by the templates that `random` draws for it.

    A blank line is what belongs between them. How options are laid out is drawn for each pair. Without a bank: that of
    the first text's language, where there is one, else the English one.
    """
    bank = bank or _bank_of(shots)
    asked = [
        Shot(document.text, tuple(_with_options(pair, random.under(document.id, number), bank)
                                  for number, pair in enumerate(pairs)))
        for document, pairs in shots
    ]  # fmt: skip
    fewest = min((len(shot.pairs) for shot in asked if shot.pairs), default=0)
    mode = random.weighted("mode", FEW if fewest < 2 else MANY)
    write = MODES[mode](random, bank)
    return [write(shot) if shot.pairs else shot.text for shot in asked]


def _bank_of(shots: Sequence[tuple[Document, Sequence[Pair]]]) -> Bank:
    text = next((document.text for document, pairs in shots if pairs), "")
    return banks().get(language(text)) or read_bank()


Write = Callable[[Shot], str]


def _classic(random: Draws, bank: Bank) -> Write:
    lead_in, opener = random.pick("lead_in", bank.lead_ins), random.pick("opener", bank.openers)
    question = random.pick("question", bank.questions)
    inverted = random.pick("inverted", bank.inverted) if random.weighted("order", INVERTED) else None

    def write(shot: Shot) -> str:
        asked = [_fill(question, question=pair.question, answer=pair.answer) for pair in shot.pairs]
        if inverted:
            return _join([inverted.before, *asked, _fill(inverted.text, text=shot.text)])
        return _join([_fill(lead_in, text=shot.text), opener, *asked])

    return write


def _dialog(random: Draws, bank: Bank) -> Write:
    found = random.pick("dialog", bank.dialogs)
    lead_in = random.pick("lead_in", bank.lead_ins)

    def write(shot: Shot) -> str:
        turns = [
            f"{_fill(found.ask, said=pair.question)}\n{_fill(found.reply, said=pair.answer)}"
            for pair in shot.pairs
        ]
        return _join([_fill(lead_in, text=shot.text), found.opening, "\n".join(turns)])

    return write


def _numbered(random: Draws, bank: Bank) -> Write:
    found = random.pick("numbered", bank.numbered)
    lead_in = random.pick("lead_in", bank.lead_ins)

    def write(shot: Shot) -> str:
        numbers = range(1, len(shot.pairs) + 1)
        asked = [
            _fill(found.ask, number=n, said=p.question) for n, p in zip(numbers, shot.pairs, strict=True)
        ]
        said = [_fill(found.reply, number=n, said=p.answer) for n, p in zip(numbers, shot.pairs, strict=True)]
        parts = [found.opening, "\n".join(asked), found.between, "\n".join(said)]
        return _join([_fill(lead_in, text=shot.text), *parts])

    return write


def _inline(random: Draws, bank: Bank) -> Write:
    found = random.pick("inline", bank.inline)
    lead_in = random.pick("lead_in", bank.lead_ins)

    def write(shot: Shot) -> str:
        *examples, last = shot.pairs
        shown = [_fill(found.example, question=pair.question, answer=pair.answer) for pair in examples]
        asked = _fill(found.last, question=last.question, answer=last.answer)
        return _join([_fill(lead_in, text=shot.text), found.opening, "\n".join(shown), asked])

    return write


def _next_turn(random: Draws, bank: Bank) -> Write:
    found = random.pick("next_turn", bank.next_turn)

    def write(shot: Shot) -> str:
        first = _fill(found.first, text=shot.text, question=shot.pairs[0].question)
        asked = [first, *(pair.question for pair in shot.pairs[1:])]
        turns = [
            f"{_fill(found.ask, said=question)}\n{_fill(found.reply, said=pair.answer)}"
            for question, pair in zip(asked, shot.pairs, strict=True)
        ]
        return _join(turns)

    return write


MODES: dict[str, Callable[[Draws, Bank], Write]] = {
    "classic": _classic,
    "dialog": _dialog,
    "numbered": _numbered,
    "inline": _inline,
    "next_turn": _next_turn,
}


def _with_options(pair: Pair, random: Draws, bank: Bank) -> Pair:
    """The pair with its options in the question, in a random order, and named by the answer as the template says."""
    right = chosen_option(pair)
    if right is None:
        return pair
    items = [
        each for each in bank.option_items if len(pair.options) <= len(LETTERS) or "{letter}" not in each.item
    ]
    found = random.pick("items", items or [OptionItem(item="- {option}", answer="{option}")])
    options = random.shuffled("order", pair.options)
    lines = [_item(found.item, option, place) for place, option in enumerate(options)]
    question, thought = _without_thought(pair.question)
    asked = "\n".join(filter(None, [question, random.pick("opener", bank.option_openers), *lines, thought]))
    said = _item(found.answer, right, options.index(right))
    reasoning = pair.answer[: -len(final_answer(pair.answer))] if CONCLUSION in pair.answer else ""
    return replace(pair, question=asked, answer=reasoning + said, options=())


def _item(template: str, option: str, place: int) -> str:
    letter = LETTERS[place] if place < len(LETTERS) else ""
    return _fill(template, option=option, letter=letter, number=place + 1)


def _without_thought(question: str) -> tuple[str, str]:
    """A question and its last line, if that asks for reasoning."""
    if question.endswith(f"\n{THOUGHT}"):
        return question.removesuffix(f"\n{THOUGHT}"), THOUGHT
    return question, ""


def _fill(template: str, **values: object) -> str:
    """The template with its places filled, in one pass: what is filled in is never read as a template."""
    return _PLACES.sub(lambda match: str(values.get(match[1], match[0])), template)


def _join(parts: Sequence[str]) -> str:
    return GAP.join(part for part in parts if part)
