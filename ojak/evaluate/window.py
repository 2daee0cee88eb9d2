"""Perplexity of long text against the window of a model's local layers, with the memory and speed of each.

Gemma 2's report has the perplexities of a 9B model at windows of 4096, 2048 and 1024 (arXiv 2408.00118, section 5), and
neither memory nor speed. The weights stay; only what a local layer may see changes. Every cell predicts the same
tokens: the text is cut into pieces of the context's length, so a shorter context gives them less to look back on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ojak._files import write_atomic
from ojak._progress import silent
from ojak.artifact import publish
from ojak.engines.native import NativeEngine
from ojak.errors import InputRefused, ResumeRefused, UsageError, VerificationFailed
from ojak.evaluate.likelihood import perplexity, ratio_interval
from ojak.evaluate.rows import rows_at
from ojak.evaluate.run import Keep, inputs_of
from ojak.evaluate.window_config import WindowConfig
from ojak.model.config import config_from_hf
from ojak.model.decoder import DecoderConfig
from ojak.model.load import Model, from_source, read_source
from ojak.model.reading import Reading, View, read_texts
from ojak.model.tokenizer import Tokenizer
from ojak.records import Document

KIND = "window-sweep"
CELLS_FILE = "cells.json"  # every finished cell with its sums: what a run that was stopped goes on from
BLOCK_TOKENS = 256  # of the bootstrap: neighbouring tokens are not independent
JOINT = "\n\n"  # between documents


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to read the text. window: tokens that local layers see, None for all; `trained`: the model's own."""

    context: int
    window: int | None
    trained: bool = False
    softcaps: bool = True

    @property
    def name(self) -> str:
        window = "all" if self.window is None else f"{self.window:,}"
        return f"context {self.context:,}, window {window}{'' if self.softcaps else ', no soft caps'}"


@dataclass(slots=True)
class Cells:
    """The finished cells of a run, on disk after each one where there is a folder. `key`: what all of them rest on."""

    key: str
    folder: Path | None
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self) -> None:
        """Raises ResumeRefused for cells of another model or text."""
        path = self.folder / CELLS_FILE if self.folder else None
        if path is None or not path.exists():
            return
        try:
            there = json.loads(path.read_bytes())
            key, found = there["key"], dict(there["cells"])
        except (ValueError, TypeError, KeyError) as error:
            raise VerificationFailed(f"{path} is damaged", fix="remove it, and run again") from error
        if key != self.key:
            raise ResumeRefused(
                f"{self.folder} holds a sweep of another model or text, or in another dtype",
                fix="choose another folder",
            )
        self.found = found

    def add(self, name: str, figures: dict[str, Any]) -> None:
        self.found[name] = figures
        if self.folder is not None:
            write_atomic(self.folder / CELLS_FILE, self.encoded())

    def encoded(self) -> bytes:
        return json.dumps({"key": self.key, "cells": self.found}).encode() + b"\n"


def sweep_windows(
    config: WindowConfig, out: Path | str | None = None, *, notify: Callable[[str], None] = silent
) -> dict[str, Any]:
    """Reads the text at every context and window: {"model", "identity", "tokens", "cells": [figures], ...}.

    Of each cell: loss (nats a token), perplexity and its interval, difference of the loss to the model's own window
    (paired over blocks of 256 tokens, 95 %), cache_bytes of one text, memory_bytes beside the weights, tokens a second
    of prefill (layers alone) and decode (one text, output layer included). With `out` they are kept as an artifact of
    kind "window-sweep", cell by cell, so that a run that was stopped goes on.

    Raises InputRefused for a model without sliding layers, without caps where they are asked for, or for too little
    text; UsageError for a context that the model does not reach; ResumeRefused for a folder with other cells.
    """
    with Keep(Path(out) if out is not None else None) as keep:
        source = read_source(config.model, accept_license=config.accept_license, notify=notify)
        shape = config_from_hf(source.config)
        _check(config, source.name, shape)
        pieces = _text(config, source.tokenizer)
        model = from_source(source, config.dtype)
        cells = Cells(_key(model, pieces), keep.folder)
        cells.load()
        wanted = list(cells_of(config, shape.sliding_window or 0))
        for number, cell in enumerate(wanted, 1):
            if cell.name not in cells.found:
                notify(f"{cell.name} ({number} of {len(wanted)})")
                cells.add(cell.name, _measured(model, cell, pieces, config.decoded))
        result = _result(config, model, cells, wanted)
        if keep.folder is not None:
            result["out"] = str(_publish(keep.folder, config, cells, result))
        return result


def cells_of(config: WindowConfig, trained: int) -> Iterator[Cell]:
    """All ways to read the text; a window as long as the context is that of seeing all."""
    for context in sorted(set(config.contexts)):
        windows = sorted({each for each in (*config.windows, trained) if each < context})
        yield from (Cell(context, each, each == trained) for each in windows)
        yield Cell(context, None, trained >= context)
        if config.softcaps:
            yield Cell(context, trained if trained < context else None, softcaps=False)


def _check(config: WindowConfig, name: str, shape: DecoderConfig) -> None:
    """What cannot be measured of this model, told before its weights are read."""
    if "sliding_attention" not in shape.layer_types:
        raise InputRefused(
            f"{name} has no window to vary",
            why=f"all of its {shape.num_hidden_layers} layers see the whole text (model type {shape.model_type})",
            fix="give a model with sliding layers, such as gemma-3-270m",
        )
    caps = shape.attn_logit_softcapping, shape.final_logit_softcapping
    if config.softcaps and caps == (None, None):
        raise InputRefused(
            f"{name} has no soft caps",
            why=f"its configuration (model type {shape.model_type}) names neither attn_logit_softcapping nor"
            " final_logit_softcapping",
            fix="leave out --softcaps, or give a model that has them, such as one of Gemma 2",
        )
    if max(config.contexts) > shape.max_position_embeddings:
        raise UsageError(
            f"a context of {max(config.contexts):,} tokens is too long for {name}",
            why=f"it was made for texts of up to {shape.max_position_embeddings:,}",
            fix="lower --contexts",
        )


def _text(config: WindowConfig, tokenizer: Tokenizer) -> list[int]:
    """What begins the text, and its tokens, all of which are predicted."""
    texts = [row.text for row in rows_at(config.data, config.split) if isinstance(row, Document)]
    ids = tokenizer.encode(JOINT.join(texts), special=False)
    begins = tokenizer.adds_bos and tokenizer.bos_id is not None
    ids = [tokenizer.bos_id or 0, *ids] if begins else ids
    largest = max(config.contexts)
    whole = min(len(ids) - 1, config.tokens or largest) // largest * largest
    if whole < 1:
        raise InputRefused(
            f"{Path(config.data)} has too little text for a context of {largest:,} tokens",
            why=f"its {len(texts):,} documents have {max(0, len(ids) - 1):,} tokens together",
            fix="give longer text (documents, not conversations), or lower --contexts",
        )
    return ids[: whole + 1]


def pieces_of(
    ids: Sequence[int], context: int, bos: int | None
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """(what is read, the token after each place), `context` tokens at a time; each piece begins like a text.

    That is, with the BOS where the model has one (`bos`), otherwise with the token before it.
    """
    for begin in range(0, len(ids) - 1, context):
        first = ids[begin] if bos is None else bos
        end = begin + context
        yield [first, *ids[begin + 1 : end]], ids[begin + 1 : end + 1]


def _key(model: Model, ids: Sequence[int]) -> str:
    """What every figure of a cell rests on, as a hash."""
    parts = [model.sha256, str(model.dtype), str(model.device), *map(str, ids)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _measured(model: Model, cell: Cell, ids: Sequence[int], decoded: int) -> dict[str, Any]:
    tokenizer = model.tokenizer
    pieces = pieces_of(ids, cell.context, tokenizer.bos_id if tokenizer.adds_bos else None)
    view = View(cell.context, cell.window, cell.softcaps)
    return _figures(cell, read_texts(model.decoder, pieces, view, stepped=decoded))


def _figures(cell: Cell, found: Reading) -> dict[str, Any]:
    """The figures of a cell, and its sums over blocks of neighbouring tokens."""
    nats = found.nats
    if not all(map(math.isfinite, nats)):
        raise InputRefused(
            f"the model gives no finite numbers ({cell.name})",
            fix="use --dtype float32, or another copy of the model",
        )
    blocks = [nats[at : at + BLOCK_TOKENS] for at in range(0, len(nats), BLOCK_TOKENS)]
    return {
        **asdict(cell),
        "cache_bytes": found.cache_bytes,
        "memory_bytes": found.memory_bytes,
        "prefill_tokens_s": found.prefill_tokens / found.prefill_s,
        "decode_tokens_s": 1 / statistics.median(found.steps_s),
        "block_nats": [math.fsum(block) for block in blocks],
        "block_tokens": [len(block) for block in blocks],
    }


def _result(config: WindowConfig, model: Model, cells: Cells, wanted: Sequence[Cell]) -> dict[str, Any]:
    shape = model.config
    every = [cells.found[cell.name] for cell in wanted]
    return {
        "model": model.name,
        "identity": NativeEngine(model).identity,
        "window": shape.sliding_window,
        "layers": shape.num_hidden_layers,
        "local_layers": shape.layer_types.count("sliding_attention"),
        "tokens": sum(every[0]["block_tokens"]),
        "cells": [_summary(cell, every, config.seed) for cell in every],
    }


def _summary(cell: dict[str, Any], every: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """A cell's figures, its loss against that of the model's own window and caps at the same context."""
    nats, tokens = (np.asarray(cell[name], dtype=np.float64) for name in ("block_nats", "block_tokens"))
    loss = ratio_interval(nats, tokens, np.random.default_rng(seed))
    own = next(each for each in every if each["trained"] and each["context"] == cell["context"])
    apart = ratio_interval(nats - np.asarray(own["block_nats"]), tokens, np.random.default_rng(seed))
    return {
        **{name: value for name, value in cell.items() if not name.startswith("block_")},
        "loss": loss[0],
        "perplexity": perplexity(loss[0]),
        "perplexity_interval": [perplexity(value) for value in loss[1:]],
        "difference": apart[0],
        "difference_interval": apart[1:],
    }


def _publish(folder: Path, config: WindowConfig, cells: Cells, result: dict[str, Any]) -> Path:
    """The artifact; the cells' sums stay beside it."""
    write_atomic(folder / CELLS_FILE, cells.encoded())
    stats = {**result, "cells_sha256": hashlib.sha256(cells.encoded()).hexdigest(), "cpus": os.cpu_count()}
    settings = config.model_dump(mode="json", exclude={"accept_license"})
    return publish(
        folder, kind=KIND, records=[], config=settings, inputs=inputs_of(config, folder), stats=stats
    ).path
