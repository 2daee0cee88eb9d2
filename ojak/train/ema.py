"""A running mean of the weights: what is saved in their place, or what a run is held near, for a little more than its
memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ojak.train.config import TrainConfig
    from ojak.train.optimizer import Optimizer


class MovingMean:
    """mean = decay * mean + (1 - decay) * master, in float32.

    warm: early on the decay is (1 + step) / (10 + step) where that is less, so that the first weights are soon
    forgotten. group: what its tensors are called by in a checkpoint.
    """

    def __init__(self, decay: float, optimizer: Optimizer, *, group: str = "ema", warm: bool = True) -> None:
        self.decay, self.optimizer, self.group, self.warm = decay, optimizer, group, warm
        self.means = {slot.name: slot.master.clone() for slot in optimizer.slots}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of the step just made into the mean."""
        step = self.optimizer.steps
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        for slot in self.optimizer.slots:
            self.means[slot.name].lerp_(slot.master, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: `GROUP.NAME`."""
        return {f"{self.group}.{name}": mean for name, mean in self.means.items()}

    @torch.no_grad()
    def put(self) -> None:
        """Puts the mean in the place of the weights, at the end of a run."""
        for slot in self.optimizer.slots:
            for weight in (slot.master, slot.weight):
                weight.copy_(self.means[slot.name])


def anchor_of(config: TrainConfig, optimizer: Optimizer) -> MovingMean | None:
    """The mean that `reinforce` holds a run near, from its first weights on; None for other objectives."""
    if config.reinforce is None:
        return None
    return MovingMean(1 - config.reinforce.mu, optimizer, group="anchor", warm=False)
