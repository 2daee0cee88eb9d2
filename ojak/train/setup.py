"""What a run works with, put together: the model, what of it is learnt, rows, steps, and where it stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ojak.errors import UsageError
from ojak.judge.facts import Fact, by_kind, figures, read_facts, recall
from ojak.model import checkpoint
from ojak.model.config import config_to_hf
from ojak.model.load import Model, from_source
from ojak.model.lora import apply_lora, save_adapter
from ojak.model.score import score_greedy
from ojak.train.batches import plan_epoch
from ojak.train.checkpoints import TrainState
from ojak.train.course import Course
from ojak.train.ema import MovingMean, anchor_of
from ojak.train.fresh import starting_source
from ojak.train.meter import Meter, peak_flops
from ojak.train.objectives import Material, Objective, measured, objective
from ojak.train.optimizer import STATE_DTYPES, Optimizer, whole
from ojak.train.processes import Processes, local, split_weights
from ojak.train.rows import Rows, open_rows
from ojak.train.styles import style_for, style_template, turn_end_ids

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that are measured on and not learnt from, and by what. name: of further ones, as the settings have it."""

    name: str
    rows: Rows
    objective: Objective


@dataclass(slots=True)
class Trainee:
    """A model that is being trained, between the files that it comes from and those that it becomes."""

    config: TrainConfig
    processes: Processes
    model: Model
    rows: Rows
    held_out: tuple[HeldOut, ...]
    course: Course
    steps: int
    objective: Objective
    optimizer: Optimizer
    mean: MovingMean | None
    anchor: MovingMean | None
    meter: Meter
    state: TrainState
    facts: tuple[Fact, ...] = ()

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    @property
    def means(self) -> list[MovingMean]:
        """What takes in the weights after each step."""
        return [mean for mean in (self.mean, self.anchor) if mean is not None]

    def batches(self) -> Iterator[tuple[int, int, list[Batch]]]:
        """The steps that are left, each with this process's micro-batches."""
        return self.course.batches(self.state.epoch, self.state.step_in_epoch)

    def take(self, found: TrainState) -> None:
        """Go on from a checkpoint."""
        self.state.take(found)
        self.optimizer.steps = self.state.step

    @torch.no_grad()
    def evaluate(self, held_out: HeldOut) -> dict[str, float]:
        """The mean loss of a held-out token (or pair) and what else its objective tells, over as many batches as the
        settings say."""
        config, processes = self.config, self.processes
        plan = plan_epoch(
            held_out.rows, seed=0, epoch=0, batch=config.batch, max_len=config.max_len, packing=config.packing,
            world_size=processes.size, micro_batch=config.micro_batch, padded=config.padded,
        )  # fmt: skip
        sums, was_training = {"loss": np.zeros(2)}, self.decoder.training
        self.decoder.eval()
        for number in range(min(plan.steps, config.evaluate.batches)):
            for batch in plan.step(number, processes.rank):
                loss = held_out.objective(self.decoder, batch)
                for name, value in {"loss": (float(loss.sum), loss.supervised), **loss.extras}.items():
                    sums[name] = sums.get(name, 0.0) + np.array(value, np.float64)
        self.decoder.train(was_training)
        totals = {name: processes.total(*sums[name].tolist()) for name in sorted(sums)}
        return {name: total / max(1.0, count) for name, (total, count) in totals.items()}

    def measure(self) -> dict[str, float]:
        """The loss of held-out rows, where there are some, and for each kind of facts how well they are known."""
        found: dict[str, float] = {}
        for held_out in self.held_out:
            told = {f"val_{name}": value for name, value in self.evaluate(held_out).items()}
            found |= {f"val_loss_{held_out.name}": told["val_loss"]} if held_out.name else told
        was_training = self.decoder.training
        self.decoder.eval()
        recalled = list(
            recall(self.facts, self.model.tokenizer, lambda pairs: score_greedy(self.decoder, pairs))
        )
        self.decoder.train(was_training)
        for kind, each in by_kind(recalled).items():
            found |= {f"probe_{kind}_{name}": value for name, value in figures(each).items()}
        return found

    def save(self, folder: Path) -> None:
        """Write the trained model, or its adapter. With several processes all of them call this."""
        whole_weights = self._whole_weights()
        try:
            if self.config.lora:
                for name, weight in whole_weights if self.processes.size > 1 else ():
                    self._put(name, weight)
                if self.processes.first:
                    save_adapter(folder, self.model, self.config.lora, base=self.config.model)
            elif self.processes.first:
                checkpoint.save(
                    folder, config_to_hf(self.model.config), whole_weights, self.model.tokenizer,
                    self.model.chat_template, self._stops(),
                )  # fmt: skip
        finally:
            deque(whole_weights, maxlen=0)  # the others wait for this process, even if its disk is full

    def company(self, folder: Path) -> None:
        """What makes the weights of a checkpoint a model: its configuration, its tokenizer, where its texts end."""
        checkpoint.write_json(folder / "config.json", config_to_hf(self.model.config))
        checkpoint.save_text_side(folder, {}, self.model.tokenizer, self.model.chat_template, self._stops())

    def _stops(self) -> dict[str, object]:
        return {"eos_token_id": list(self.model.stop_ids), "bos_token_id": self.model.tokenizer.bos_id}

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        for slot in self.optimizer.slots:
            yield slot.name, self.processes.gather(slot.weight, slot.parameter.shape)

    def _put(self, name: str, weight: Tensor) -> None:
        """A gathered weight in the place of its split one."""
        owner, _, key = name.rpartition(".")
        setattr(self.decoder.get_submodule(owner), key, torch.nn.Parameter(weight, requires_grad=False))


def prepare(config: TrainConfig, processes: Processes, notify: Callable[[str], None]) -> Trainee:
    """Everything that a run needs, before its first step. Raises what `run.train` does."""
    if config.optimizer.name == "muon" and processes.size > 1:
        raise UsageError("muon runs in one process", why="its updates need whole matrices", fix="use adamw")
    facts = _facts(config, processes)
    compute = STATE_DTYPES[config.dtype]
    dtype = compute if processes.size == 1 else torch.float32
    model = from_source(starting_source(config, notify), dtype, processes.device)
    model = styled(config, model)
    rows, validation = rows_for(config, model, notify)
    others = {"": validation} if validation is not None else {}
    others |= more_rows(config, model, notify)
    weights = _learnt(config, model, processes, compute)
    optimizer = Optimizer(
        config.optimizer, weights, local=local if processes.size > 1 else whole,
        compute=compute if processes.size > 1 and not config.lora else None,
    )  # fmt: skip
    mean = MovingMean(config.ema, optimizer) if config.ema else None
    anchor = anchor_of(config, optimizer)
    course = Course(config, rows, processes)
    peak = config.peak_flops or peak_flops(processes.device)
    learnt = objective(config, Material(model, rows, processes, notify, anchor))
    held_out = tuple(
        HeldOut(name, each, measured(config, Material(model, each, processes, notify)))
        for name, each in others.items()
    )
    kept = [each for each in (mean, anchor) if each is not None]
    return Trainee(
        config, processes, model, rows, held_out, course, course.steps(), learnt, optimizer, mean, anchor,
        Meter(model.decoder, peak and peak * processes.size), _state(config, rows, optimizer, kept, processes),
        facts,
    )  # fmt: skip


def _facts(config: TrainConfig, processes: Processes) -> tuple[Fact, ...]:
    if config.evaluate.probe is None:
        return ()
    if processes.size > 1:
        raise UsageError(
            "facts are asked for in one process",
            why="the weights are split among several",
            fix="leave out evaluate.probe, and use `ojak evaluate --probe` on the trained model",
        )
    return tuple(read_facts(config.evaluate.probe))


def styled(config: TrainConfig, model: Model) -> Model:
    """The model as it will be saved: with the template that it learns, and stopping where that ends a turn."""
    style = style_for(config.reads, config.style, model.chat_template)
    if style is None:
        return model
    template = style_template(style, model.tokenizer, model.chat_template)
    ends = turn_end_ids(template, model.tokenizer)
    return replace(model, chat_template=template, stop_ids=tuple(dict.fromkeys((*ends, *model.stop_ids))))


def rows_for(config: TrainConfig, model: Model, notify: Callable[[str], None]) -> tuple[Rows, Rows | None]:
    """(to learn from, held out)."""
    rows, held_out = _opened(config, model, config.data, "train", notify), None
    if config.val_data:
        held_out = _opened(config, model, (config.val_data,), "validation", notify)
    elif config.val_share:
        rows, held_out = rows.hold_out(config.val_share, config.seed)
    return rows if config.max_rows is None else rows.drawn(config.max_rows, config.seed), held_out


def more_rows(config: TrainConfig, model: Model, notify: Callable[[str], None]) -> dict[str, Rows]:
    """The further held-out rows by name, in the order of the names: what is logged hangs on no order of settings."""
    named = sorted(config.evaluate.more.items())
    return {name: _opened(config, model, (path,), "validation", notify) for name, path in named}


def _opened(
    config: TrainConfig, model: Model, data: tuple[str, ...], split: str, notify: Callable[[str], None]
) -> Rows:
    measured_only = split != "train"
    reads = (
        "finetune" if measured_only and config.reads == "reinforce" else config.reads
    )  # answers that are there
    return open_rows(
        data, model.tokenizer, template=model.chat_template, objective=reads,
        mask_roles=config.mask_roles, max_len=config.max_len, long_rows=config.long_rows,
        split=split, notify=notify,
    )  # fmt: skip


def _learnt(
    config: TrainConfig, model: Model, processes: Processes, compute: torch.dtype
) -> dict[str, Tensor]:
    """What is learnt of the model, by Hugging Face's name, made ready for it."""
    weights = learnt_weights(config, model.decoder)
    return weights if processes.size == 1 else split_weights(model.decoder, processes, compute)


def learnt_weights(config: TrainConfig, decoder: Decoder) -> dict[str, Tensor]:
    """The weights of the decoder that the settings have learnt, or those of the adapter that it is given."""
    if config.lora:
        apply_lora(decoder, config.lora, config.seed)
        decoder.train()
    else:
        decoder.requires_grad_(True)
    decoder.model.recompute = config.gradient_checkpointing
    return {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}


def _state(
    config: TrainConfig, rows: Rows, optimizer: Optimizer, kept: list[MovingMean], processes: Processes
) -> TrainState:
    tensors = optimizer.tensors()
    for mean in kept:
        tensors |= mean.tensors()
    shapes: dict[str, tuple[int, ...]] = {}
    if processes.size > 1:
        of = {slot.name: tuple(slot.parameter.shape) for slot in optimizer.slots}
        shapes = {name: of[_owner(name, of)] for name in tensors}
    return TrainState(
        step=0, epoch=0, step_in_epoch=0, tokens=0, supervised_tokens=0, seconds=0.0, config=config.shaping(),
        rows_sha256=rows.sha256, tensors=tensors, shapes=shapes, adapter=config.lora is not None,
    )  # fmt: skip


def _owner(name: str, weights: dict[str, tuple[int, ...]]) -> str:
    """The weight that a tensor of the optimizer or of the mean belongs to."""
    candidates = (name, name.partition(".")[2], name.partition(".")[2].rpartition(".")[0])
    return next(candidate for candidate in candidates if candidate in weights)
