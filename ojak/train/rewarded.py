"""What a model's answers earn, and how far it has moved: the two sides of every figure about rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ojak._interval import Z
from ojak.errors import UsageError
from ojak.model.score import score
from ojak.train.live import LiveSampler, Prompt

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.model.load import Model
    from ojak.train.rewards import Reward
    from ojak.train.rows import Rows


@dataclass(frozen=True, slots=True)
class Earned:
    """Means over `answers` answers drawn at temperature 1, one to a prompt.

    reward, kl: with half the width of their 95 % intervals. kl: nats of an answer, E log q(y) / p(y), p the model that
    it came from. answer_tokens: the stop token counted. stopped: the share that ended by itself.
    """

    reward: float
    reward_within: float
    kl: float
    kl_within: float
    answer_tokens: float
    stopped: float
    answers: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def prompts_in(rows: Rows, most: int, seed: int) -> list[Prompt]:
    """Up to `most` prompts of rows of the objective `reinforce`, drawn by the seed. Raises UsageError for none."""
    drawn = rows.drawn(most, seed)
    if not len(drawn):
        raise UsageError("there is no prompt to measure on")
    return [Prompt(row, tuple(drawn[row][0][:-1].tolist())) for row in range(len(drawn))]


def earned(
    model: Model, start: Decoder, prompts: Sequence[Prompt], reward: Reward, *, answer_tokens: int, seed: int
) -> Earned:
    """What `model` earns with one answer to each prompt, and its distance to `start` on them.

    The same seed gives the same answers. Raises what `LiveSampler` does.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    sampler = LiveSampler(
        model, max_tokens=answer_tokens, longest_prompt=longest, slots=len(prompts), seed=seed
    )
    answers = sampler.sample(prompts, epoch=0)
    pairs = [(answer.prompt.ids, answer.ids) for answer in answers]
    own, theirs = (list(map(math.fsum, score(decoder, pairs))) for decoder in (sampler.shadow, start))
    rewards = [reward(answer.text, answer.stopped) for answer in answers]
    ratios = [q - p for q, p in zip(own, theirs, strict=True)]
    return Earned(
        *_mean(rewards), *_mean(ratios),
        answer_tokens=_mean([len(answer.ids) for answer in answers])[0],
        stopped=_mean([answer.stopped for answer in answers])[0],
        answers=len(answers),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its interval (0 for one value)."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, Z * math.sqrt(spread / len(values))
