"""Scores that need no judgement written: how probable a response is to a model, with its instruction and without.

The help of an instruction is log p(response | instruction) - log p(response), per token: pointwise mutual information,
in nats. A response to something else gains nothing from its instruction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ojak.engines.base import Engine, Scored, require
from ojak.judge.ask import shortened
from ojak.judge.prompts import Row, neutral

BLOCK = 128
MOST_EXPONENT = 50.0  # of a perplexity: beyond, one number is as absurd as another, and JSON has no infinity


class Likelihood(NamedTuple):
    """Sums of natural log-probabilities of a response's tokens: after its instruction, and after an empty one."""

    given: float
    alone: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.given / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability of a token, after the instruction."""
        return math.exp(min(MOST_EXPONENT, -self.per_token))

    @property
    def gain(self) -> float:
        """How much the instruction helps, in nats a token."""
        return (self.given - self.alone) / max(1, self.tokens)


class Read(NamedTuple):
    """Sums of natural log-probabilities of a text's tokens: one for each of the prompts that it was read after."""

    sums: tuple[float, ...]
    tokens: int


def likelihoods(engine: Engine, rows: Iterable[Row]) -> Iterator[Likelihood]:
    """For each row, in order, read as needed; of a long text its beginning and its end (`shortened`).

    Raises UsageError for an engine that cannot `score`, or a row that does not fit the model.
    """
    require(engine, "the likelihood of responses", "raw_prompt", "scores")
    around = engine.chat_prefix()
    special = tuple({*engine.special_tokens, *around.stop_strings})
    shown = ([neutral(shortened(engine, text), special) for text in row[:2]] for row in rows)
    framed = (
        ((f"{around.pre_query}{asked}{around.post_query}", f"{around.pre_query}{around.post_query}"), answer)
        for asked, answer in shown
    )
    for (given, alone), tokens in read_after(engine, framed):
        yield Likelihood(given, alone, tokens)


def read_after(engine: Engine, rows: Iterable[tuple[tuple[str, ...], str]]) -> Iterator[Read]:
    """For each (prompts, text), in order, read as needed: how probable the text is after each prompt, as they stand.

    All rows have the same number of prompts. Raises UsageError for a row that does not fit the model.
    """
    stream = iter(rows)
    while block := list(islice(stream, BLOCK)):
        # One kind of prompt after the other: what all prompts of a kind have in common is read once.
        read = [
            list(engine.score(Scored(prompt, text) for prompt, (_, text) in zip(kind, block, strict=True)))
            for kind in zip(*(prompts for prompts, _ in block), strict=True)
        ]
        for scores in zip(*read, strict=True):
            yield Read(tuple(map(sum, scores)), len(scores[0]))
