"""Checkpoints of a training run: each is there whole or not at all, and the newest whole one wins.

    step-0000100/
      model.safetensors              the weights, whole, under Hugging Face's names; with config.json and tokenizer.json
                                     beside it, the folder is a model (adapter_model.safetensors for an adapter)
      master-rank0of2.safetensors    a process's rows of the float32 master weights, `master.<name>`
      optimizer-rank0of2.safetensors ... of the optimizer's state, `optimizer.<name>.<slot>`
      ema-rank0of2.safetensors       ... of the averaged weights, `ema.<name>`
      anchor-rank0of1.safetensors    the weights that `reinforce` holds a run near, `anchor.<name>`
      state.json                     where the run stood, its settings, and the form of every tensor
      manifest.json                  size and SHA-256 of every file; written last, before the folder gets its name

Nothing is pickled. A checkpoint of N processes can be taken up by M: every process reads its own rows of each tensor.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ojak._code import version
from ojak._files import disk_errors, free_bytes, fsync_dir, remove, sha256_file, write_synced
from ojak.errors import InputRefused, OjakError, ResourceExhausted, ResumeRefused, VerificationFailed
from ojak.model.tensor_files import DTYPES, form_of, in_order, read_rows, write_tensors
from ojak.train.checkpoint_form import (
    GROUPS,
    MANIFEST,
    STATE,
    Entry,
    Manifest,
    StateForm,
    TensorForm,
    check,
    encoded,
    group_of,
    rank_file,
    step_name,
    weights_file,
)
from ojak.train.processes import ALONE, Processes, part_rows

STEP = re.compile(r"step-([0-9]{7,12})")
STAGING, OLD = ".staging-", ".old-"

Company: TypeAlias = Callable[[Path], None]  # writes config.json and its like into the folder of the weights


@dataclass(slots=True)
class TrainState:
    """All that a run is made of between two steps, as one process holds it.

    Draws depend on (seed, step) alone, so that there is no state of a random generator to keep.
    tensors: the weights by Hugging Face's name, and `master.<name>`, `optimizer.<name>.<slot>`, `ema.<name>`,
    `anchor.<name>`.
    shapes: the whole shape of each tensor of which this process holds only its rows (`processes.part_rows`).
    config: the settings that shape the run; one that differs ends a resume. rows_sha256: of the tokenized data.
    adapter: the weights are an adapter's.
    extra: what else the loop wants to remember, as JSON.
    """

    step: int
    epoch: int
    step_in_epoch: int
    tokens: int
    supervised_tokens: int
    seconds: float
    config: dict[str, Any]
    rows_sha256: str
    tensors: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    adapter: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def take(self, found: TrainState) -> None:
        """Become the state `found`, whose tensors are copied into those that are here."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(found.tensors[name])
        for name in ("step", "epoch", "step_in_epoch", "tokens", "supervised_tokens", "seconds", "extra"):
            setattr(self, name, getattr(found, name))


# Saving


def save_checkpoint(
    folder: Path,
    state: TrainState,
    *,
    keep: int = 2,
    processes: Processes = ALONE,
    company: Company | None = None,
) -> Path:
    """Write `state` as `folder`/step-N, read it again, and only then let go of all but the `keep` newest whole ones.

    With several processes all of them call this, each with its part. The step's folder, if it is there and whole, is
    left as it is. Raises VerificationFailed for numbers that are not finite, or a disk that gives back other bytes;
    ResourceExhausted if the disk is full. Whatever is raised, the earlier checkpoints are untouched.
    """
    final = folder / step_name(state.step)
    if processes.from_first(int(processes.first and _is_whole(final))):
        return final
    _check_finite(state, processes)
    staging = folder / f"{STAGING}{state.step:07d}"
    try:
        _write_all(staging, final, state, processes, company)
        with processes.together(f"saving {final}"), disk_errors(final):
            if processes.first:
                _put_in_place(staging, final)
                check(final)
                _let_go(folder, keep)
    finally:
        if processes.first:
            remove(staging)
    return final


def rehearse(
    folder: Path,
    state: TrainState,
    *,
    keep: int = 2,
    processes: Processes = ALONE,
    company: Company | None = None,
) -> int:
    """Before the first step: write a checkpoint and remove it, so that a run cannot fail at its first save.

    Returns its size in bytes. Raises as `save_checkpoint` does; ResourceExhausted, too, where there is no room for the
    `keep` + 1 checkpoints that a run has while it saves, those that are there already counted.
    """
    staging = folder / f"{STAGING}{state.step:07d}"
    try:
        _write_all(staging, folder, state, processes, company)
        with processes.together(f"looking for room in {folder}"):
            size = sum(item.stat().st_size for item in staging.iterdir())
            more = max(0, keep - len(steps(folder)))
            if processes.first and more * size > free_bytes(folder):
                raise _no_room(folder, size, keep, more)
        return size
    finally:
        processes.any(False)  # no one removes what another still looks at
        if processes.first:
            remove(staging)


def _no_room(folder: Path, size: int, keep: int, more: int) -> ResourceExhausted:
    short = more * size - free_bytes(folder)
    return ResourceExhausted(
        f"no room in {folder} for the run's checkpoints",
        why=f"one takes {size / 2**20:,.0f} MiB, {keep} are kept while the next is written: "
        f"{short / 2**20:,.0f} MiB are missing",
        fix="make room, give another --out, or keep fewer (--set checkpoint.keep=1)",
    )


def _check_finite(state: TrainState, processes: Processes) -> None:
    with processes.together("saving a checkpoint"):
        for name, tensor in state.tensors.items():
            if not bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
                raise VerificationFailed(
                    f"step {state.step} is not saved: {name} holds infinities or NaNs",
                    why="the run has diverged; the checkpoints before it are as they were",
                    fix="lower the learning rate, or see which rows the last steps learnt from",
                )


def _write_all(
    staging: Path, final: Path, state: TrainState, processes: Processes, company: Company | None
) -> None:
    """Every process's files into `staging`, then the manifest."""
    with processes.together(f"saving {final}"), disk_errors(final):
        if processes.first:
            _sweep(staging.parent)
            staging.mkdir(parents=True)
    with processes.together(f"saving {final}"), disk_errors(final):
        entries = _write_groups(staging, state, processes)
    with processes.together(f"saving {final}"), disk_errors(final):
        entries += _write_weights(staging, state, processes)
    told = processes.texts(json.dumps(entries))
    with processes.together(f"saving {final}"), disk_errors(final):
        if processes.first:
            _write_rest(
                staging, state, processes, company, [item for text in told for item in json.loads(text)]
            )


def _write_groups(staging: Path, state: TrainState, processes: Processes) -> list[dict[str, Any]]:
    """This process's rows of everything but the weights; what is not split is written by the first alone."""
    entries: list[dict[str, Any]] = []
    for group in GROUPS:
        names = [name for name in state.tensors if group_of(name) == group]
        own = [name for name in names if processes.first or name in state.shapes]
        if names:
            forms = {name: form_of(state.tensors[name]) for name in own}
            path = staging / rank_file(group, processes.rank, processes.size)
            digest = write_tensors(path, forms, (state.tensors[name] for name in in_order(forms)))
            entries.append(_entry(path, digest))
    return entries


def _write_weights(staging: Path, state: TrainState, processes: Processes) -> list[dict[str, Any]]:
    """The weights, whole, by the first process; the others hand it their rows, one tensor after the other."""
    forms = {name: _whole_form(state, name) for name in state.tensors if group_of(name) is None}
    whole = _whole(state, in_order(forms), processes)
    path = staging / weights_file(state.adapter)
    try:
        return [_entry(path, write_tensors(path, forms, whole))] if processes.first else []
    finally:
        deque(whole, maxlen=0)  # the others wait for this process, even if its disk is full


def _whole(state: TrainState, names: list[str], processes: Processes) -> Iterator[Tensor]:
    for name in names:
        tensor = state.tensors[name]
        yield processes.gather(tensor, state.shapes[name]) if name in state.shapes else tensor


def _write_rest(
    staging: Path,
    state: TrainState,
    processes: Processes,
    company: Company | None,
    entries: list[dict[str, Any]],
) -> None:
    """What stands beside the tensors, and the manifest last."""
    if company is not None:
        company(staging)
    write_synced(staging / STATE, encoded(_state_form(state, processes.size)))
    listed = {entry["path"] for entry in entries}
    beside = sorted(path for path in staging.iterdir() if path.name not in listed)
    entries += [_entry(path, sha256_file(path)) for path in beside]
    manifest = Manifest(
        schema_version=1,
        kind="checkpoint",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ojak_version=version(),
        files=tuple(Entry(**entry) for entry in entries),
    )
    write_synced(staging / MANIFEST, encoded(manifest.signed()))
    fsync_dir(staging)


def _entry(path: Path, digest: str) -> dict[str, Any]:
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _state_form(state: TrainState, size: int) -> StateForm:
    tensors = {name: _tensor_form(state, name) for name in state.tensors}
    return StateForm(
        schema_version=1, step=state.step, epoch=state.epoch, step_in_epoch=state.step_in_epoch,
        tokens=state.tokens, supervised_tokens=state.supervised_tokens, seconds=state.seconds,
        config=state.config, rows_sha256=state.rows_sha256, adapter=state.adapter, extra=state.extra,
        processes=size, tensors=tensors,
    )  # fmt: skip


def _tensor_form(state: TrainState, name: str) -> TensorForm:
    dtype, shape = _whole_form(state, name)
    return TensorForm(dtype=dtype, shape=shape, split=name in state.shapes and group_of(name) is not None)


def _whole_form(state: TrainState, name: str) -> tuple[Any, tuple[int, ...]]:
    dtype, shape = form_of(state.tensors[name])
    return dtype, tuple(state.shapes.get(name, shape))


# The folder of checkpoints


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not, the newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    numbered = [(int(match[1]), path) for path in found if (match := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def _is_whole(place: Path) -> bool:
    try:
        check(place)
    except (InputRefused, VerificationFailed, OSError):
        return False
    return True


def _put_in_place(staging: Path, final: Path) -> None:
    """Give the finished folder its name; a damaged checkpoint of the same step is moved aside."""
    if os.path.lexists(final):
        _discard(final)
    os.rename(staging, final)
    fsync_dir(final.parent)


def _let_go(folder: Path, keep: int) -> None:
    """Remove the checkpoints that are older than the `keep` newest whole ones; a damaged one is never counted."""
    whole = 0
    for place in steps(folder):
        if whole >= keep:
            _discard(place)
        whole += whole < keep and _is_whole(place)


def _discard(place: Path) -> None:
    """Remove a checkpoint; its name goes first, so that no half of it is ever taken for one."""
    old = place.with_name(f"{OLD}{place.name}")
    remove(old)
    os.rename(place, old)
    remove(old)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left."""
    for pattern in (f"{STAGING}*", f"{OLD}*"):
        for leftover in folder.glob(pattern):
            remove(leftover)


# Resuming


def newest_valid(
    folder: Path, *, like: TrainState | None = None, processes: Processes = ALONE
) -> tuple[TrainState | None, list[str]]:
    """The newest checkpoint that is whole, and lines that say why it and none that is newer; None if there is none.

    like: the state in which the run would begin. The checkpoint must then have been made with the same settings and
    data, and hold the same tensors; each is given with the rows that `like` has of it. Without it, tensors are whole.
    With several processes the first chooses for all.

    Raises ResumeRefused for a whole checkpoint of other settings or other data.
    """
    with processes.together("choosing a checkpoint"):
        chosen, reasons = _choose(folder, like) if processes.first else (None, [])
    told = json.loads(processes.texts(json.dumps([chosen and chosen.name, reasons]))[0])
    name, reasons = told
    if name is None:
        return None, reasons
    with processes.together(f"reading {name}"):
        return _load(folder / name, StateForm.read(folder / name), like, processes), reasons


def _choose(folder: Path, like: TrainState | None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of this run, and why it."""
    reasons: list[str] = []
    for place in steps(folder):
        try:
            form = check(place)
            if like is not None:
                _check_same(place, form, like)
                _check_tensors(place, form, like)
        except (VerificationFailed, InputRefused, OSError) as error:
            told = (error.what, error.why) if isinstance(error, OjakError) else (str(error),)
            why = ": ".join(filter(None, told))
            reasons.append(f"{place.name} is passed over: {why}")
            continue
        return place, [*reasons, f"going on from {place.name}, the newest checkpoint that is whole"]
    return None, [*reasons, f"there is no whole checkpoint in {folder}"]


def _check_same(place: Path, form: StateForm, like: TrainState) -> None:
    """Refuse a checkpoint of another run: it is whole, but going on from it would mix two runs."""
    wanted = json.loads(json.dumps(like.config))
    names = sorted(name for name in {*form.config, *wanted} if form.config.get(name) != wanted.get(name))
    if names:
        lines = [f"{name} was {_shown(form.config, name)}, is {_shown(wanted, name)}" for name in names[:8]]
        raise ResumeRefused(
            f"{place} was made with other settings",
            why="; ".join(lines),
            fix="give the settings that the run began with, or another --out",
        )
    if form.rows_sha256 != like.rows_sha256:
        raise ResumeRefused(
            f"{place} was made with other data",
            why=f"its rows have the SHA-256 {form.rows_sha256[:16]}..., those now {like.rows_sha256[:16]}...",
            fix="give the data that the run began with, or another --out",
        )


def _shown(config: Mapping[str, Any], name: str) -> str:
    return json.dumps(config[name])[:80] if name in config else "not there"


def _check_tensors(place: Path, form: StateForm, like: TrainState) -> None:
    """Raises VerificationFailed unless the checkpoint holds the run's tensors, in their forms."""
    for name in sorted({*form.tensors, *like.tensors}):
        held, wanted = form.tensors.get(name), name in like.tensors and _whole_form(like, name)
        if held is None or not wanted or (held.dtype, held.shape) != wanted:
            shown = "missing" if held is None else f"{held.dtype} {list(held.shape)}"
            raise VerificationFailed(
                f"{place} does not fit the model",
                why=f"its {name[:200]!r} is {shown}; the run has {wanted or 'none'}",
            )


def _load(place: Path, form: StateForm, like: TrainState | None, processes: Processes) -> TrainState:
    shapes = dict(like.shapes) if like is not None and processes.size > 1 else {}
    tensors: dict[str, Tensor] = {}
    for name, held in form.tensors.items():
        rows = held.shape[0] if held.shape else 1
        wanted = part_rows(rows, processes.rank, processes.size) if name in shapes else (0, rows)
        tensors[name] = _read(place, form, name, *wanted)
    return TrainState(
        step=form.step, epoch=form.epoch, step_in_epoch=form.step_in_epoch, tokens=form.tokens,
        supervised_tokens=form.supervised_tokens, seconds=form.seconds, config=form.config,
        rows_sha256=form.rows_sha256, tensors=tensors, shapes=shapes, adapter=form.adapter, extra=form.extra,
    )  # fmt: skip


def _read(place: Path, form: StateForm, name: str, first: int, end: int) -> Tensor:
    """Rows `first` to `end` of a tensor, put together from the parts of the processes that wrote it."""
    held, group = form.tensors[name], group_of(name)
    if group is None or not held.split:
        file = weights_file(form.adapter) if group is None else rank_file(group, 0, form.processes)
        return read_rows(place / file, name, first, end)
    pieces: list[Tensor] = []
    for rank in range(form.processes):
        begin, stop = part_rows(held.shape[0], rank, form.processes)
        low, high = max(first, begin), min(end, stop)
        if low < high:
            file = place / rank_file(group, rank, form.processes)
            pieces.append(read_rows(file, name, low - begin, high - begin))
    empty = torch.empty((0, *held.shape[1:]), dtype=DTYPES[held.dtype])
    return torch.cat(pieces) if pieces else empty
