"""A Hugging Face folder as a `Source`, and back: `config.json`, `*.safetensors`, `tokenizer.json` and their company.

Nothing in a folder is executed: pickled weights are refused, `auto_map` and its like are dropped from every config.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak.errors import DISK_FULL, InputRefused, ResourceExhausted, TargetExists, UsageError, is_disk_full
from ojak.model.files import combined_sha256
from ojak.model.source import Source
from ojak.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_JSON_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
EXECUTABLE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code", "_attn_implementation_internal")
HASHED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors.index.json",
)  # fmt: skip
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors", re.ASCII)
TEXT_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head": "lm_head",
}
OTHER_MODALITIES = ("vision_tower", "multi_modal_projector", "embed_vision", "audio_tower")


def read(folder: Path | str) -> Source:
    """Read a model folder: its JSON files and the headers of its weights now, the weights when `tensors()` is called.

    Raises InputRefused for a folder without config.json, tokenizer.json or safetensors, and for unsound contents.
    """
    folder = Path(folder)
    config = read_config(folder)
    files = weight_files(folder)
    for file in files:
        check_safetensors(file)
    tokenizer = Tokenizer.from_folder(folder, config)
    return Source(
        name=_name(folder),
        path=folder,
        config=config,
        tensors=lambda: _tensors(files, config),
        tokenizer=tokenizer,
        chat_template=read_chat_template(folder),
        stop_ids=read_stop_ids(folder, config, tokenizer),
        sha256=folder_sha256(folder, files),
        quantization=None,
        license=read_license(folder),
    )


def folder_sha256(folder: Path, files: list[Path]) -> str:
    """One hash over what is read of a folder: its texts, and the weights in `files`."""
    hashed = [folder / name for name in HASHED if (folder / name).is_file()]
    return combined_sha256([*hashed, *files], folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder, without the keys that name code. Raises InputRefused."""
    if not (folder / "config.json").is_file():
        raise InputRefused(
            f"{folder} is not a model folder", why="it has no config.json",
            fix="give a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors",
        )  # fmt: skip
    config = _without_code(read_object(folder / "config.json"))
    if config.get("quantization_config"):
        raise InputRefused(
            f"{folder} holds quantised weights", why="its config.json has a quantization_config",
            fix="use the unquantised model, or a GGUF file of it",
        )  # fmt: skip
    return config


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in EXECUTABLE_KEYS}
    return [_without_code(item) for item in value] if isinstance(value, list) else value


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where the file is missing. Raises InputRefused."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES >> 20} MiB")
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} cannot be read", why=str(error)[:200]) from error
    if not isinstance(content, dict):
        raise InputRefused(f"{path} cannot be read", why="it is not a JSON object")
    return content


# Weights


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder. Raises InputRefused for none, and for pickles."""
    index = read_object(folder / "model.safetensors.index.json")
    if index:
        return _indexed_files(folder, index)
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
    if len(files) == 1:
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if files or not pickles:
        raise InputRefused(
            f"{folder} has {len(files)} .safetensors files", why="one is needed, or an index that lists several",
            fix="fetch the folder again, or save it with transformers (save_pretrained)",
        )  # fmt: skip
    raise InputRefused(
        f"{folder} has its weights only as {pickles[0]}", why="a pickle runs code when it is opened",
        fix="use a safetensors version of the model; most hub repositories have one in their history or pull requests",
    )  # fmt: skip


def _indexed_files(folder: Path, index: dict[str, Any]) -> list[Path]:
    """The shards that an index names: plain file names in this folder, each there."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputRefused(f"the index of {folder} lists no files")
    names = {str(name) for name in weight_map.values()}
    for name in names:
        if not FILE_NAME.fullmatch(name) or ".." in name or not (folder / name).is_file():
            raise InputRefused(f"{folder} lacks a file its index names", why=f"file name {name[:100]!r}")
    return [folder / name for name in sorted(names)]


def check_safetensors(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> {dtype, shape, data_offsets}, sizes and places checked.

    Raises InputRefused for a header over 16 MiB, over 100,000 tensors, other dtypes than floats, or wrong places.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header)} tensors")
        for name, entry in header.items():
            _check_entry(name, entry, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise InputRefused(f"{path} is not a sound safetensors file", why=str(error)[:200]) from error
    return header


def _check_entry(name: str, entry: dict[str, Any], data_bytes: int) -> None:
    start, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(
            f"tensor {name[:80]!r} has dtype {str(dtype)[:20]}; {', '.join(DTYPE_BYTES)} are read"
        )
    whole = all(isinstance(n, int) and n >= 0 for n in (*shape, start, end))
    if not whole or not start <= end <= data_bytes or math.prod(shape) * DTYPE_BYTES[dtype] != end - start:
        raise ValueError(f"tensor {name[:80]!r} does not lie where the header says")


def _tensors(files: list[Path], config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors under the names of the text model; a tied head and other modalities are left out."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    inner = text_name(name, config)
                    if inner:
                        yield inner, file.get_tensor(name)
        except SafetensorError as error:
            raise InputRefused(f"{path} is not a sound safetensors file", why=str(error)[:200]) from error


def text_name(name: str, config: Mapping[str, Any]) -> str | None:
    """The name within the text model (a model that also sees keeps it under a prefix), None for other parts and for a
    tied head."""
    if any(part in name for part in OTHER_MODALITIES) or name.endswith("rotary_emb.inv_freq"):
        return None
    prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), "")
    inner = TEXT_PREFIXES.get(prefix, "") + name.removeprefix(prefix)
    tied = config.get("tie_word_embeddings", str(config.get("model_type", "")).startswith("gemma"))
    return None if tied and inner == "lm_head.weight" else inner


# What lies beside the weights


def _name(folder: Path) -> str:
    """The folder's name; of a snapshot in the hub's cache, the repository's."""
    parts = folder.absolute().parts
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return folder.absolute().name


def read_chat_template(folder: Path) -> str | None:
    """The template file if there is one, else the (default) template in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise InputRefused(f"{path} is larger than {MAX_TEMPLATE_BYTES >> 10} KiB")
        return path.read_text("utf-8", errors="replace")
    template = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def read_stop_ids(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The end ids of generation_config.json, config.json and the tokenizer, each once. Raises InputRefused."""
    found: list[Any] = []
    text_config = config.get("text_config")
    sources = (read_object(folder / "generation_config.json"), config, text_config)
    for source in sources:
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        found += value if isinstance(value, list) else [value]
    found.append(tokenizer.eos_id)
    ids = tuple(dict.fromkeys(i for i in found if i is not None))
    for i in ids:
        known = isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 32
        if not known or tokenizer.backend.id_to_token(i) is None:
            raise InputRefused(
                f"{folder} names an end token that its tokenizer does not have",
                why=f"eos_token_id is {str(i)[:80]}, and no token has this id: texts would not end",
                fix="correct it in config.json and generation_config.json, or use the tokenizer made for this model",
            )
    return ids


def read_license(folder: Path) -> str | None:
    """The `license:` line in the front matter of the model card."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        card = file.read(1 << 16).decode("utf-8", errors="replace")
    front = card.split("---", 2)[1] if card.startswith("---") and card.count("---") > 1 else ""
    match = re.search(r"^license:\s*([\w.-]+)\s*$", front, re.MULTILINE)
    return match[1] if match else None


# Saving


def save(
    folder: Path | str, config: Mapping[str, Any], tensors: Iterable[tuple[str, torch.Tensor]],
    tokenizer: Tokenizer | None = None, chat_template: str | None = None,
    generation_config: Mapping[str, Any] | None = None, max_shard_bytes: int = 5 << 30, card: str | None = None,
) -> Path:  # fmt: skip
    """Write a folder that `transformers`, vLLM and `read` load. It appears whole or not at all.

    tensors: (Hugging Face name, tensor), written in shards of up to max_shard_bytes; one shard is in memory at a time.
    With `tie_word_embeddings`, an `lm_head.weight` is not stored. card: the README.md. Raises TargetExists,
    ResourceExhausted (disk full), UsageError (a name twice).
    """
    with new_folder(folder) as staging:
        kept = (
            (n, t) for n, t in tensors if not (config.get("tie_word_embeddings") and n == "lm_head.weight")
        )
        _save_weights(staging, kept, max_shard_bytes)
        write_json(staging / "config.json", config)
        save_text_side(staging, config, tokenizer, chat_template, generation_config)
        if card is not None:
            write_text(staging / "README.md", card)
    return Path(folder).absolute()


def check_free(folder: Path | str) -> Path:
    """The absolute path of a folder to be made. Raises TargetExists if there is something under that name."""
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TargetExists(f"{folder} is there already", fix="give another folder, or remove it first")
    return folder


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A place beside `folder` to write to, which gets its name at the end, or is removed if anything fails.

    Raises TargetExists if there is something under that name, ResourceExhausted if the disk is full.
    """
    folder = check_free(folder)
    staging = folder.with_name(f".{folder.name}.staging-{uuid.uuid4().hex}")
    try:
        staging.mkdir(parents=True)
        yield staging
        _sync(staging)
        staging.rename(folder)
        _sync(folder.parent)
    except Exception as error:
        if _says_disk_full(error):
            raise ResourceExhausted(
                f"no space left while writing {folder}",
                why=str(error)[:200],
                fix="free some space and try again",
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # renamed away if all went well


def _says_disk_full(error: Exception) -> bool:
    """Whether an OSError, or the text that safetensors makes of one, tells of a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return is_disk_full(error)
    match = re.search(r"os error (\d+)|code: (\d+)", str(error))
    return bool(match) and int(match[1] or match[2]) in DISK_FULL


def _save_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> None:
    """Fill shards one after the other; their final names carry their number, which is known at the end only."""
    shards: list[dict[str, int]] = []  # of each shard: name -> bytes
    waiting: dict[str, torch.Tensor] = {}
    waiting_bytes = 0
    seen: set[str] = set()
    for name, tensor in tensors:
        if name in seen:
            raise UsageError(f"the tensor {name} is given twice")
        seen.add(name)
        if waiting and waiting_bytes + _bytes(tensor) > max_bytes:
            shards.append(_save_shard(folder, len(shards), waiting))
            waiting, waiting_bytes = {}, 0
        waiting[name] = tensor
        waiting_bytes += _bytes(tensor)
    shards.append(_save_shard(folder, len(shards), waiting))
    _name_shards(folder, shards)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _save_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    from ojak.model.tensor_files import form_of, in_order, write_tensors

    forms = {name: form_of(tensor) for name, tensor in tensors.items()}
    write_tensors(folder / f"shard-{number}", forms, (tensors[name] for name in in_order(forms)))
    return {name: _bytes(tensor) for name, tensor in tensors.items()}


def _name_shards(folder: Path, shards: list[dict[str, int]]) -> None:
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(sum(names.values()) for names in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def save_text_side(
    folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer | None, chat_template: str | None,
    generation_config: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    """Tokenizer, template and ends of a text, as `transformers` reads them."""
    if generation_config is not None:
        write_json(folder / "generation_config.json", generation_config)
    if tokenizer is None:
        return
    write_text(folder / "tokenizer.json", tokenizer.to_json())
    pad = config.get("pad_token_id")
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.backend.id_to_token(pad) if isinstance(pad, int) and pad >= 0 else None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.get("max_position_embeddings"),
    }
    write_json(
        folder / "tokenizer_config.json", {key: value for key, value in values.items() if value is not None}
    )
    if chat_template is not None:
        write_text(folder / "chat_template.jinja", chat_template)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file, on the disk when this returns."""
    write_text(path, json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, on the disk when this returns."""
    path.write_text(text, "utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Have a file or folder on the disk before its name is taken for granted."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
