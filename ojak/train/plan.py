"""What a run will take, before it is begun: parameters, memory by term, steps, tokens, time, disk (`--dry-run`).

Nothing is looked up in a table. The rows are tokenized as the run would do it, and a decoder with the model's widths
but only two and three of its layers makes real steps on the run's largest micro-batch, by the run's own objective and
optimizer. Layers of one kind are alike, so what the third one adds, in bytes and in seconds, is what each further one
of its kind adds. The weights themselves are not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from ojak._files import free_bytes
from ojak._progress import silent
from ojak.model.decoder import Decoder, DecoderConfig
from ojak.model.load import asked_device, without_weights
from ojak.model.memory import available_bytes, keep_freed_memory, resident_bytes
from ojak.train.batches import packed_batch
from ojak.train.course import Course, step_tokens
from ojak.train.distil_plan import TeacherCost, teacher_cost
from ojak.train.ema import MovingMean
from ojak.train.finished import finished_result
from ojak.train.fresh import starting_source
from ojak.train.live_bytes import Peaks
from ojak.train.objectives import Material, objective
from ojak.train.optimizer import STATE_DTYPES, Optimizer
from ojak.train.processes import ALONE
from ojak.train.setup import learnt_weights, rows_for, styled
from ojak.train.sources import check_data

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig

FEW = 2  # layers that are measured, and one more of each kind
TIMED = 3  # steps
TINY = 64  # widths of the decoder that has all code loaded before memory is looked at
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a decoder with some number of layers: bytes of each term, seconds of a micro-batch and of an update.

    early: the most beyond the static terms until the top layer's gradients are done; late: from when those of the
    bottom layer begin. Both hold the gradients that are there by then. beside: what heap and kernels take besides.
    """

    parameters: float
    learnt: float
    weights: float
    masters: float
    optimizer: float
    mean: float
    gradients: float
    early: float
    late: float
    beside: float
    learn_s: float
    update_s: float

    def deeper(self, kinds: Sequence[tuple[int, Measured]]) -> Measured:
        """With more layers: of each kind so many, and what was measured with one of them."""
        names = [each.name for each in fields(self)]
        own = {name: getattr(self, name) for name in names}
        added = {
            name: sum(count * max(0.0, getattr(more, name) - own[name]) for count, more in kinds)
            for name in names
        }
        return Measured(**{name: own[name] + added[name] for name in names})


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take. Memory and disk are in MiB, by term, `total` among them; `free` is what there is now.

    `program` is what the process holds without any model. Seconds are those of the steps, without evaluation.
    """

    parameters: int
    learnt_parameters: int
    rows: int
    steps: int
    tokens: int
    supervised_tokens: int
    seconds: float
    tokens_per_s: float
    memory_mb: dict[str, float]
    disk_mb: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return asdict(self)

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return all(each["total"] <= each["free"] for each in (self.memory_mb, self.disk_mb))


def plan_run(config: TrainConfig, *, notify: Callable[[str], None] = silent) -> Plan:
    """What the run of these settings will take, in one process on this machine.

    Takes seconds, and the memory of three layers with their embeddings. Raises what `run.train` does for a model, data
    or a folder that cannot be used; of a folder in which this very run is finished, `notify` is told.
    """
    check_data(config.data, config.held_out)
    if finished_result(config) is not None:
        notify(f"this run is finished in {config.out}: running it again would only give its result")
    device = asked_device(config.device)
    keep_freed_memory()
    source = starting_source(config, notify)
    model = styled(config, without_weights(source))
    rows, _ = rows_for(config, model, notify)
    course = Course(config, rows, ALONE)
    steps, tokens = course.steps(), step_tokens(course.epoch(0))
    batch, several = _largest(course, tokens[:steps])
    program, free = _program_bytes(config, model.config, device), available_bytes(device)
    whole = _whole(config, model.config, batch, device)
    teacher = teacher_cost(config, Material(model, rows, ALONE, notify), batch, device, _clock)
    seconds = _step_seconds(whole, teacher, batch, float(tokens.mean()))
    total = _over(tokens, steps)
    supervised = round(total * int(rows.supervised.sum()) / max(1, int(rows.lengths.sum())))
    return Plan(
        parameters=round(whole.parameters),
        learnt_parameters=round(whole.learnt),
        rows=len(rows),
        steps=steps,
        tokens=total,
        supervised_tokens=supervised,
        seconds=round(steps * seconds, 1),
        tokens_per_s=round(float(tokens.mean()) / seconds, 1),
        memory_mb=_in_mb(
            _memory(whole, teacher, several, program), free + (program if device.type == "cpu" else 0)
        ),
        disk_mb=_in_mb(_disk(config, whole), free_bytes(config.out)),
    )


def _over(tokens: NDArray[np.int64], steps: int) -> int:
    """The tokens of so many steps, whose epochs are all like the first."""
    epochs, rest = divmod(steps, len(tokens))
    return int(epochs * tokens.sum() + tokens[:rest].sum())


def _largest(course: Course, tokens: NDArray[np.int64]) -> tuple[Batch, bool]:
    """The micro-batch of the first epoch that takes the most memory, and whether a step has several.

    It is looked for in the three longest steps. tokens: those of each step that the run makes.
    """
    plan = course.epoch(0)
    steps = [plan.step(int(number), 0) for number in tokens.argsort()[-3:]]
    found = [batch for step in steps for batch in step]
    largest = max(found, key=lambda batch: (batch.ids_BT.numel(), batch.supervised))
    return largest, max(len(step) for step in steps) > 1


def _step_seconds(whole: Measured, teacher: TeacherCost, batch: Batch, tokens: float) -> float:
    """Of a step with so many tokens: what they take by the measured batch, and the update."""
    return (whole.learn_s + teacher.seconds) * tokens / max(1, batch.tokens) + whole.update_s


def _memory(whole: Measured, teacher: TeacherCost, several: bool, program: int) -> dict[str, float]:
    """Bytes by term at the fullest moment. Gradients of several micro-batches are summed in float32 beside them.

    What was freed lies in pieces by then, so that the largest tensor finds no place in it and takes new memory
    (`beside`, with what kernels allocate for themselves).
    """
    peak = max(whole.early, whole.late) + whole.beside
    return {
        "weights": whole.weights,
        "masters": whole.masters,
        "optimizer": whole.optimizer,
        "mean": whole.mean,
        "teacher": teacher.bytes,
        "gradients": whole.gradients + (4 * whole.learnt if several else 0.0),
        "activations": max(0.0, peak - whole.gradients),
        "program": float(program),
    }


def _disk(config: TrainConfig, whole: Measured) -> dict[str, float]:
    """Bytes by term: the checkpoints at their most, one being written, and the model."""
    trained = whole.weights * whole.learnt / whole.parameters if config.lora is None else 4 * whole.learnt
    one = trained + whole.masters + whole.optimizer + whole.mean
    count = config.checkpoint.keep + 1 if config.checkpoint.every_steps else 1
    return {"checkpoints": one * count, "model": trained}


def _in_mb(terms: dict[str, float], free: int) -> dict[str, float]:
    rounded = {name: round(value / MIB, 1) for name, value in terms.items()}
    return {**rounded, "total": round(sum(terms.values()) / MIB, 1), "free": round(free / MIB, 1)}


def _program_bytes(config: TrainConfig, shape: DecoderConfig, device: torch.device) -> int:
    """What this process holds once it has made a step of almost nothing, with all code that a run loads."""
    widths = {"hidden_size": TINY, "intermediate_size": TINY, "vocab_size": TINY}
    tiny = replace(shape, num_hidden_layers=1, layer_types=shape.layer_types[:1], **widths)
    ids, mask = torch.zeros(4, dtype=torch.uint32).numpy(), torch.ones(4, dtype=torch.bool).numpy()
    _measure(config, tiny, packed_batch([(ids, mask)]), device)
    return 0 if device.type == "cuda" else resident_bytes()


def _whole(config: TrainConfig, shape: DecoderConfig, batch: Batch, device: torch.device) -> Measured:
    """The decoder of this shape: measured as it is, or told from a few of its layers."""

    def of(layers: Sequence[str]) -> Measured:
        few = replace(shape, num_hidden_layers=len(layers), layer_types=tuple(layers))
        return _measure(config, few, batch, device)

    kinds = list(dict.fromkeys(shape.layer_types))
    few = (kinds * FEW)[:FEW]
    if shape.num_hidden_layers <= FEW + 1:
        return of(shape.layer_types)
    further = {kind: shape.layer_types.count(kind) - few.count(kind) for kind in kinds}
    return of(few).deeper([(count, of([*few, kind])) for kind, count in further.items() if count])


def _measure(config: TrainConfig, shape: DecoderConfig, batch: Batch, device: torch.device) -> Measured:
    """A decoder of this shape with random weights makes steps: the first is counted, the best of the rest timed."""
    decoder = Decoder(shape).to(device=device, dtype=STATE_DTYPES[config.dtype]).requires_grad_(False)
    optimizer = Optimizer(config.optimizer, learnt_weights(config, decoder))
    mean = MovingMean(config.ema, optimizer) if config.ema else None
    peaks, largest = _peaks(config, decoder, batch, device)
    optimizer.step(0.0, 0.0, 1.0)
    timed = [_timed(config, decoder, optimizer, batch, device) for _ in range(TIMED)]
    return Measured(
        **_static(decoder, optimizer, mean),
        early=float(max(peaks[:-1])),
        late=float(peaks[-1]),
        beside=float(largest + _laid_out_anew(decoder, device)),
        learn_s=min(learn for learn, _ in timed),
        update_s=min(update for _, update in timed),
    )


def _timed(
    config: TrainConfig, decoder: Decoder, optimizer: Optimizer, batch: Batch, device: torch.device
) -> tuple[float, float]:
    """Seconds of forward and backward, and of the update."""
    begin = _clock(device)
    _learn(config, decoder, batch)
    middle = _clock(device)
    optimizer.square_norm()
    optimizer.step(0.0, 0.0, 1.0)
    return middle - begin, _clock(device) - middle


def _clock(device: torch.device) -> float:
    """Seconds, once all is done that was asked for. On a CPU those that this thread computed: it has its part in every
    product, so they are what the clock would show if no other program took turns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.thread_time()


def _laid_out_anew(decoder: Decoder, device: torch.device) -> int:
    """On a CPU a bfloat16 product copies its matrix into an order of its own; the largest is the output layer's."""
    copied = (weight.nbytes for weight in decoder.parameters() if weight.dtype == torch.bfloat16)
    return 0 if device.type == "cuda" else max(copied, default=0)


def _static(decoder: Decoder, optimizer: Optimizer, mean: MovingMean | None) -> dict[str, float]:
    """Bytes of what a run holds all the time; numbers of weights."""
    own = [slot for slot in optimizer.slots if slot.master is not slot.weight]
    return {
        "parameters": float(sum(weight.numel() for weight in decoder.parameters())),
        "learnt": float(sum(slot.master.numel() for slot in optimizer.slots)),
        "weights": float(sum(weight.nbytes for weight in decoder.parameters())),
        "masters": float(sum(slot.master.nbytes for slot in own)),
        "optimizer": float(sum(each.nbytes for slot in optimizer.slots for each in slot.state.values())),
        "mean": float(sum(each.nbytes for each in mean.means.values())) if mean else 0.0,
        "gradients": float(sum(slot.weight.nbytes for slot in optimizer.slots)),
    }


def _learn(config: TrainConfig, decoder: Decoder, batch: Batch) -> None:
    loss = objective(config)(decoder, batch)
    (loss.sum / max(1, loss.supervised)).backward()


def _peaks(
    config: TrainConfig, decoder: Decoder, batch: Batch, device: torch.device
) -> tuple[list[int], int]:
    """The most bytes until the top layer is done with, between, from the gradient of the bottom layer on; and the
    largest tensor."""
    with Peaks(device) as peaks:
        hooks = [_when_reached(decoder, place, peaks) for place in (-2, 0)]
        _learn(config, decoder, batch)
    for hook in hooks:
        hook.remove()
    return peaks.found, peaks.largest


def _when_reached(decoder: Decoder, place: int, peaks: Peaks) -> Any:
    """Mark the moment when the gradient of a layer's output is there, so that all layers above it are done."""
    layers = decoder.model.layers
    marked: list[bool] = []

    def mark(grad: torch.Tensor) -> None:
        if not marked:
            marked.append(True)
            peaks.mark()

    def watch(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(mark)

    return layers[max(place, -len(layers))].register_forward_hook(watch)
