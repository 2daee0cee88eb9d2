"""How far a run goes and what each of its steps learns from: a pure function of rows and settings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ojak.train.batches import EpochPlan, plan_epoch

if TYPE_CHECKING:
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig
    from ojak.train.processes import Processes
    from ojak.train.rows import Rows


@dataclass(frozen=True, slots=True)
class Course:
    """The steps of a run over `rows`."""

    config: TrainConfig
    rows: Rows
    processes: Processes

    def epoch(self, number: int) -> EpochPlan:
        """The plan of an epoch, from 0."""
        config = self.config
        return plan_epoch(
            self.rows, seed=config.seed, epoch=number, batch=config.batch, max_len=config.max_len,
            packing=config.packing, world_size=self.processes.size, micro_batch=config.micro_batch,
            padded=config.padded,
        )  # fmt: skip

    def order_sha256(self, epochs: int) -> str:
        """A hash over which rows stand together, and in which order, in so many epochs: runs with the same rows and the
        same hash learn from the same rows in the same order."""
        digest = hashlib.sha256()
        for number in range(epochs):
            plan = self.epoch(number)
            digest.update(f"{plan.batch} {plan.micro_batch}\n".encode())
            digest.update(np.ascontiguousarray(plan.order).tobytes())
            digest.update(np.ascontiguousarray(plan.bounds).tobytes())
        return digest.hexdigest()

    def steps(self) -> int:
        """How many steps the run has: by its epochs, or until `max_tokens` were read, whichever comes first."""
        config = self.config
        epochs = config.epochs or (math.inf if config.max_tokens else 1.0)
        total, left, number = 0, config.max_tokens or math.inf, 0
        while epochs > 0 and left > 0:
            plan = self.epoch(number)
            share = plan.steps if epochs >= 1 else max(1, round(plan.steps * epochs))
            read = step_tokens(plan)[:share].cumsum()
            if read[-1] >= left:
                return total + int(np.searchsorted(read, left)) + 1
            total, left, epochs, number = total + share, left - int(read[-1]), epochs - 1, number + 1
        return total

    def batches(self, epoch: int, place: int) -> Iterator[tuple[int, int, list[Batch]]]:
        """(epoch, step in it, this process's micro-batches), from a step in an epoch on, without end."""
        while True:
            plan = self.epoch(epoch)
            for number in range(place, plan.steps):
                if self.config.lora and self.config.lora.dropout:
                    torch.manual_seed(self._seed(epoch, number))
                yield epoch, number, plan.step(number, self.processes.rank)
            epoch, place = epoch + 1, 0

    def _seed(self, epoch: int, number: int) -> int:
        """What dropout draws from in a step, so that a resumed run draws the same."""
        name = f"dropout\0{self.config.seed}\0{epoch}\0{number}\0{self.processes.rank}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def step_tokens(plan: EpochPlan) -> np.ndarray:
    """The tokens of each step of an epoch, without padding."""
    before = np.concatenate([[0], plan.rows.lengths[plan.order].cumsum()])
    ends = np.minimum(np.arange(1, plan.steps + 1) * plan.batch, plan.items)
    return np.diff(before[plan.bounds[np.concatenate([[0], ends])]])
