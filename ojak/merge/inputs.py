"""The models of a merge, found and read as `ojak chat` reads them, and why some do not go together.

A Hugging Face folder is read where it lies. What must be made first (the weights of a GGUF file, an adapter merged into
its base in float32) is written into a file that goes when the merge is done.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ojak._progress import silent
from ojak.errors import InputRefused
from ojak.merge.weights import Place, places_in, spool
from ojak.model import checkpoint, hub, lora
from ojak.model.config import config_from_hf
from ojak.model.decoder import DecoderConfig
from ojak.model.files import cached_sha256
from ojak.model.load import from_source, read_source, without_weights
from ojak.model.source import Source

Shape = tuple[int, ...]
FREE_FIELDS = ("extra", "max_position_embeddings")  # they say nothing of what the weights do
CLOSE = 1e-5  # a GGUF file holds float32 where a config.json holds decimals


@dataclass(frozen=True, slots=True)
class Input:
    """A model of a merge. `source` reads its tokenizer, too; equal `vocabulary`s that are not None spare that."""

    name: str
    sha256: str
    license: str | None
    config: DecoderConfig
    places: Mapping[str, Place]
    source: Callable[[], Source]
    vocabulary: str | None


def open_input(
    name: str,
    folder: Path,
    accept_license: Collection[str] = (),
    notify: Callable[[str], None] = silent,
) -> Input:
    """The model `name`; what has to be made of it is put into the new file `folder/weights`.

    Raises UsageError for an unknown name, InputRefused for files that cannot be used.
    """
    path = hub.find(name, accept_license=accept_license, notify=notify)
    if path.is_dir() and not lora.is_adapter(path):
        return _of_folder(name, path)
    source = read_source(name, accept_license=accept_license, notify=notify)
    folder.mkdir(parents=True)
    tensors = source.tensors()
    if source.adapters:
        notify(f"merging the adapter of {_shown(name)} into its base, in float32")
        model = from_source(source, "float32", "cpu")
        left_out = "lm_head.weight" if model.config.tie_word_embeddings else ""
        tensors = ((key, tensor) for key, tensor in model.decoder.state_dict().items() if key != left_out)
    places = spool(folder / "weights", tensors)
    return Input(
        _shown(name), source.sha256, source.license, config_from_hf(source.config), places, lambda: source, None
    )  # fmt: skip


def _of_folder(name: str, path: Path) -> Input:
    config, files = checkpoint.read_config(path), checkpoint.weight_files(path)
    tokenizer = path / "tokenizer.json"
    return Input(
        name=_shown(name),
        sha256=checkpoint.folder_sha256(path, files),
        license=checkpoint.read_license(path),
        config=config_from_hf(config),
        places=places_in(files, config),
        source=cache(lambda: checkpoint.read(path)),
        vocabulary=cached_sha256(tokenizer) if tokenizer.is_file() else None,
    )


def _shown(name: str) -> str:
    """What the merge says of the model's place: a name as it is, of a path the last part alone."""
    return Path(name).expanduser().absolute().name if os.path.exists(os.path.expanduser(name)) else name


def check_together(inputs: Sequence[Input]) -> None:
    """Raises InputRefused, with the first reason, unless all models are built alike and share their vocabulary."""
    first, *others = inputs
    built = without_weights(first.source())
    expected = {name: tuple(weight.shape) for name, weight in built.decoder.named_parameters()}
    if first.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    for each in inputs:
        _check_config(first, each)
        _check_tensors(expected, each)
    for other in others:
        _check_vocabulary(first, other)


def _check_config(first: Input, other: Input) -> None:
    differing = [
        field.name
        for field in fields(DecoderConfig)
        if field.name not in FREE_FIELDS
        and not _same(getattr(first.config, field.name), getattr(other.config, field.name))
    ]
    if not differing:
        return
    told = [
        f"{name} is {getattr(first.config, name)} and {getattr(other.config, name)}" for name in differing[:4]
    ]
    raise InputRefused(
        f"{first.name} and {other.name} cannot be merged: they are built differently",
        why=_cut("; ".join(told)),
        fix="merge models that come from one base",
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=CLOSE)
    return one == other


def _check_tensors(expected: Mapping[str, Shape], each: Input) -> None:
    """Every weight of the architecture is there, none other, each of its shape."""
    missing = [name for name in expected if name not in each.places]
    unknown = [name for name in each.places if name not in expected]
    wrong = [name for name in expected if name in each.places and each.places[name].form[1] != expected[name]]
    if missing:
        why = f"it lacks {len(missing)} weights, the first {missing[0]}"
    elif unknown:
        why = f"it holds {len(unknown)} weights that its configuration has no place for, such as {unknown[0][:200]!r}"
    elif wrong:
        shape = each.places[wrong[0]].form[1]
        why = f"{wrong[0]} has the shape {shape}; {expected[wrong[0]]} is expected"
    else:
        return
    raise InputRefused(f"the weights of {each.name} do not fit the merge", why=_cut(why))


def _check_vocabulary(first: Input, other: Input) -> None:
    """Refuses models in which an id stands for different texts: rows of embeddings would be mixed up."""
    if first.vocabulary is not None and first.vocabulary == other.vocabulary:
        return
    known, theirs = (
        each.source().tokenizer.backend.get_vocab(with_added_tokens=True) for each in (first, other)
    )
    clash = _clash(known, theirs)
    if clash:
        raise InputRefused(
            f"{first.name} and {other.name} cannot be merged: their tokenizers differ",
            why=_cut(clash),
            fix="merge models that were trained with one tokenizer",
        )


def _clash(known: Mapping[str, int], theirs: Mapping[str, int]) -> str | None:
    """The first id with two texts, or text with two ids; a token that one of them lacks does no harm."""
    by_id = {number: text for text, number in known.items()}
    for text, number in sorted(theirs.items(), key=lambda item: item[1]):
        if by_id.get(number, text) != text:
            return f"the id {number} stands for {by_id[number]!r} in one and {text!r} in the other"
        if known.get(text, number) != number:
            return f"the token {text!r} has the id {known[text]} in one and {number} in the other"
    return None


def _cut(text: str, most: int = 600) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
