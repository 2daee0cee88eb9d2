"""A cache of a teacher's predictions made: the rows that a run will learn from, read once by the teacher.

Which rows make up a shard follows from the rows alone, and so does which of them are multiplied together: a cache that
was killed and taken up again has the same bytes as one that was not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ojak._files import TargetLock, sha256_file, write_atomic
from ojak._progress import Listener, Progress, silent
from ojak.artifact import Artifact, publish
from ojak.errors import InputRefused, ResumeRefused, TargetExists, VerificationFailed
from ojak.model.attention import softcap
from ojak.model.config import config_from_hf
from ojak.model.load import Model, asked_device, from_source, read_source
from ojak.train.batches import packed_batch
from ojak.train.distil_cache import (
    KIND,
    SHARDS,
    VERSION,
    Cache,
    Predictions,
    Shard,
    common,
    shard_bytes,
    vocabulary_sha256,
)
from ojak.train.encode import Encoding
from ojak.train.objectives import NextToken
from ojak.train.rows import Rows, open_rows
from ojak.train.styles import style_for, style_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ojak.model.source import Source
    from ojak.train.distil_config import DistilCacheConfig
    from ojak.train.rows import Part

SHARD_TOKENS = 1 << 15  # learnt tokens of a shard: what a kill loses at most
TOGETHER = 1 << 11  # tokens that the teacher reads at once
LOGITS = 1 << 24  # of them in memory at once


@dataclass(frozen=True, slots=True)
class CacheResult:
    """What was made: rows, the learnt tokens whose predictions are kept, bytes, and the mean mass of the tail."""

    rows: int
    tokens: int
    bytes: int
    bytes_per_token: float
    tail_mass: float
    top_k: int
    seconds: float
    out: str

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return asdict(self)


def cache_teacher(
    config: DistilCacheConfig,
    *,
    notify: Callable[[str], None] = silent,
    progress: Listener | None = None,
) -> CacheResult:
    """Writes what a teacher predicts at every learnt token of the rows to `config.out`, or goes on with that.

    Raises TargetExists for a finished cache of something else, ResumeRefused for one of something else that was begun,
    Locked, ResourceExhausted, and what `load_model` and `open_rows` do.
    """
    source = read_source(config.teacher, accept_license=config.accept_license, notify=notify)
    template = _template(config, source)
    rows = _rows(config, source, template, notify)
    header = _header(config, source, template)
    with TargetLock(config.out):
        if (config.out / "manifest.json").exists():
            return _finished(config.out, header, rows)
        begin = time.perf_counter()
        todo = list(_todo(config.out, header, rows))
        if any(item.missing for item in todo):
            _make(config, source, header, todo, rows, progress)
        seconds = round(time.perf_counter() - begin, 3)
        return _publish(config, header, [item.path for item in todo], rows, seconds)


def _template(config: DistilCacheConfig, source: Source) -> str | None:
    """The template that the rows are written with, as a run has it whose student brings the teacher's."""
    style = style_for("pretrain" if config.texts else "finetune", config.style, source.chat_template)
    if style is None:
        return source.chat_template
    return style_template(style, source.tokenizer, source.chat_template)


def _rows(
    config: DistilCacheConfig, source: Source, template: str | None, notify: Callable[[str], None]
) -> Rows:
    return open_rows(
        config.data, source.tokenizer, template=template, objective="pretrain" if config.texts else "finetune",
        mask_roles=config.mask_roles, max_len=config.max_len, long_rows=config.long_rows, notify=notify,
    )  # fmt: skip


def _header(config: DistilCacheConfig, source: Source, template: str | None) -> dict[str, Any]:
    """What every shard says of itself, beside which rows it is of."""
    objective = "pretrain" if config.texts else "finetune"
    encoding = Encoding(objective, template, config.mask_roles, config.max_len, config.long_rows)
    vocab_size = config_from_hf(source.config).vocab_size
    return {
        "version": VERSION,
        "teacher": source.name,
        "teacher_sha256": source.sha256,
        "tokenizer_sha256": vocabulary_sha256(source.tokenizer),
        "vocab_size": vocab_size,
        **encoding.key(),
        "top_k": min(config.top_k, vocab_size),
        "temperature": config.temperature,
        "dtype": config.dtype,
        "compute": config.compute,
    }


@dataclass(frozen=True, slots=True)
class _Item:
    """A shard of the plan: rows `first` to `end` of a part, its header, and whether it is still to be made."""

    path: Path
    part: Part
    first: int
    end: int
    header: dict[str, Any]
    missing: bool


def _todo(out: Path, header: dict[str, Any], rows: Rows) -> Iterator[_Item]:
    """Every shard of the cache. Raises ResumeRefused where one that is there is of another cache."""
    for number, part in enumerate(rows.parts):
        learnt = np.asarray(part.store.table)[: len(part.store), 2]
        for place, (first, end) in enumerate(_groups(learnt, SHARD_TOKENS)):
            path = out / SHARDS / f"{number:03d}-{place:05d}.safetensors"
            own = {"source": part.content, "store": part.store.sha256, "first": first, "rows": end - first}
            yield _Item(path, part, first, end, header | own, not _is_made(path, header | own))


def _is_made(path: Path, header: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    try:
        found = Shard(path)
    except VerificationFailed:
        return False  # made anew: a shard is minutes of work
    if found.header != header:
        changed = sorted(name for name, value in header.items() if found.header.get(name) != value)
        raise ResumeRefused(
            f"{path.parent.parent} holds a cache of something else",
            why=f"another {', '.join(changed)}",
            fix="choose another --out, or remove the folder",
        )
    return True


def _groups(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive items whose sizes sum up to at most `most`, or are one item."""
    first, total = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and total + size > most:
            yield first, place
            first, total = place, 0
        total += size
    if len(sizes):
        yield first, len(sizes)


def _make(
    config: DistilCacheConfig,
    source: Source,
    header: dict[str, Any],
    todo: Sequence[_Item],
    rows: Rows,
    progress: Listener | None,
) -> None:
    """Have the teacher read what is missing, a shard written after the other."""
    model = from_source(source, config.compute, asked_device(config.device))
    shown = _Shown(len(rows), progress)
    for item in todo:
        if item.missing:
            learnt = np.asarray(item.part.store.table)[item.first : item.end, 2]
            found = _read(model, header, item, shown)
            write_atomic(item.path, shard_bytes(item.header, found, np.cumsum(learnt)))
        shown.rows(item.end - item.first if not item.missing else 0)


@torch.inference_mode()
def _read(model: Model, header: dict[str, Any], item: _Item, shown: _Shown) -> Predictions:
    """The teacher's predictions at the learnt tokens of a shard's rows."""
    store, states = item.part.store, NextToken(share=header["objective"] == "finetune").states
    bounds = np.asarray(store.table)[item.first : item.end + 1, 0]
    made: list[Predictions] = []
    for first, end in _groups(np.diff(bounds), TOGETHER):
        spans = [slice(bounds[row], bounds[row + 1]) for row in range(first, end)]
        batch = packed_batch([(store.ids[span], store.mask[span]) for span in spans])
        hidden_SD, _, _ = states(model.decoder, batch)
        weight_VD = model.decoder.get_parameter("lm_head.weight")
        cap = model.config.final_logit_softcapping
        made.append(most_likely(hidden_SD, weight_VD, header["top_k"], header["temperature"], cap))
        shown.rows(end - first)
    columns = zip(*((each.indices_NK, each.log_probs_NK, each.tail_N) for each in made), strict=True)
    return Predictions(*(torch.cat(column) for column in columns))


def most_likely(
    hidden_ND: Tensor, weight_VD: Tensor, k: int, temperature: float, cap: float | None
) -> Predictions:
    """The k most likely tokens of softmax(cap(h w) / temperature), and the log of the mass of the others."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part_RD in hidden_ND.split(max(1, LOGITS // len(weight_VD))):
        logits_RV = softcap((part_RD @ weight_VD.t()).float(), cap) / temperature
        top, log_z = logits_RV.topk(k), logits_RV.logsumexp(-1)
        rest = logits_RV.scatter_(1, top.indices, -torch.inf).logsumexp(-1)
        found.append((top.indices, top.values - log_z[:, None], rest - log_z))
    return Predictions(*(torch.cat(column).cpu() for column in zip(*found, strict=True)))


class _Shown:
    """Tells a listener how far the teacher is."""

    def __init__(self, total: int, listener: Listener | None) -> None:
        self.total, self.done, self.listener = total, 0, listener
        self.begin = time.perf_counter()

    def rows(self, count: int) -> None:
        self.done += count
        if self.listener is None or not count:
            return
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done)
        state = Progress(
            rows_total=self.total, rows_done=self.done, eta_s=left, phase="the teacher reads", reads=True
        )
        self.listener.update(state)


def _publish(
    config: DistilCacheConfig, header: dict[str, Any], paths: Sequence[Path], rows: Rows, seconds: float
) -> CacheResult:
    """The manifest, and what it says."""
    shards = [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths
    ]
    tails = [np.exp(Shard(path).tails.astype(np.float64)) for path in paths]
    tokens, size = sum(map(len, tails)), sum(entry["bytes"] for entry in shards)
    stats: dict[str, Any] = {
        "rows": len(rows), "tokens": tokens, "bytes": size, "bytes_per_token": round(size / max(1, tokens), 1),
        "tail_mass": round(float(sum(tail.sum() for tail in tails)) / max(1, tokens), 6), "top_k": header["top_k"],
        "seconds": seconds,
    }  # fmt: skip
    inputs = [{"path": os.path.relpath(part.name, config.out), "sha256": part.content} for part in rows.parts]
    settings = config.model_dump(mode="json", exclude={"out", "accept_license"})
    publish(
        config.out, kind=KIND, records=[], config=settings, inputs=inputs,
        stats={**stats, "header": header, "shards": shards},
    )  # fmt: skip
    return CacheResult(**stats, out=str(config.out))


def _finished(out: Path, header: dict[str, Any], rows: Rows) -> CacheResult:
    """What the cache that is there holds. Raises TargetExists unless it is this one."""
    artifact = Artifact.open(out)
    if artifact.kind != KIND:
        raise TargetExists(f"{out} holds something else", fix="choose another --out")
    there = Cache.open(out)
    same = there.header == common(header) and set(there.shards) == {part.store.sha256 for part in rows.parts}
    if not same:
        raise TargetExists(
            f"{out} holds a finished cache of another teacher, other rows or settings",
            fix="choose another --out, or remove the folder",
        )
    names = ("rows", "tokens", "bytes", "bytes_per_token", "tail_mass", "top_k", "seconds")
    try:
        return CacheResult(**{name: artifact.stats[name] for name in names}, out=str(out))
    except KeyError as error:
        raise InputRefused(f"{out / 'manifest.json'} is damaged", why=f"{error} is missing") from error
