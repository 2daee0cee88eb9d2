"""The training loop: batches, loss, gradients, update, and what is watched meanwhile.

A step's gradient is that of the mean over all tokens that the whole step supervises (or all its pairs), in every
micro-batch of every process: the sum of each micro-batch is divided by that one number, never a mean of means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ojak.errors import Diverged
from ojak.train.schedule import rate

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch
    from ojak.train.checkpoints import TrainState
    from ojak.train.config import TrainConfig
    from ojak.train.ema import MovingMean
    from ojak.train.meter import Meter
    from ojak.train.objectives import Objective
    from ojak.train.optimizer import Optimizer
    from ojak.train.processes import Processes

Micro = Sequence["Batch"]


@dataclass(slots=True)
class Run:
    """What the loop works with. `batches` gives this process's micro-batches of each step from where `state` stands.
    `means` take in the weights after each step.

    `save` writes a checkpoint, `evaluate` gives the figures of held-out rows and facts (none without these), `record`
    takes the figures of a step, `stopping` says whether a signal has come.
    """

    config: TrainConfig
    decoder: Decoder
    objective: Objective
    optimizer: Optimizer
    means: Sequence[MovingMean]
    state: TrainState
    steps: int
    batches: Iterator[tuple[int, int, Micro]]
    meter: Meter
    processes: Processes
    save: Callable[[], None]
    evaluate: Callable[[], dict[str, float]]
    record: Callable[[dict[str, Any]], None]
    stopping: Callable[[], bool]


def train_steps(run: Run) -> bool:
    """Make the steps that are left; False if a signal ended it before the last, True otherwise.

    Raises Diverged for a loss or gradient that is not finite; that step is not made.
    """
    config, state = run.config, run.state
    if (config.evaluate.probe or config.evaluate.more) and not state.step:
        run.record({"step": 0, **run.evaluate()})  # what was known before anything was learnt
    for epoch, place, batches in run.batches:
        begin, busy = time.perf_counter(), time.thread_time()
        units, supervised, tokens = _counts(run, batches)
        loss, computed, extras = _gradients(run, batches, units)
        norm = math.sqrt(run.processes.total(run.optimizer.square_norm())[0])
        _check_finite(state.step + 1, loss, norm)
        share = rate(config.schedule, state.step, run.steps)
        scale = min(1.0, config.clip / (norm + 1e-6)) if config.clip else 1.0
        run.optimizer.step(config.lr * share, share, scale)
        for mean in run.means:
            mean.update()
        seconds, busy = time.perf_counter() - begin, time.thread_time() - busy

        state.step, state.epoch, state.step_in_epoch = state.step + 1, epoch, place + 1
        state.tokens, state.supervised_tokens = state.tokens + tokens, state.supervised_tokens + supervised
        state.seconds += seconds
        state.extra = {"loss_first": loss, **state.extra, "loss_last": loss}
        facts = {
            "loss": loss,
            "lr": config.lr * share,
            "gradient_norm": norm,
            "cpu_s": round(busy, 4),
        } | extras
        run.record(facts | run.meter.step(state, run.steps, seconds, tokens, supervised, computed))

        last = state.step >= run.steps
        if _due(config.evaluate.every_steps, state.step) and not last:
            run.record({"step": state.step, **run.evaluate()})
        stopping = run.processes.any(run.stopping())
        if (_due(config.checkpoint.every_steps, state.step) or stopping) and not last:
            run.save()
        if stopping or last:
            return last
    return True


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _counts(run: Run, batches: Micro) -> tuple[int, int, int]:
    """(what the loss is the mean over, supervised tokens, tokens) of the whole step, over all processes."""
    own = [(batch.units, batch.supervised, batch.tokens) for batch in batches]
    units, supervised, tokens = run.processes.total(*map(sum, zip(*own, strict=True)))
    return int(units), int(supervised), int(tokens)


def _gradients(run: Run, batches: Micro, units: int) -> tuple[float, int, dict[str, float]]:
    """Leave the step's gradient in the weights; gives its loss, computed tokens and extras, over all processes."""
    total, computed = 0.0, 0
    sums: dict[str, tuple[float, float]] = {}
    for number, batch in enumerate(batches):
        loss = run.objective(run.decoder, batch)
        (loss.sum / max(1, units)).backward()
        total, computed = total + float(loss.sum.detach()), computed + loss.computed
        for name, (value, count) in loss.extras.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + value, before[1] + count
        if number + 1 < len(batches):
            run.optimizer.gather()
    run.optimizer.finish()
    total, everywhere = run.processes.total(total, computed)
    extras = {name: run.processes.total(*sums[name]) for name in sorted(sums)}
    found = {name: value / count for name, (value, count) in extras.items() if count}
    return total / max(1, units), int(everywhere), found


def _check_finite(step: int, loss: float, norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise Diverged(
        f"training stopped before step {step} was made: its loss is {loss:g}, its gradient's norm {norm:g}",
        why="with a number that is not finite every weight would be lost; the last checkpoint is untouched",
        fix="lower --lr, lengthen the warm-up (--set schedule.warmup=0.1), or look at the rows of that step",
    )
