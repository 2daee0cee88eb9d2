"""What `ojak models` shows: facts of the hub table, of the files, and of the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ojak.errors import OjakError

CONFIG = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "tie_word_embeddings",
)


def known_models() -> list[dict[str, Any]]:
    """`hub.info` of every known model."""
    from ojak.model import hub

    return [hub.info(model.name) for model in hub.known()]


def describe_model(name: str) -> dict[str, Any]:
    """All that can be said of a model without fetching it; JSON types only.

    "chat" has pre_query, post_query and stop_ids if the model has a usable template; "magpie" says whether
    Magpie can use it, and why not. Raises UsageError for a name that is neither known nor a path,
    InputRefused for broken files.
    """
    from ojak.model import hub

    path = Path(name).expanduser()
    if "\0" not in name and path.exists():
        return {"name": name, "path": str(path.absolute()), **_from_files(path)}
    known = hub.info(name)
    if known["path"] is None:
        return {**known, **_unseen(f"it is not on this machine yet: `ojak models pull {name}`")}
    if not known["license_accepted"]:
        fix = f"--accept-license {known['license']}"
        return {**known, **_unseen(f"its licence is not accepted yet: `ojak models pull {name} {fix}`")}
    return {**known, **_from_files(Path(known["path"]))}


def _unseen(why: str) -> dict[str, Any]:
    return {"config": None, "chat": None, "magpie": {"usable": None, "why": why}}


def _from_files(path: Path) -> dict[str, Any]:
    """What the files say, the weights unread. A model that is no language model is described as far as it goes."""
    try:
        source = _read(path)
    except OjakError as error:
        return {"config": None, "chat": None, "magpie": {"usable": False, "why": _sentence(error)}}
    found: dict[str, Any] = {
        "config": {field: source.config[field] for field in CONFIG if field in source.config},
        "quantization": source.quantization,
        "weights_sha256": source.sha256,
        "stop_ids": list(source.stop_ids),
    }
    return {**found, **_chat(source)}


def _read(path: Path) -> Any:
    from ojak.model.load import read_source

    return read_source(path, offline=True)


def _chat(source: Any) -> dict[str, Any]:
    from ojak import chat

    try:
        described = chat.describe(source.chat_template, source.tokenizer, eos_ids=source.stop_ids)
    except OjakError as error:
        return {"chat": None, "magpie": {"usable": False, "why": _sentence(error)}}
    return {"chat": described, "magpie": {"usable": True, "why": None}}


def _sentence(error: OjakError) -> str:
    return "; ".join(part for part in (error.what, error.why, error.fix) if part)


def info_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The description as names and texts; texts of a template in quotes, so that line ends and spaces are seen."""
    for name, value in found.items():
        if name in ("config", "chat") and isinstance(value, dict):
            yield from ((f"{name}.{inner}", _shown(item)) for inner, item in value.items())
        elif name == "magpie":
            usable = {True: "can use it", False: "cannot use it", None: "unknown"}[value["usable"]]
            yield name, f"{usable}: {value['why']}" if value["why"] else usable
        elif value is not None:
            yield name, value if isinstance(value, str) else _shown(value)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
