"""What a synthesizer's text gives: pairs, and each piece that is none with the reason. Nothing is dropped silently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ojak.augment.pairs import Pair

THOUGHT = "Let's think step by step."  # the last line of a question whose answer reasons first
CONCLUSION = "\nTherefore, the answer is "  # what the answer itself stands after, then

# Reasons for which a piece of text is no pair.
TRUNCATED, NO_QUESTION, NO_ANSWER, STRAY, REPEATED_TAG, CONTEXT_TAG = (
    "truncated", "no_question", "no_answer", "stray_text", "repeated_tag", "context_tag",
)  # fmt: skip
EMPTY_QUESTION, EMPTY_ANSWER, DUPLICATE = "empty_question", "empty_answer", "duplicate_question"
BAD_OPTIONS, FEW_OPTIONS, SAME_OPTIONS, NOT_AN_OPTION = (
    "unreadable_options", "too_few_options", "repeated_option", "answer_not_an_option",
)  # fmt: skip


class Discarded(NamedTuple):
    """A piece that is no pair, and the reason code."""

    reason: str
    text: str


@dataclass(slots=True)
class Parsed:
    """The pieces of one text: `len(pairs) + len(discarded)` is their number."""

    pairs: list[Pair] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)

    def drop(self, reason: str, text: str) -> None:
        self.discarded.append(Discarded(reason, text))

    def take(self, pair: Pair, text: str) -> None:
        """Keep the pair that `text` holds, or drop it with the reason."""
        if reason := fault(pair):
            self.drop(reason, text)
        elif any(same_question(pair, other) for other in self.pairs):
            self.drop(DUPLICATE, text)
        else:
            self.pairs.append(pair)


def fault(pair: Pair) -> str | None:
    """Why a pair is none, whatever it was read from; None for a sound one."""
    if not pair.question.removesuffix(THOUGHT).strip():
        return EMPTY_QUESTION
    if not final_answer(pair.answer).strip():
        return EMPTY_ANSWER
    if len(pair.options) == 1:
        return FEW_OPTIONS
    if len({option.casefold() for option in pair.options}) < len(pair.options):
        return SAME_OPTIONS
    if pair.options and chosen_option(pair) is None:
        return NOT_AN_OPTION
    return None


def same_question(pair: Pair, other: Pair) -> bool:
    """Whether two pairs ask the same, capitals aside."""
    return _asked(pair) == _asked(other)


def _asked(pair: Pair) -> tuple[str, tuple[str, ...]]:
    return " ".join(pair.question.casefold().split()), tuple(sorted(map(str.casefold, pair.options)))


def final_answer(answer: str) -> str:
    """The answer itself, without the reasoning that may stand before it."""
    return answer.rpartition(CONCLUSION)[2]


def chosen_option(pair: Pair) -> str | None:
    """The option that the answer names, a full stop at its end aside; None where it names none."""
    said = final_answer(pair.answer).strip()
    return next((option for option in pair.options if said in (option, f"{option}.")), None)


def counted(discarded: Iterable[Discarded]) -> dict[str, int]:
    """How many pieces were discarded for each reason."""
    counts: dict[str, int] = {}
    for piece in discarded:
        counts[piece.reason] = counts.get(piece.reason, 0) + 1
    return dict(sorted(counts.items()))
