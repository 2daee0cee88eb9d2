"""A reward model is measured as a judge is: on the same planted good and bad rows, before its rewards drop any.

Measured are the rewards of good and bad rows, and, for `reward_difference`, those of two answers to one instruction.
Positions, tags and agreement of two wordings do not apply: a reward model is asked nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ojak.judge.calibrate import (
    DEFAULT_ROWS,
    LEAST_PAIRS,
    Planted,
    Sample,
    Values,
    against,
    bundled,
    chosen_samples,
    length_pairs,
    measured,
    plant,
)
from ojak.judge.corrupt import CALIPER, CORRUPTIONS
from ojak.judge.kept import Calibration, Estimate, is_usable, reward_code
from ojak.judge.published import Published
from ojak.judge.statistics import mean_auroc, share


class Rewarding(Protocol):
    """What is measured: `ojak.judge.reward.RewardModel`."""

    identity: dict[str, Any]

    def reward(self, instruction: str, response: str) -> float | None: ...


def calibrate_reward(
    model: Rewarding,
    samples: Sequence[Sample] | None = None,
    *,
    rows: int = DEFAULT_ROWS,
    seed: int = 0,
    source: str = "bundled",
    published: Published | None = None,
    notify: Callable[[str], None] = lambda _line: None,
) -> Calibration:
    """Measure a reward model on `rows` of the samples (default: the bundled ones), the rows that a judge is shown.

    Raises InputRefused for fewer than LEAST_ROWS samples.
    """
    chosen = chosen_samples(bundled() if samples is None else samples, rows, seed)
    planted = plant([sample.row for sample in chosen], seed)
    notify(f"rewarding {len(planted.rows):,} rows ({len(chosen)} good ones)")
    began = time.perf_counter()
    rewards = [model.reward(row.instruction, row.response) for row in planted.rows]
    seconds = time.perf_counter() - began
    first = measured(planted, rewards, seed)
    lengths = [float(len(row.response)) for row in planted.rows]
    return Calibration(
        identity=dict(model.identity),
        code=reward_code(),
        source=source,
        rows=len(chosen),
        seed=seed,
        **first,
        measures={
            "reward_difference": _differences(planted, rewards, seed),
            "length": measured(planted, lengths, seed),
        },
        correlation={} if published is None else _correlation(model, published),
        pairs={name: len(length_pairs(planted, name, seed)) for name in CORRUPTIONS},
        unparsed=sum(value is None for value in rewards) / len(planted.rows),
        speed={"rows": float(len(planted.rows)), "seconds": seconds},
    )


def _differences(planted: Planted, rewards: Values, seed: int) -> dict[str, Any]:
    """How often a good answer's reward is above that of a bad one of about its length to the same instruction.

    A share of pairs, with ties counting a half: the AUROC within instructions. Corruptions that change the length leave
    nothing to compare, and are left out.
    """
    found: dict[str, Estimate] = {}
    groups = []
    for name in CORRUPTIONS:
        pairs = [(planted.source[bad], bad) for bad in planted.places[name] if _as_long(planted, bad)]
        apart = [(good, _less(rewards[good], rewards[bad])) for good, bad in pairs]
        read = [(good, value) for good, value in apart if value is not None]
        if len(read) < LEAST_PAIRS:
            continue
        sources, values = zip(*read, strict=True)
        found[name] = share(sum((1 + _sign(value)) / 2 for value in values), len(values))
        groups.append((values, sources, [0.0] * len(values), sources))
    overall = mean_auroc(groups, seed=seed)
    return {"auroc": found, "overall": overall, "usable": is_usable(overall)}


def _as_long(planted: Planted, bad: int) -> bool:
    """Whether a bad row's answer is about as long as that of the good row it was made of."""
    lengths = [max(1, len(planted.rows[i].response)) for i in (planted.source[bad], bad)]
    return abs(math.log(lengths[0] / lengths[1])) <= CALIPER


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _correlation(model: Rewarding, published: Published) -> dict[str, Any]:
    """With the published scores of the same answers."""
    rewards = [model.reward(row.instruction, row.response) for row in published.rows]
    return {"reward": against(rewards, published.scores)}
