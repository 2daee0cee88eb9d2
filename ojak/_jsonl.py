"""JSON lines from anywhere, read byte by byte so that damage is seen and named, not skipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import orjson

from ojak._compressed import open_unpacked
from ojak.errors import InputRefused
from ojak.records import AnyRecord, from_row

BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
MAX_LINE_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 2 * 2**30
PIECE_BYTES = 16 * 2**20

Warn: TypeAlias = Callable[[str], None]


class Line(NamedTuple):
    """A row and where it stood: `number` counts lines (or items of an array) from 1, `offset` is in bytes."""

    number: int
    offset: int
    row: dict[str, Any]


def warn_user(message: str) -> None:
    """The default for what a reader has to say: a Python warning."""
    warnings.warn(message, stacklevel=2)


def read_rows(path: Path, warn: Warn = warn_user) -> Iterator[Line]:
    """The objects in a file of JSON lines, or in a file that is one JSON array.

    A file packed with gzip or Zstandard is unpacked on the way, within limits. A byte order mark, CRLF and
    empty lines are fine. A last line that was cut off (no line end, no valid JSON) is left out with a warning
    that gives its offset. Raises InputRefused with the line's number for anything else that is wrong: JSON that
    does not parse, two rows glued together, NUL bytes, text that is not Unicode.
    """
    with open_unpacked(path) as file:
        head = file.read(4)
    if head.startswith(UTF16_BOMS):
        raise InputRefused(f"{path} is UTF-16", why="JSON lines are UTF-8", fix="save it as UTF-8")
    lines = _array if _first_byte(path) == b"[" else _lines
    yield from lines(path, warn)


def read_records(path: Path, warn: Warn = warn_user) -> Iterator[AnyRecord]:
    """The records in a file of JSON lines whose rows have the fields of records (messages; text; ...)."""
    for position, line in enumerate(read_rows(path, warn)):
        try:
            yield from_row(line.row, key=path.name, position=position)
        except ValueError as error:
            raise refused(path, line, str(error)) from error


def refused(path: Path, line: Line, why: str) -> InputRefused:
    """The error for a row that is JSON, but not the row that it should be."""
    return InputRefused(f"{path}, line {line.number}: not a row that can be read", why=why)


def _first_byte(path: Path) -> bytes:
    with open_unpacked(path) as file:
        head = file.read(4096).removeprefix(BOM).lstrip()
    return head[:1]


def _lines(path: Path, warn: Warn) -> Iterator[Line]:
    offset, rows = 0, 0
    with open_unpacked(path) as file:
        for number in range(1, 2**62):
            raw = file.readline(MAX_LINE_BYTES + 1)
            if not raw:
                return
            _check_length(path, number, raw)
            data = raw.removeprefix(BOM) if number == 1 else raw
            if data.strip():
                row = _parse(path, number, offset, data, warn, whole=raw.endswith(b"\n") or not rows)
                if row is None:
                    return
                yield Line(number, offset, row)
                rows += 1
            offset += len(raw)


def _check_length(path: Path, number: int, raw: bytes) -> None:
    if len(raw) > MAX_LINE_BYTES:
        raise InputRefused(
            f"{path}, line {number}: longer than {MAX_LINE_BYTES // 2**20} MiB",
            why="a row of this length is no conversation or document",
            fix="check that the file is JSON lines, with one row on each line",
        )


def _parse(
    path: Path, number: int, offset: int, data: bytes, warn: Warn, *, whole: bool
) -> dict[str, Any] | None:
    """The row on a line; None, after a warning, for a last line that was cut off (not `whole`)."""
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if whole:
            raise _bad_line(path, number, offset, data, error) from error
        warn(f"{path}: the last line (line {number}, byte {offset}) was cut off and is left out: {error}")
        return None
    if not isinstance(row, dict):
        raise InputRefused(f"{path}, line {number}: not an object", why=f"it is of type {type(row).__name__}")
    return row


def _bad_line(path: Path, number: int, offset: int, data: bytes, error: Exception) -> InputRefused:
    why = f"byte {offset}: {error}"
    if b"\0" in data:
        why = f"byte {offset + data.index(0)}: NUL bytes, as a file system leaves them after a crash"
    elif b"}{" in data:
        why += "; two rows may be glued together"
    return InputRefused(
        f"{path}, line {number}: not valid JSON",
        why=why,
        fix="repair or remove that line; nothing after it was read",
    )


def _array(path: Path, warn: Warn) -> Iterator[Line]:
    try:
        rows = orjson.loads(_whole(path))
    except orjson.JSONDecodeError as error:
        raise InputRefused(f"{path} is not a valid JSON array", why=str(error)) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputRefused(
                f"{path}, item {number}: not an object", why=f"it is of type {type(row).__name__}"
            )
        yield Line(number, 0, row)


def _whole(path: Path) -> bytearray:
    """The bytes of a file, without a byte order mark. Raises InputRefused for more than `MAX_ARRAY_BYTES`."""
    data = bytearray()
    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise _too_big(path)
    with open_unpacked(path) as file:
        while piece := file.read(PIECE_BYTES):
            data += piece if data else piece.removeprefix(BOM)
            if len(data) > MAX_ARRAY_BYTES:
                raise _too_big(path)
    return data


def _too_big(path: Path) -> InputRefused:
    return InputRefused(
        f"{path} is one JSON array of more than {MAX_ARRAY_BYTES // 2**30} GiB",
        why="an array has to be read whole",
        fix="save it as JSON lines, with one row on each line",
    )
