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


def likelihoods(engine: Engine, rows: Iterable[Row]) -> Iterator[Likelihood]:
    """For each row, in order, read as needed; of a long text its beginning and its end (`shortened`).

    Raises UsageError for an engine that cannot `score`, or a row that does not fit the model.
    """
    require(engine, "the likelihood of responses", "raw_prompt", "scores")
    around = engine.chat_prefix()
    special = tuple({*engine.special_tokens, *around.stop_strings})
    stream = iter(rows)
    while block := list(islice(stream, BLOCK)):
        shown = [[neutral(shortened(engine, text), special) for text in row[:2]] for row in block]
        given = engine.score(
            Scored(f"{around.pre_query}{asked}{around.post_query}", answer) for asked, answer in shown
        )
        # One kind after the other: what all prompts of a kind have in common is read once.
        alone = engine.score(Scored(f"{around.pre_query}{around.post_query}", answer) for _, answer in shown)
        pairs = zip(list(given), list(alone), strict=True)
        yield from (Likelihood(sum(with_), sum(without), len(with_)) for with_, without in pairs)
