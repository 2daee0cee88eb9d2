"""From names to a merged model: inputs opened and compared, weights merged, a Hugging Face folder put in its place.

OUT/config.json, tokenizer.json, ...    as of the first model
OUT/model*.safetensors                  the merged weights
OUT/README.md                           the model card: what was merged, hashes, shares
OUT/manifest.json                       the same for programs; written last, so that it says that all is there
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ojak._code import version
from ojak._files import TargetLock, disk_errors, fsync_dir, remove, sha256_file, target_exists, write_synced
from ojak._progress import Listener, silent
from ojak._swap import PREVIOUS, STAGING_PREFIX, swap_in, undo
from ojak.artifact import refuse_within
from ojak.errors import InputRefused, VerificationFailed
from ojak.merge.card import card
from ojak.merge.config import MergeConfig
from ojak.merge.inputs import Input, check_together, open_input
from ojak.merge.stream import Work, merged
from ojak.merge.weights import Weights, blocks
from ojak.model import checkpoint
from ojak.model.config import config_to_hf
from ojak.model.load import DTYPES
from ojak.model.memory import keep_freed_memory
from ojak.model.tensor_files import DTYPE_NAMES, Form, bytes_of, in_order, write_tensors
from ojak.model.tensor_files import DTYPES as STORED

KIND, MANIFEST = "merge", "manifest.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "README.md",
)  # fmt: skip
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors", re.ASCII)
SHARD_BYTES = 5 << 30


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What came of a merge.

    models: name, SHA-256 and licence of each, in their order; base: the same, None without one. shares: what was taken
    of the base and of each model, by group of tensors ("all", or slerp's layers); none of ties and dare. angles:
    slerp's, between the task vectors, in degrees, by group. merging_seconds: without opening, comparing and hashing the
    inputs.
    """

    out: Path
    method: str
    models: tuple[dict[str, Any], ...]
    base: dict[str, Any] | None
    shares: dict[str, dict[str, Any]]
    angles: dict[str, list[float]]
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    seconds: float
    merging_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "out": str(self.out)}


def merge_models(
    config: MergeConfig, *, notify: Callable[[str], None] = silent, progress: Listener | None = None
) -> MergeResult:
    """Merges models of one architecture and one vocabulary into the Hugging Face folder `config.out`.

    Weights are read, merged in float32 and written in blocks: the memory does not grow with the models (but for an
    adapter, whose base is built to merge it). The folder appears whole or not at all; killed, the same command begins
    anew and removes what was left. Same models and settings give the same bytes.

    Raises UsageError (no such model, settings that do not go together), TargetExists, InputRefused (models that do not
    fit together, unsound files, weights that are no numbers), ResourceExhausted (disk full), Locked.
    """
    begun, out = time.perf_counter(), config.out
    with TargetLock(out), disk_errors(out):
        undo(out, parts(out))
        _check_target(out, config.overwrite)
        staging = out / f"{STAGING_PREFIX}{uuid.uuid4().hex}"
        try:
            staging.mkdir()
            result = _merge(config, staging, notify, progress, begun)
            swap_in(out, staging, parts(out, staging))
        finally:
            remove(staging)
    return result


def parts(*folders: Path) -> tuple[str, ...]:
    """The names of a merge's files, in the order in which they are put in place; shards as the folders have them."""
    looked = [place for folder in folders for place in (folder, folder / PREVIOUS) if place.is_dir()]
    shards = {name for place in looked for name in os.listdir(place) if SHARD.fullmatch(name)}
    return (*TEXTS, *sorted(shards), WEIGHTS, INDEX, MANIFEST)


def _check_target(out: Path, overwrite: bool) -> None:
    """Only an earlier merge may be replaced, and that only when asked to."""
    refuse_within(out)
    there = [name for name in parts(out) if os.path.lexists(out / name)]
    if not there:
        return
    if read_merge(out) is None:
        raise target_exists(out / there[0], why="it is not part of a merge, so it is not ours to replace")
    if not overwrite:
        raise target_exists(out, why="it holds a finished merge; --overwrite replaces it")


def read_merge(out: Path) -> dict[str, Any] | None:
    """What the manifest of a merge says; None where there is none."""
    with contextlib.suppress(InputRefused):
        found = checkpoint.read_object(out / MANIFEST)
        return found if found.get("kind") == KIND else None
    return None


def check_merge(out: Path) -> None:
    """Raises VerificationFailed where a file of a finished merge is missing or of another size; nothing is read."""
    for entry in (read_merge(out) or {}).get("files") or [{"path": MANIFEST, "bytes": -1}]:
        path = out / str(entry.get("path"))
        if not path.is_file() or path.stat().st_size != entry.get("bytes"):
            raise VerificationFailed(f"{path} is missing or has changed", fix="merge again, with --overwrite")


def _merge(
    config: MergeConfig,
    staging: Path,
    notify: Callable[[str], None],
    progress: Listener | None,
    begun: float,
) -> MergeResult:
    """The whole folder in `staging`, each of its files durable."""
    made = staging / "inputs"
    names = [*config.models, *([config.base] if config.base else [])]
    inputs = [open_input(name, made / str(i), config.accept_license, notify) for i, name in enumerate(names)]
    check_together(inputs)
    forms = _forms(inputs[0], config)
    start = time.perf_counter()
    work, digests = _write_weights(config, inputs, forms, staging, progress)
    seconds = time.perf_counter() - start
    remove(made)
    source = inputs[0].source()
    settings = config_to_hf(inputs[0].config)
    checkpoint.write_json(staging / "config.json", settings)
    stops = {"eos_token_id": list(source.stop_ids), "bos_token_id": source.tokenizer.bos_id}
    checkpoint.save_text_side(staging, settings, source.tokenizer, source.chat_template, stops)
    result = MergeResult(
        out=config.out,
        method=config.method,
        models=tuple(map(_told, inputs[: len(config.models)])),
        base=_told(inputs[-1]) if config.base else None,
        shares={group: asdict(shares) for group, shares in work.shares.items()},
        angles=work.angles,
        tensors=len(forms),
        parameters=sum(work.entries(name) for name in forms),
        bytes=sum(map(bytes_of, forms.values())),
        dtypes=tuple(sorted({form[0] for form in forms.values()})),
        seconds=round(time.perf_counter() - begun, 3),
        merging_seconds=round(seconds, 3),
    )
    checkpoint.write_text(staging / "README.md", card(config, result, source))
    _write_manifest(config, result, digests, staging)
    fsync_dir(staging)
    return result


def _told(item: Input) -> dict[str, Any]:
    return {"name": item.name, "sha256": item.sha256, "license": item.license}


def _forms(first: Input, config: MergeConfig) -> dict[str, Form]:
    """What is written: the shapes of the first model, stored as it is or as asked for."""
    asked = DTYPE_NAMES[DTYPES[config.dtype]] if config.dtype else None
    narrow = {"F64": "F32"}  # what is merged is merged in float32
    return {
        name: (asked or narrow.get(place.form[0], place.form[0]), place.form[1])
        for name, place in first.places.items()
    }


def _write_weights(
    config: MergeConfig,
    inputs: Sequence[Input],
    forms: Mapping[str, Form],
    staging: Path,
    progress: Listener | None,
) -> tuple[Work, dict[str, str]]:
    """Merge into one file or several: the work, which knows what was found on the way, and each file's SHA-256."""
    shards = _shards(forms)
    names = [name for shard in shards for name in in_order(shard)]
    threads = max(1, torch.get_num_threads())
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        stack.callback(torch.set_num_threads, threads)  # the number is that of threads yet to come, too
        stack.enter_context(pool)
        weights = [stack.enter_context(Weights(each.places)) for each in inputs]
        count = len(config.models)
        work = Work(
            config, names, weights[:count], [each.sha256 for each in inputs[:count]],
            weights[count] if config.base else None, pool, threads, progress,
        )  # fmt: skip
        stream = merged(work, {name: STORED[forms[name][0]] for name in names})
        digests = {
            file: write_tensors(staging / file, shard, _taken(stream, work, shard))
            for file, shard in zip(_file_names(len(shards)), shards, strict=True)
        }
    if len(shards) > 1:
        _write_index(staging, shards)
    return work, digests


def _taken(stream: Iterator[torch.Tensor], work: Work, shard: Mapping[str, Form]) -> Iterator[torch.Tensor]:
    """The blocks of the tensors of one shard."""
    for name in shard:
        for _ in blocks(work.entries(name)):
            yield next(stream)


def _shards(forms: Mapping[str, Form]) -> list[dict[str, Form]]:
    """The tensors in files of up to SHARD_BYTES, each with those that follow it in one file."""
    found: list[dict[str, Form]] = [{}]
    for name in in_order(forms):
        held = sum(map(bytes_of, found[-1].values()))
        if found[-1] and held + bytes_of(forms[name]) > SHARD_BYTES:
            found.append({})
        found[-1][name] = forms[name]
    return found


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(staging: Path, shards: Sequence[Mapping[str, Form]]) -> None:
    files = zip(_file_names(len(shards)), shards, strict=True)
    places = {name: file for file, shard in files for name in shard}
    total = sum(bytes_of(form) for shard in shards for form in shard.values())
    checkpoint.write_json(staging / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_manifest(
    config: MergeConfig, result: MergeResult, digests: Mapping[str, str], staging: Path
) -> None:
    files = sorted(path for path in staging.iterdir() if path.is_file())
    told = {name: value for name, value in result.to_dict().items() if name != "out"}
    content = {
        "schema_version": 1,
        "kind": KIND,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ojak_version": version(),
        "config": config.model_dump(
            mode="json", exclude={"out", "models", "base", "overwrite", "accept_license"}
        ),
        "result": told,
        "files": [
            {
                "path": path.name,
                "bytes": path.stat().st_size,
                "sha256": digests.get(path.name) or sha256_file(path),
            }
            for path in files
        ],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_synced(staging / MANIFEST, text.encode())
