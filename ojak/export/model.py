"""A model for other programs: a Hugging Face folder, a GGUF file, or a folder for Ollama, each with the same stops."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

from ojak.chat import ChatTemplate, describe
from ojak.errors import InputRefused, UsageError, VerificationFailed
from ojak.export.model_card import card
from ojak.export.ollama import modelfile
from ojak.export.stops import Stops, stops_of
from ojak.model import checkpoint
from ojak.model.config import OWN
from ojak.model.gguf_write import WeightType, write_gguf
from ojak.model.load import Model, from_source, read_source
from ojak.model.source import Source

Format = Literal["hf", "gguf", "ollama"]
Kind = Literal["f32", "f16", "bf16", "q8_0"]
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
GGUF_TYPES: dict[str, WeightType] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
WEIGHTS = "model.gguf"  # beside a Modelfile


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """What was written. `kind`: what matrices are stored as; `stop_ids`, `stops`: ids and texts of its stops."""

    out: Path
    format: Format
    kind: Kind
    bytes: int
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]


def export_model(
    name_or_path: str,
    fmt: Format,
    out: Path,
    *,
    kind: Kind | None = None,
    accept_license: Collection[str] = (),
    notify: Callable[[str], None] | None = None,
) -> ExportedModel:
    """Writes a known model, a file, a folder, or an adapter merged into its base, to the new `out`.

    kind: by default, of a Hugging Face folder what the model is stored as (F32 for what is quantised, or merged), of a
    GGUF file F16. Raises TargetExists, and InputRefused for a model that the format cannot hold.
    """
    if fmt == "hf" and kind == "q8_0":
        raise UsageError(
            "a Hugging Face folder holds no Q8_0 weights", fix="use --type f32, bf16 or f16, or --format gguf"
        )
    if out.exists():
        raise _there(out)
    source = read_source(name_or_path, accept_license=accept_license, notify=notify)
    chosen = kind or (_stored(source) if fmt == "hf" else "f16")
    model = from_source(source, DTYPES[chosen] if fmt == "hf" else "float32", "cpu")
    if model.config.model_type == OWN:
        _refuse_own(model)
    stops = stops_of(model)
    model = replace(model, stop_ids=tuple(dict.fromkeys((*model.stop_ids, *stops.ids))))
    write = {"hf": _write_hf, "gguf": _write_gguf, "ollama": _write_ollama}[fmt]
    write(out, model, stops, chosen)
    names = {i: text for text, i in model.tokenizer.special_tokens.items()}
    texts = (*(names[i] for i in stops.needed if i in names), *stops.strings)
    return ExportedModel(out, fmt, chosen, _size(out), stops.needed, texts)


def _there(out: Path) -> UsageError:
    from ojak._files import target_exists

    return target_exists(out)


def _stored(source: Source) -> Kind:
    """How the model's own matrices are stored, where a folder can hold them so."""
    if source.adapters:
        return "f32"
    dtype = next(str(tensor.dtype) for _, tensor in source.tensors() if tensor.ndim > 1)
    kinds: dict[str, Kind] = {"torch.bfloat16": "bf16", "torch.float16": "f16"}
    return kinds.get(dtype, "f32")


def _size(out: Path) -> int:
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    return sum(path.stat().st_size for path in files)


def _write_hf(out: Path, model: Model, stops: Stops, kind: Kind) -> None:
    model.save(out, card=card(model, stops, "hf", kind))
    back = read_source(str(out))
    if set(back.stop_ids) != set(model.stop_ids) or back.chat_template != model.chat_template:
        raise VerificationFailed(f"{out} does not end a text as the model does", fix="report this")


def _write_gguf(out: Path, model: Model, stops: Stops, kind: Kind) -> None:
    if out.suffix != ".gguf":
        raise UsageError(f"{out} is no name of a GGUF file", fix="let --out end in .gguf")
    write_gguf(out, model, GGUF_TYPES[kind], stop_ids=stops.needed)


def _write_ollama(out: Path, model: Model, stops: Stops, kind: Kind) -> None:
    """The Modelfile first: where a template cannot be told in Ollama's terms, no weights are written."""
    if not model.chat_template:
        _refuse_base(model)
    template = ChatTemplate.of(model.chat_template, model.tokenizer)
    system = describe(template, model.tokenizer)["default_system"]
    names = {i: text for text, i in model.tokenizer.special_tokens.items()}
    text = modelfile(
        template,
        WEIGHTS,
        stops=[*(names[i] for i in stops.needed if i in names), *stops.strings],
        context=model.config.max_position_embeddings,
        default_system=system or None,
        bos=(model.tokenizer.bos_token or "") if model.tokenizer.adds_bos else "",
    )
    with checkpoint.new_folder(out) as staging:
        write_gguf(staging / WEIGHTS, model, GGUF_TYPES[kind], stop_ids=stops.needed)
        checkpoint.write_text(staging / "Modelfile", text)
        checkpoint.write_text(staging / "README.md", card(model, stops, "ollama", kind))


def _refuse_base(model: Model) -> NoReturn:
    raise InputRefused(
        f"{model.name} cannot be a model of Ollama", why="it has no chat template: it continues text, and has no turns",
        fix="use --format gguf, or finetune it first",
    )  # fmt: skip


def _refuse_own(model: Model) -> NoReturn:
    raise InputRefused(
        f"{model.name} is a model that only ojak can run",
        why="no family that other programs know has its norms, windows and caps together: they would compute something"
        " else with its weights",
        fix="use its folder with ojak (evaluate, chat, serve), or train a model of a known family",
    )
