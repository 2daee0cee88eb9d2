"""The learning rate over a run: warm-up, then a cosine, a line, a plateau with a fall at its end, or a plateau."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ojak.train.config import ScheduleConfig


def rate(config: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the highest learning rate that step `step` (from 0) of `steps` is made with.

    The warm-up's first step has one part of its height, so that no step is lost; the last step of all reaches `final`.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    begin = max(warmup, round(steps * (1 - config.decay))) if config.name == "wsd" else warmup
    if step < begin:
        return 1.0
    gone = (step - begin + 1) / max(1, steps - begin)
    height = (1 + math.cos(math.pi * min(1.0, gone))) / 2 if config.name == "cosine" else 1 - min(1.0, gone)
    return config.final + (1 - config.final) * height


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """A share of the steps where `warmup` is below 1, else that many, and never all of them."""
    asked = steps * config.warmup if config.warmup < 1 else config.warmup
    return min(round(asked), max(0, steps - 1))
