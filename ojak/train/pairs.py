"""Preferences as rows: a prompt with its better answer, and the same prompt with its worse one.

The two documents lie one after the other in one row, so that whatever deals, shuffles, draws or holds out rows keeps
them together: a pair is always whole, in one micro-batch, and what both begin with is computed once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ojak.chat import ChatTokenizer, encode_chats
from ojak.errors import InputRefused
from ojak.records import Message, Preference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Document: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.bool_]]


def encode_pairs(
    template: str, tokenizer: ChatTokenizer, records: Sequence[Preference]
) -> list[tuple[Document, Document] | InputRefused]:
    """Of each preference (ids uint32[n], mask bool[n]) with the better and with the worse answer, whole.

    The mask marks what the assistant says after the prompt, and the token that ends it; nothing within the prompt. A
    preference that cannot be encoded gives the reason in its place.
    """
    chats = [[*record.prompt, *answer] for record in records for answer in (record.chosen, record.rejected)]
    encoded = iter(encode_chats(template, tokenizer, chats))
    return [_pair(record, next(encoded), next(encoded)) for record in records]


Encoded: TypeAlias = tuple[list[int], list[bool]] | InputRefused


def _pair(record: Preference, better: Encoded, worse: Encoded) -> tuple[Document, Document] | InputRefused:
    if isinstance(better, InputRefused) or isinstance(worse, InputRefused):
        return better if isinstance(better, InputRefused) else worse  # pyright: ignore[reportReturnType]
    try:
        answers = ((record.chosen, better), (record.rejected, worse))
        one, two = (_document(record.prompt, answer, *each) for answer, each in answers)
    except InputRefused as error:
        return error
    return one, two


def _document(
    prompt: Sequence[Message], answer: Sequence[Message], ids: list[int], mask: list[bool]
) -> Document:
    """A conversation of which only the turns after the prompt are learnt.

    Raises InputRefused where the assistant's turns cannot be told apart in the tokens.
    """
    runs = list(_runs(mask))
    before, after = (sum(turn["role"] == "assistant" for turn in turns) for turns in (prompt, answer))
    if not after or len(runs) != before + after:
        raise InputRefused(
            "the pair cannot be encoded",
            why="an answer without a turn of the assistant's"
            if not after
            else "the assistant's turns run into each other",
        )
    learnt = np.array(mask, np.bool_)
    learnt[: runs[before][0]] = False
    learnt[:1] = False  # nothing stands before the first token that it could be told from
    return np.array(ids, np.uint32), learnt


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of marked places."""
    at = 0
    for marked, group in itertools.groupby(mask):
        end = at + sum(1 for _ in group)
        if marked:
            yield at, end
        at = end


def score_gap(scores: Mapping[str, Any]) -> float:
    """By how much the better answer's score is higher, as `ojak pairs` writes it; NaN where nobody says."""
    values = [scores.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        found = float(values[0]) - float(values[1])  # pyright: ignore[reportArgumentType]
        return found if math.isfinite(found) else math.nan
    return math.nan


def split_at_border(ids: NDArray[np.uint32], mask: NDArray[np.bool_], border: int) -> list[Document]:
    """The documents of a row: two from the border of a pair, itself where the border is 0."""
    if not border:
        return [(ids, mask)]
    return [(ids[:border], mask[:border]), (ids[border:], mask[border:])]
