"""What flows from stage to stage: documents, conversations, preferences, and rows turned away.

A record's `id` comes from its source and its position there, so it is unique even for equal texts and stays
the same through every stage. `meta`, `tags` and `scores` hold JSON values under text keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypedDict


class Message(TypedDict):
    """One turn: `role` is "system", "user", "assistant" or "tool"; `content` is plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of raw text."""

    id: str
    text: str
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of one conversation. A system turn is there only if a person gave one (no template's default)."""

    id: str
    messages: list[Message]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt (turns) with a better and a worse continuation (turns that follow the prompt)."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that a stage turned away: the reason code, and the raw text as it was generated or read.

    `messages` is what had been made of it by then; it may be empty.
    """

    id: str
    reason: str
    stage: str
    text: str = ""
    messages: list[Message] = field(default_factory=list)
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


Record: TypeAlias = Document | Conversation | Preference
AnyRecord: TypeAlias = Record | Rejected

MESSAGE_FIELDS = ("messages", "prompt", "chosen", "rejected")
JSON_FIELDS = ("meta", "tags", "scores")


def record_id(key: str, position: int) -> str:
    """The id of the record at `position` (from 0) of whatever `key` names: a run, a file, a data set."""
    return f"{hashlib.sha256(key.encode()).hexdigest()[:12]}-{position:07d}"


def dump_json(value: object) -> str:
    """`value` as compact JSON with sorted keys: equal values give equal text. NaN raises ValueError."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def field_names(record_type: type[AnyRecord]) -> tuple[str, ...]:
    """The names of the fields of `record_type`, in the order of the columns on disk."""
    return tuple(item.name for item in fields(record_type))


def to_row(record: AnyRecord) -> dict[str, Any]:
    """The record as a dict of its fields (not a deep copy)."""
    return {name: getattr(record, name) for name in field_names(type(record))}


def row_type(row: Mapping[str, object]) -> type[AnyRecord] | None:
    """The record type whose fields `row` has, or None."""
    if {"reason", "stage", "text", "messages"} <= row.keys():
        return Rejected
    if "messages" in row:
        return Conversation
    if {"prompt", "chosen", "rejected"} <= row.keys():
        return Preference
    return Document if "text" in row else None


def from_row(row: Mapping[str, Any], *, key: str = "", position: int = 0) -> AnyRecord:
    """The record that `row` describes; the inverse of `to_row`, and lenient to rows of other programs.

    A missing id is derived from `key` and `position`. Fields that the type does not have are kept in
    `meta["extra"]`. `meta`, `tags` and `scores` may be JSON text. Raises ValueError, naming the field.
    """
    record_type = row_type(row)
    if record_type is None:
        raise ValueError(f"no messages, text or prompt/chosen/rejected among its fields: {sorted(row)[:12]}")
    known = field_names(record_type)
    values: dict[str, Any] = {"id": record_id(key, position)}
    extra = {name: value for name, value in row.items() if name not in known and value is not None}
    for name in known:
        if row.get(name) is not None:
            values[name] = _field(name, row[name], extra)
    if extra:
        meta = values.get("meta", {})
        values["meta"] = {**meta, "extra": {**meta.get("extra", {}), **extra}}
    missing = [
        item for item in ("text", *MESSAGE_FIELDS) if item in known and item in row and item not in values
    ]
    if missing:
        raise ValueError(f"{missing[0]!r} is null")
    return record_type(**values)


def _field(name: str, value: Any, extra: dict[str, Any]) -> Any:
    if name in MESSAGE_FIELDS:
        return _messages(name, value, extra)
    if name in JSON_FIELDS:
        return _json_object(name, value)
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _not(name, "text", value)
    return value


def _json_object(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value) if value else {}
    if not isinstance(value, dict):
        raise _not(name, "an object", value)
    return value


def _messages(name: str, value: Any, extra: dict[str, Any]) -> list[Message]:
    if not isinstance(value, list):
        raise _not(name, "a list of turns", value)
    turns = [_message(f"{name}[{index}]", turn) for index, turn in enumerate(value)]
    beyond = [
        {key: item for key, item in turn.items() if key not in Message.__annotations__ and item is not None}
        for turn in value
    ]
    if any(beyond):
        extra[name] = beyond
    return turns


def _message(where: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise _not(where, "an object", turn)
    for name in ("role", "content"):
        if not isinstance(turn.get(name), str):
            raise _not(f"{where}.{name}", "text", turn.get(name))
    return Message(role=turn["role"], content=turn["content"])


def _not(name: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{name!r} is not {expected} but of type {type(value).__name__}")
