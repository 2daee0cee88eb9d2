"""What a run works with, put together: the model, what of it is learnt, rows, steps, and where it stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from ojak.train.ema import MovingMean
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


@dataclass(slots=True)
class Trainee:
    """A model that is being trained, between the files that it comes from and those that it becomes."""

    config: TrainConfig
    processes: Processes
    model: Model
    rows: Rows
    held_out: Rows | None
    course: Course
    steps: int
    objective: Objective
    optimizer: Optimizer
    mean: MovingMean | None
    meter: Meter
    state: TrainState
    facts: tuple[Fact, ...] = ()

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    def batches(self) -> Iterator[tuple[int, int, list[Batch]]]:
        """The steps that are left, each with this process's micro-batches."""
        return self.course.batches(self.state.epoch, self.state.step_in_epoch)

    def take(self, found: TrainState) -> None:
        """Go on from a checkpoint."""
        self.state.take(found)
        self.optimizer.steps = self.state.step

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """The mean loss of a held-out token, over as many batches as the settings say; None without such rows."""
        if self.held_out is None:
            return None
        config, processes, find = self.config, self.processes, measured(self.config)
        plan = plan_epoch(
            self.held_out, seed=0, epoch=0, batch=config.batch, max_len=config.max_len, packing=config.packing,
            world_size=processes.size, micro_batch=config.micro_batch, padded=config.padded,
        )  # fmt: skip
        total, supervised, was_training = 0.0, 0, self.decoder.training
        self.decoder.eval()
        for number in range(min(plan.steps, config.evaluate.batches)):
            for batch in plan.step(number, processes.rank):
                loss = find(self.decoder, batch)
                total, supervised = total + float(loss.sum), supervised + loss.supervised
        self.decoder.train(was_training)
        total, everywhere = processes.total(total, supervised)
        return total / max(1.0, everywhere)

    def measure(self) -> dict[str, float]:
        """The loss of held-out rows, where there are some, and for each kind of facts how well they are known."""
        loss = self.evaluate()
        found = {} if loss is None else {"val_loss": loss}
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
    rows, held_out = rows_for(config, model, notify)
    weights = _learnt(config, model, processes, compute)
    optimizer = Optimizer(
        config.optimizer, weights, local=local if processes.size > 1 else whole,
        compute=compute if processes.size > 1 and not config.lora else None,
    )  # fmt: skip
    mean = MovingMean(config.ema, optimizer) if config.ema else None
    course = Course(config, rows, processes)
    peak = config.peak_flops or peak_flops(processes.device)
    learnt = objective(config, Material(model, rows, processes, notify))
    return Trainee(
        config, processes, model, rows, held_out, course, course.steps(), learnt, optimizer, mean,
        Meter(model.decoder, peak and peak * processes.size), _state(config, rows, optimizer, mean, processes),
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
    style = style_for(config.objective, config.style, model.chat_template)
    if style is None:
        return model
    template = style_template(style, model.tokenizer, model.chat_template)
    ends = turn_end_ids(template, model.tokenizer)
    return replace(model, chat_template=template, stop_ids=tuple(dict.fromkeys((*ends, *model.stop_ids))))


def rows_for(config: TrainConfig, model: Model, notify: Callable[[str], None]) -> tuple[Rows, Rows | None]:
    """(to learn from, held out)."""

    def opened(data: tuple[str, ...], split: str) -> Rows:
        return open_rows(
            data, model.tokenizer, template=model.chat_template, objective=config.objective,
            mask_roles=config.mask_roles, max_len=config.max_len, long_rows=config.long_rows,
            split=split, notify=notify,
        )  # fmt: skip

    rows, held_out = opened(config.data, "train"), None
    if config.val_data:
        held_out = opened((config.val_data,), "validation")
    elif config.val_share:
        rows, held_out = rows.hold_out(config.val_share, config.seed)
    return rows if config.max_rows is None else rows.drawn(config.max_rows, config.seed), held_out


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
    config: TrainConfig, rows: Rows, optimizer: Optimizer, mean: MovingMean | None, processes: Processes
) -> TrainState:
    tensors = optimizer.tensors() | (mean.tensors() if mean else {})
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
