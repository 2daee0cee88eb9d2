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
        return math.exp(min(700.0, -self.per_token))

    @property
    def gain(self) -> float:
        """How much the instruction helps, in nats a token."""
        return (self.given - self.alone) / max(1, self.tokens)


def likelihoods(engine: Engine, rows: Iterable[Row]) -> Iterator[Likelihood]:
    """For each row, in order, read as needed. Raises UsageError for an engine that cannot `score`."""
    require(engine, "the likelihood of responses", "raw_prompt", "scores")
    around = engine.chat_prefix()
    special = tuple({*engine.special_tokens, *around.stop_strings})
    stream = iter(rows)
    while block := list(islice(stream, BLOCK)):
        shown = [[neutral(shortened(engine, text), special) for text in row[:2]] for row in block]
        given = engine.score(
            Scored(f"{around.pre_query}{asked}{around.post_query}", answer) for asked, answer in shown
        )
        alone = engine.score(
            Scored(f"{around.pre_query}{around.post_query}", answer) for _, answer in shown
        )  # one after the other: what the prompts of each have in common is read once
        pairs = zip(list(given), list(alone), strict=True)
        yield from (Likelihood(sum(with_), sum(without), len(with_)) for with_, without in pairs)
