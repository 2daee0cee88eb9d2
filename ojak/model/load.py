"""From a name or a path to a model that runs: files found, weights checked and put into the decoder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ojak.errors import InputRefused, ResourceExhausted, UsageError
from ojak.model import checkpoint, gguf, hub, lora
from ojak.model.config import config_from_hf, config_to_hf
from ojak.model.decoder import Decoder, DecoderConfig
from ojak.model.files import combined_sha256
from ojak.model.memory import available_bytes, keep_freed_memory
from ojak.model.source import Source
from ojak.model.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER_FILES = (lora.CONFIG_FILE, lora.WEIGHTS_FILE, "chat_template.jinja", "generation_config.json")
Notify = Callable[[str], None]


@dataclass
class Model:
    """A decoder with all that belongs to it.

    `decoder(ids_BT) -> logits_BTV`. `stop_ids` end a turn or a text. `quantization` is the type the weights were stored
    in ("Q4_1"), None for plain floats; they are widened to `dtype` on loading.
    """

    name: str
    config: DecoderConfig
    tokenizer: Tokenizer
    decoder: Decoder
    chat_template: str | None
    stop_ids: tuple[int, ...]
    sha256: str
    quantization: str | None
    license: str | None

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.model.embed_tokens.weight.device

    def save(self, folder: Path | str, *, card: str | None = None) -> Path:
        """Writes a Hugging Face folder that transformers and vLLM load, with `card` as its README.md, if any.

        Raises TargetExists if it is there.
        """
        tied = self.config.tie_word_embeddings
        tensors = (
            (n, t) for n, t in self.decoder.state_dict().items() if not (tied and n == "lm_head.weight")
        )
        stops = {"eos_token_id": list(self.stop_ids), "bos_token_id": self.tokenizer.bos_id}
        return checkpoint.save(
            Path(folder), config_to_hf(self.config), tensors, self.tokenizer, self.chat_template, stops, card=card
        )  # fmt: skip


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, float32 otherwise."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    accept_license: Collection[str] = (),
    notify: Notify | None = None,
) -> Model:
    """Loads a model by name (`ojak models list`), from a GGUF file or from a Hugging Face folder.

    A folder with an adapter of `peft` or `ojak train` (LoRA, DoRA) gives its base model with the adapter merged in
    float32. It is refused where it does not fit, or belongs to another version of its base.
    dtype: bfloat16 where the hardware has it, else float32. device: CUDA if there is one, else the CPU.
    Raises UsageError for an unknown name or that of an embedding model, InputRefused for files that cannot be used,
    ResourceExhausted if the weights do not fit the free memory. Nothing in a model's files is ever executed.
    """
    return from_source(read_source(name_or_path, accept_license=accept_license, notify=notify), dtype, device)


def from_source(
    source: Source, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Model:
    """Builds the model that `read_source` described; dtype, device and errors as in `load_model`."""
    where = asked_device(device)
    if dtype is not None and dtype not in (*DTYPES, *DTYPES.values()):
        raise UsageError(f"dtype {dtype!r} is not known", fix=f"use one of {', '.join(DTYPES)}")
    kind = DTYPES[dtype] if isinstance(dtype, str) else dtype or default_dtype(where)
    model = without_weights(source)
    return replace(model, decoder=_decoder(model.config, source, kind, where))


def without_weights(source: Source) -> Model:
    """The model that `read_source` described, its decoder on the meta device: shapes and no numbers.

    Raises InputRefused for a configuration that is not supported, or a tokenizer that does not fit it.
    """
    config = config_from_hf(source.config)
    _check_vocabulary(source, config.vocab_size)
    with torch.device("meta"):
        decoder = Decoder(config)
    return Model(
        name=source.name,
        config=config,
        tokenizer=source.tokenizer,
        decoder=decoder,
        chat_template=source.chat_template,
        stop_ids=source.stop_ids,
        sha256=source.sha256,
        quantization=source.quantization,
        license=source.license,
    )


def _decoder(config: DecoderConfig, source: Source, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The decoder, with the source's adapters merged before its weights are rounded to `dtype`."""
    decoder = build(config, source, torch.float32 if source.adapters else dtype, device)
    for folder in source.adapters:
        lora.merge_adapter(decoder, folder)
    return decoder.to(dtype)


def asked_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, if it is here; by default CUDA where there is one, else the CPU."""
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(
            f"the device {str(device)[:60]!r} is not known", fix="use cpu, cuda or cuda:N"
        ) from error
    if where.type not in ("cpu", "cuda") or (where.type == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"the device {str(where)!r} is not here", fix="use cpu")
    return where


def read_source(
    name_or_path: str | os.PathLike[str],
    *,
    accept_license: Collection[str] = (),
    notify: Notify | None = None,
    offline: bool | None = None,
) -> Source:
    """A model's files, checked and described, its weights not yet read. Errors as in `load_model`.

    offline: True looks on this machine only, for an adapter's base, too; None does what OJAK_OFFLINE says.
    """
    _refuse_embedder(os.fspath(name_or_path))
    path = hub.find(name_or_path, accept_license=accept_license, notify=notify, offline=offline)
    found: list[tuple[Path, lora.Adapter]] = []
    while lora.is_adapter(path):
        if any(folder == path for folder, _ in found):
            raise InputRefused(
                f"the adapter {path} is made for itself", why="its base model leads back to it"
            )
        found.append((path, lora.read_adapter(path)))
        base = found[-1][1].base
        path = hub.find(base, accept_license=accept_license, notify=notify, offline=offline)
    source = checkpoint.read(path) if path.is_dir() else gguf.read(path)
    if str(name_or_path) in hub.KNOWN:
        source = replace(source, name=str(name_or_path))
    for folder, adapter in reversed(found):
        source = _with_adapter(source, folder, adapter)
    return source


def _with_adapter(source: Source, folder: Path, adapter: lora.Adapter) -> Source:
    """The base model of an adapter, with what the adapter's folder says of templates and ends of a text."""
    if adapter.base_sha256 not in (None, source.sha256):
        raise InputRefused(
            f"the adapter {folder} was made for another version of {adapter.base}",
            why=f"the SHA-256 of its base was {adapter.base_sha256}, that of {source.path} is {source.sha256}",
            fix="put the files that it was trained on back into their place",
        )
    stop_ids = source.stop_ids
    if (folder / "generation_config.json").is_file():
        stop_ids = checkpoint.read_stop_ids(folder, source.config, source.tokenizer)
    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    return replace(
        source,
        name=folder.name,
        path=folder,
        chat_template=checkpoint.read_chat_template(folder) or source.chat_template,
        stop_ids=stop_ids,
        sha256=hashlib.sha256(f"{source.sha256} {combined_sha256(files, folder)}".encode()).hexdigest(),
        adapters=(*source.adapters, folder),
    )


def _check_vocabulary(source: Source, rows: int) -> None:
    """Refuses a tokenizer that gives ids for which the model has no weights; more rows than tokens are normal.

    A special token beyond the rows is harmless where neither the template nor an end of text uses it: text-only Gemma 3
    models come with the image token of their larger siblings. A prompt that spells it out is refused when it is asked.
    """
    tokenizer = source.tokenizer
    needed = {*source.stop_ids, tokenizer.bos_id if tokenizer.adds_bos else None}
    template = source.chat_template or ""
    beyond = tokenizer.beyond(rows)
    for i, text in beyond.items():
        if i in needed or text not in tokenizer.special_tokens or text in template:
            raise InputRefused(
                f"the tokenizer of {source.name} does not fit the model",
                why=f"the model has {rows} tokens; the tokenizer has {len(beyond)} beyond, such as {text[:80]!r} ({i})",
                fix="use the tokenizer that was made for this model, or save the model with its embeddings resized",
            )


def _refuse_embedder(name: str) -> None:
    """Refuses a known model that cannot write, before it is fetched; a file or folder of that name comes first."""
    known = hub.KNOWN.get(name)
    if known is None or not known.embeds or os.path.exists(name):
        return
    writers = ", ".join(model.name for model in hub.known() if not model.embeds)
    raise UsageError(
        f"{name} is an embedding model and cannot generate",
        why="it turns a text into a vector and has no layer that writes one",
        fix=f"use a path, a hub name (org/name), or one of: {writers}",
    )


def build(config: DecoderConfig, source: Source, dtype: torch.dtype, device: torch.device) -> Decoder:
    """A decoder with the source's weights, every one of them checked for its name, shape and finite values."""
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.eval().requires_grad_(False)
    _check_room(decoder, dtype, device)
    keep_freed_memory()
    missing = dict(decoder.named_parameters())
    for name, tensor in source.tensors():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        parameter = missing.pop(name, None)
        if parameter is None or parameter.shape != tensor.shape:
            expected = "no such weight" if parameter is None else f"shape {tuple(parameter.shape)}"
            raise InputRefused(
                f"the weight {name[:200]!r} does not fit the model",
                why=f"its shape is {tuple(tensor.shape)}; the configuration asks for {expected}",
            )
        tensor = tensor.to(device=device, dtype=dtype)
        check_finite(name, tensor)
        _assign(decoder, name, tensor)
    if missing:
        raise InputRefused(f"{len(missing)} weights are missing", why=f"the first is {next(iter(missing))}")
    if config.tie_word_embeddings:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    return decoder


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises InputRefused for a weight with infinities or NaNs."""
    if not bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        raise InputRefused(
            f"the weight {name[:200]!r} holds infinities or NaNs", fix="use another copy of the model"
        )


def _assign(decoder: Decoder, name: str, tensor: torch.Tensor) -> None:
    module_name, _, parameter_name = name.rpartition(".")
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    setattr(decoder.get_submodule(module_name), parameter_name, parameter)


def _check_room(decoder: Decoder, dtype: torch.dtype, device: torch.device) -> None:
    needed = sum(parameter.numel() for parameter in decoder.parameters()) * dtype.itemsize
    free = available_bytes(device)
    if needed > free:
        raise ResourceExhausted(
            "this model does not fit the memory",
            why=f"its weights take {needed / 2**30:.1f} GiB as {dtype}, {free / 2**30:.1f} GiB are free on {device}",
            fix="use a smaller model, or a machine with more memory",
        )
