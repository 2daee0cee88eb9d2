"""A training run in its folder: begun or resumed, stopped cleanly, finished with a model that others load.

OUT/model/          the trained model, a Hugging Face folder (OUT/adapter/ in PEFT's form with LoRA)
OUT/checkpoints/    what a resumed run goes on from
OUT/metrics.jsonl   the figures of each step
OUT/manifest.json   settings, data, result, hashes; written last: a run without one is not finished
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from ojak._code import version
from ojak._files import TargetLock, remove, sha256_file, write_atomic
from ojak._progress import silent
from ojak.errors import ResumeRefused, Stopped
from ojak.model.load import asked_device
from ojak.model.memory import peak_rss_bytes
from ojak.train import trackers
from ojak.train.checkpoints import newest_valid, rehearse, save_checkpoint, steps
from ojak.train.finished import CHECKPOINTS, MANIFEST, finished_result, result_folder
from ojak.train.loop import Run, train_steps
from ojak.train.processes import joined
from ojak.train.setup import Trainee, prepare
from ojak.train.sources import check_data, contents_sha256

if TYPE_CHECKING:
    from ojak.train.config import TrainConfig
    from ojak.train.processes import Processes

Notify = Callable[[str], None]
Figures = Callable[[Mapping[str, Any]], None]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave. Tokens are those of the data, without padding; `seconds` those of its steps alone.

    val_losses: of the further held-out rows (`evaluate.more`), by their names.
    """

    steps: int
    tokens: int
    supervised_tokens: int
    seconds: float
    tokens_per_s: float
    loss_first: float | None
    loss_last: float | None
    val_loss: float | None
    peak_memory_mb: float
    out: str
    val_losses: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints; `val_losses` only where further rows were held out."""
        found = asdict(self)
        return found if self.val_losses else {name: found[name] for name in found if name != "val_losses"}


def train(
    config: TrainConfig, *, notify: Notify = silent, progress: Figures = lambda figures: None
) -> TrainResult:
    """Trains a model, or goes on with a run, in the folder `config.out`.

    `progress` is told the figures of every step, `notify` what else happens. Under torchrun, all processes call this.

    Raises Stopped after a signal (a checkpoint was written: the same call goes on from it), Diverged for a loss that is
    not finite, ResumeRefused for a folder with another run, TargetExists where nothing may be resumed, InputRefused for
    a model or data that cannot be used, Locked, ResourceExhausted.
    """
    trackers.load_trackers(config.track)
    check_data(config.data, config.held_out)
    kind = asked_device(config.device)
    with joined(kind) as processes, _held(config.out, processes):
        if finished := finished_result(config):
            return TrainResult(**{**finished, "out": str(config.out)})
        return _train(config, processes, notify if processes.first else silent, progress)


@contextlib.contextmanager
def _held(out: Path, processes: Processes) -> Iterator[None]:
    """The first process holds the folder for all."""
    with TargetLock(out) if processes.first else contextlib.nullcontext():
        yield


def _train(config: TrainConfig, processes: Processes, notify: Notify, progress: Figures) -> TrainResult:
    trainee = prepare(config, processes, notify)
    _resume(config, trainee, notify)
    with _stopped() as received, _metrics(config, trainee, notify) as record:

        def told(figures: dict[str, Any]) -> None:
            record(figures)
            progress(figures)

        run = Run(
            config, trainee.decoder, trainee.objective, trainee.optimizer, trainee.means, trainee.state,
            trainee.steps, trainee.batches(), trainee.meter, processes, lambda: _save(config, trainee),
            trainee.measure, told, lambda: bool(received),
        )  # fmt: skip
        finished = trainee.state.step >= trainee.steps or train_steps(run)
        if not finished:
            raise _stop(config, trainee, received)
        result = _finish(config, trainee, told)
    if received:  # with the last step, or after it: who asked for one run of many must not get the others
        raise Stopped(
            received[0],
            f"stopped; the run in {config.out} was already at its end, and is finished",
            fix="run it again: what comes after it goes on",
            facts=result.to_dict(),
        )
    return result


def _resume(config: TrainConfig, trainee: Trainee, notify: Notify) -> None:
    """Take up the newest whole checkpoint, if there is one; otherwise see that one can be written, if one will be.

    Raises ResumeRefused if there are checkpoints, and none is whole: what was paid for is not thrown away unasked.
    """
    folder = config.out / CHECKPOINTS
    found, reasons = newest_valid(folder, like=trainee.state, processes=trainee.processes)
    if found is not None or folder.is_dir():
        for line in reasons:
            notify(line)
    if found is not None:
        trainee.take(found)
        return
    if steps(folder):
        raise ResumeRefused(
            f"none of the checkpoints in {folder} is whole",
            why="; ".join(reasons),
            fix="put a whole one back, or remove the folder to begin anew",
        )
    if 0 < config.checkpoint.every_steps < trainee.steps:
        rehearse(
            folder,
            trainee.state,
            keep=config.checkpoint.keep,
            processes=trainee.processes,
            company=trainee.company,
        )


def _save(config: TrainConfig, trainee: Trainee) -> None:
    save_checkpoint(
        config.out / CHECKPOINTS, trainee.state, keep=config.checkpoint.keep, processes=trainee.processes,
        company=trainee.company,
    )  # fmt: skip


@contextlib.contextmanager
def _metrics(
    config: TrainConfig, trainee: Trainee, notify: Notify
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where the first process writes the figures; the others write none."""
    if not trainee.processes.first:
        yield lambda figures: None
        return
    run = trackers.Run("ojak", config.out.name, config.out, config.shaping(), trainee.state.step)
    with trackers.Metrics(run, config.track, notify=notify) as metrics:

        def record(figures: dict[str, Any]) -> None:
            values = {name: value for name, value in figures.items() if name != "step" and value is not None}
            metrics.log(figures["step"], values)

        yield record


@contextlib.contextmanager
def _stopped() -> Iterator[list[int]]:
    """Notes the first Ctrl-C or SIGTERM, which ends the run after the step under way; a second acts as usual."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for which, handler in previous.items():
            signal.signal(which, handler)

    if threading.current_thread() is threading.main_thread():
        previous = {which: signal.signal(which, note) for which in SIGNALS}
    try:
        yield received
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)


def _stop(config: TrainConfig, trainee: Trainee, received: list[int]) -> Stopped:
    state = trainee.state
    return Stopped(
        received[0] if received else signal.SIGTERM,
        f"stopped after step {state.step} of {trainee.steps}; it is kept in {config.out / CHECKPOINTS}",
        fix="run it again to go on",
        facts=_result(config, trainee, {}).to_dict(),
    )


def _finish(config: TrainConfig, trainee: Trainee, record: Callable[[dict[str, Any]], None]) -> TrainResult:
    """The averaged weights in place of the last ones, the last evaluation, the model, the manifest."""
    if trainee.mean is not None:
        trainee.mean.put()
    figures = trainee.measure()
    if figures:
        record({"step": trainee.state.step, **figures})
    folder = result_folder(config)
    if trainee.processes.first:
        remove(folder)  # of a run that was killed while it wrote this
    with trainee.processes.together(f"saving {folder}"):
        trainee.save(folder)
    result = _result(config, trainee, figures)
    if trainee.processes.first:
        _write_manifest(config, trainee, folder, result)
    return result


def _result(config: TrainConfig, trainee: Trainee, figures: Mapping[str, float]) -> TrainResult:
    state = trainee.state
    cuda = trainee.processes.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(trainee.processes.device) if cuda else peak_rss_bytes()
    further = [each.name for each in trainee.held_out if each.name]
    return TrainResult(
        steps=state.step,
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        seconds=round(state.seconds, 3),
        tokens_per_s=round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
        loss_first=state.extra.get("loss_first"),
        loss_last=state.extra.get("loss_last"),
        val_loss=figures.get("val_loss"),
        peak_memory_mb=round(peak / 2**20, 1),
        out=str(config.out),
        val_losses={name: figures[f"val_loss_{name}"] for name in further if f"val_loss_{name}" in figures},
    )


def _write_manifest(config: TrainConfig, trainee: Trainee, folder: Path, result: TrainResult) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    content = {
        "schema_version": 1,
        "kind": "training",
        "ojak_version": version(),
        "torch": torch.__version__,
        "config": config.model_dump(mode="json", exclude={"out"}),
        "config_sha256": config.sha256,
        "model_sha256": trainee.model.sha256,
        "data_sha256": contents_sha256(config.data),
        "rows_sha256": trainee.state.rows_sha256,
        "order_sha256": trainee.course.order_sha256(trainee.state.epoch + 1),
        "rows": trainee.rows.counts,
        "result": {name: value for name, value in result.to_dict().items() if name != "out"},
        "files": [
            {
                "path": path.relative_to(config.out).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
            for path in files
        ],
    }
    write_atomic(config.out / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
