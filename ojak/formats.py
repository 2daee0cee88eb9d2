"""Data formats of other programs: messages JSONL, ShareGPT, Alpaca and Parquet, out and in.

messages   {"id", "messages": [{"role", "content"}], "source", "meta", ...} on each line; holds everything
sharegpt   {"id", "conversations": [{"from": "human" | "gpt" | "system" | "tool", "value"}]}
           read too: preferences, with "chosen" and "rejected" turns beside "conversations"
alpaca     {"instruction", "input", "output"} and, if any row has one, "system"; one question, one answer
           read too: `history` of earlier [user, model] turns (LIMA), `instances` of (input, output) (self-instruct)
parquet    the table of an artifact, in one file; holds everything. Read too: foreign tables with the columns above

Files of JSON may be packed with gzip or Zstandard.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import orjson

from ojak._files import commit_new, disk_errors, staged, target_exists
from ojak._jsonl import Line, Warn, read_rows, refused, warn_user
from ojak._progress import silent
from ojak._tables import Decode, column_names, is_parquet, read_parquet, write_table
from ojak.artifact import Artifact, read
from ojak.errors import InputRefused, UsageError
from ojak.records import AnyRecord, Conversation, Message, from_row, to_row

Format: TypeAlias = Literal["messages", "sharegpt", "alpaca", "parquet"]
Row: TypeAlias = dict[str, Any]

FORMATS: tuple[str, ...] = get_args(Format)
TO_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
FROM_SHAREGPT = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
ALPACA_JOINT = "\n"  # between the instruction and its input, when the two become one turn


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote: the rows, those left out by reason, and what the format could not hold."""

    rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Skipped(NamedTuple):
    """Why a record has no row in a format."""

    reason: str


def export(path_in: Path | str, fmt: Format, out: Path | str, *, split: str | None = None) -> ExportResult:
    """Write the records of `path_in` (all splits, or one) to the new file `out`; `load` says what is read.

    The file is there whole or not at all. What a format cannot hold is counted: `skipped` has the rows that
    it has no form for, `warnings` the fields that it has no place for. Raises TargetExists, UsageError for an
    unknown format, InputRefused for what cannot be read, ResourceExhausted if the disk is full.
    """
    out = Path(out)
    if fmt not in FORMATS:
        raise UsageError(f"{fmt!r} is no format to export to", fix=f"use one of: {', '.join(FORMATS)}")
    with disk_errors(out):
        if out.exists():
            raise target_exists(out)
    encode = ENCODERS.get(fmt, _to_messages)
    if fmt == "alpaca" and any(map(_has_system, _chosen(Path(path_in), split, silent))):
        # a column that began in the middle of a file could not be read by `datasets`
        encode = _to_alpaca_with_system
    warnings: list[str] = []
    records = _chosen(Path(path_in), split, warnings.append)
    with staged(out) as temporary:
        if fmt == "parquet":
            result = _write_parquet(records, temporary)
        else:
            result = _write_lines(records, temporary, encode)
        commit_new(temporary, out)
    return ExportResult(result.rows, result.skipped, (*warnings, *result.warnings))


def load(path: Path | str, fmt: Format | None = None, *, warn: Warn = warn_user) -> Iterator[AnyRecord]:
    """The records in an artifact's folder, or in a file of a format; without `fmt`, told by content.

    JSON lines and a JSON array are both read. Fields that a record has no place for are kept in
    `meta["extra"]`. Packed files (gzip, Zstandard) are unpacked on the way, within limits. Raises InputRefused,
    naming the line, for a row that is not of the format.
    """
    path = Path(path)
    found = fmt or detect(path)
    if path.is_dir() or not path.is_file():
        return read(path, warn=warn)
    if is_parquet(path):
        kind = _format_of(column_names(path)) if found in ("parquet", "messages") else found
        return read_parquet(path, decode=DECODERS[kind or "messages"])
    return _decoded(path, DECODERS["messages" if found == "parquet" else found], warn)


def detect(path: Path | str) -> Format:
    """The format of a file, from its first bytes and its first row. Raises InputRefused if there is none."""
    path = Path(path)
    if path.is_dir():
        Artifact.open(path)
        return "parquet"
    if not path.is_file():
        raise InputRefused(f"{path} is not there")
    if is_parquet(path):
        return "parquet"
    first = next(read_rows(path, silent), None)
    names = first.row.keys() if first else {"messages"}
    if kind := _format_of(names):
        return kind
    raise InputRefused(
        f"{path} is in no format that can be read",
        why=f"its first row has the fields {sorted(names)[:12]}",
        fix=f"use one of: {', '.join(FORMATS)}",
    )


def _format_of(names: Collection[str]) -> Format | None:
    """The format of rows with these fields, which may be columns of a table."""
    names = set(names)
    if "conversations" in names:
        return "sharegpt"
    if "instruction" in names and names & {"output", "instances"}:
        return "alpaca"
    return "messages" if names & {"messages", "text", "chosen"} else None


def _chosen(path: Path, split: str | None, warn: Warn) -> Iterator[AnyRecord]:
    if split is None:
        return load(path, warn=warn)
    if not path.is_dir():
        raise UsageError(f"{path} has no splits", why="only an artifact's folder has")
    return iter(Artifact.open(path).records(split))


def _write_parquet(records: Iterator[AnyRecord], temporary: Path) -> ExportResult:
    first = next(records, None)
    record_type = Conversation if first is None else type(first)
    return ExportResult(
        write_table(temporary, record_type, itertools.chain([] if first is None else [first], records))
    )


def _write_lines(
    records: Iterator[AnyRecord], temporary: Path, encode: Callable[[AnyRecord], Row | Skipped]
) -> ExportResult:
    rows, skipped, dropped = 0, Counter[str](), Counter[str]()
    with temporary.open("xb") as file:
        for record in records:
            row = encode(record)
            if isinstance(row, Skipped):
                skipped[row.reason] += 1
                continue
            file.write(_line(record, row))
            dropped.update(_left_out(record, row))
            rows += 1
    warnings = [
        f"{name} of {number} rows left out: the format has no place for it"
        for name, number in dropped.items()
    ]
    return ExportResult(rows, dict(skipped), tuple(warnings))


def _line(record: AnyRecord, row: Row) -> bytes:
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise InputRefused(f"record {record.id!r} cannot be written as JSON", why=str(error)) from error


def _left_out(record: AnyRecord, row: Row) -> Iterator[str]:
    for name in ("id", "source", "meta", "tags", "scores"):
        if getattr(record, name, None) and name not in row:
            yield name


def _to_messages(record: AnyRecord) -> Row | Skipped:
    """Every field, empty ones too: `datasets` takes the columns of a file from its first 10 MB."""
    return to_row(record)


def _to_sharegpt(record: AnyRecord) -> Row | Skipped:
    if not isinstance(record, Conversation):
        return Skipped("not_a_conversation")
    if any(turn["role"] not in TO_SHAREGPT for turn in record.messages):
        return Skipped("role_unknown_to_the_format")
    turns = [{"from": TO_SHAREGPT[turn["role"]], "value": turn["content"]} for turn in record.messages]
    return {"id": record.id, "conversations": turns}


def _to_alpaca(record: AnyRecord) -> Row | Skipped:
    if not isinstance(record, Conversation):
        return Skipped("not_a_conversation")
    roles = [turn["role"] for turn in record.messages]
    system = record.messages[0]["content"] if roles[:1] == ["system"] else None
    turns = record.messages[0 if system is None else 1 :]
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        many = roles.count("user") > 1 or roles.count("assistant") > 1
        return Skipped("more_than_one_turn" if many else "not_one_question_and_one_answer")
    if system == "":  # on the way back an empty field means that there is no system turn
        return Skipped("empty_system_turn")
    question, given = turns[0]["content"], _input_of(record, turns[0])
    if given:
        question = question.removesuffix(ALPACA_JOINT + given)
    row = {"instruction": question, "input": given, "output": turns[1]["content"]}
    return row if system is None else {**row, "system": system}


def _input_of(record: Conversation, question: Message) -> str:
    """The input that stands at the end of a question, as an Alpaca row had it; "" for none."""
    given = record.meta.get("alpaca_input")
    return (
        given
        if isinstance(given, str) and given and question["content"].endswith(ALPACA_JOINT + given)
        else ""
    )


def template_turns(record: Conversation) -> list[dict[str, str]]:
    """The turns as a chat template gets them: the last question of an Alpaca row also has its input under `input`.

    `content` is whole, so that templates that know of no input lose nothing; it ends with a line end and the input.
    """
    turns: list[dict[str, str]] = [
        {"role": turn["role"], "content": turn["content"]} for turn in record.messages
    ]
    asked = [index for index, turn in enumerate(record.messages) if turn["role"] == "user"]
    if asked and (given := _input_of(record, record.messages[asked[-1]])):
        turns[asked[-1]]["input"] = given
    return turns


def _to_alpaca_with_system(record: AnyRecord) -> Row | Skipped:
    row = _to_alpaca(record)
    return row if isinstance(row, Skipped) else {"system": "", **row}


def _has_system(record: AnyRecord) -> bool:
    return (
        isinstance(record, Conversation)
        and record.messages[:1] != []
        and record.messages[0]["role"] == "system"
    )


def _from_sharegpt(row: Row, key: str, position: int) -> list[AnyRecord]:
    turns = {name: row[name] for name in ("conversations", "chosen", "rejected") if name in row}
    named = {"conversations": "messages"}
    if len(turns) == 3:
        named = {"conversations": "prompt", "chosen": "chosen", "rejected": "rejected"}
    rest = {name: value for name, value in row.items() if name not in named}
    renamed = {new: _turns(old, turns[old]) for old, new in named.items()}
    return [from_row({**rest, **renamed}, key=key, position=position)]


def _turns(name: str, turns: Any) -> list[Row]:
    """Turns with our names; an answer may stand alone, without a list around it."""
    turns = [turns] if isinstance(turns, dict) else turns
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{name!r} is not a list of turns")
    return [_turn(turn) for turn in turns]


def _turn(turn: Mapping[str, Any]) -> Row:
    """A turn with our names; some data sets call them `role` and `content` in the first place."""
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    role = turn.get("from", turn.get("role"))
    known = FROM_SHAREGPT.get(role, role) if isinstance(role, str) else role
    return {**rest, "role": known, "content": turn.get("value", turn.get("content"))}


def _from_alpaca(row: Row, key: str, position: int) -> list[AnyRecord]:
    if "output" in row or "instances" not in row:
        return [_alpaca(row, key, position)]
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(each, dict) for each in instances):
        raise ValueError("'instances' is not a list of objects")
    rest = {name: value for name, value in row.items() if name != "instances"}
    records: list[AnyRecord] = []
    for number, instance in enumerate(instances):
        record = _alpaca({**rest, **instance}, key, position)
        # The first has the row's id; ids of the others follow from it, so that all differ.
        records.append(replace(record, id=f"{record.id}-{number}") if number else record)
    return records


def _alpaca(row: Row, key: str, position: int) -> Conversation:
    texts = {name: row.get(name) or "" for name in ("instruction", "input", "output", "system")}
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if wrong or not {"instruction", "output"} <= row.keys():
        raise ValueError(f"{(wrong or ['instruction and output'])[0]} must be text")
    question, given = texts["instruction"], texts["input"]
    messages = [Message(role="system", content=texts["system"])] if texts["system"] else []
    messages += _history(row.get("history") or [])
    messages.append(Message(role="user", content=question + ALPACA_JOINT + given if given else question))
    messages.append(Message(role="assistant", content=texts["output"]))
    rest = {name: value for name, value in row.items() if name not in (*texts, "history")}
    record = cast("Conversation", from_row({**rest, "messages": messages}, key=key, position=position))
    if given:
        record.meta["alpaca_input"] = given
    return record


def _history(rounds: Any) -> list[Message]:
    """The turns before the last question, from [[what the user said, what the model said], ...]."""
    pairs: list[Any] = rounds if isinstance(rounds, list) else [None]
    if not all(isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in pairs):
        raise ValueError("'history' is not a list of pairs of texts")
    return [
        Message(role=role, content=text)
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _from_messages(row: Row, key: str, position: int) -> list[AnyRecord]:
    return [from_row(row, key=key, position=position)]


def _decoded(path: Path, decode: Decode, warn: Warn) -> Iterator[AnyRecord]:
    for position, line in enumerate(read_rows(path, warn)):
        yield from _decode(path, line, decode, position)


def _decode(path: Path, line: Line, decode: Decode, position: int) -> Iterable[AnyRecord]:
    try:
        return decode(line.row, path.name, position)
    except (ValueError, KeyError) as error:
        raise refused(path, line, str(error)) from error


ENCODERS: dict[str, Callable[[AnyRecord], Row | Skipped]] = {
    "messages": _to_messages,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}
DECODERS: dict[str, Decode] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
}
