"""From files to raw documents: bytes and what they are, one for each file, or for each record of a file of records.

Nothing is parsed here but lines of JSON, which are bounded; Parquet and WARC files are read in a process of their own
(`records.py`). What cannot be read becomes a document with a reason, so that every one is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import orjson

from ojak._child import Ended
from ojak._compressed import open_unpacked
from ojak.corpus.inputs import OF_ROWS, InputFile
from ojak.corpus.records import MOST_BYTES, RecordsChild, plain_extra
from ojak.errors import InputRefused

SKIP_BYTES = 2**20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Raw:
    """A document before it is one. number: of the record in its file, None for a file that is one document.

    reason: why it is turned away already, with `detail`; then there are no `data`. extra: what else a row says. last:
    nothing of its file is read after it.
    """

    file: InputFile
    data: bytes = b""
    number: int | None = None
    kind: str = ""
    reason: str = ""
    detail: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    last: bool = False


def documents(file: InputFile, text_field: str, skip: int = 0) -> Iterator[Raw]:
    """The raw documents of a file, from record number `skip` on."""
    if file.reason:
        yield Raw(file, reason=file.reason, last=True)
    elif file.format not in OF_ROWS:
        yield _whole(file)
    else:
        found = _rows(file, text_field, skip) if file.format == "jsonl" else _records(file, text_field, skip)
        count = skip
        for raw in found:
            yield raw
            count += 1
        if not count:
            yield Raw(file, number=0, reason="empty", last=True)


def _whole(file: InputFile) -> Raw:
    """A file that is one document."""
    try:
        with open_unpacked(file.path) as stream:
            data = stream.read(MOST_BYTES + 1)
    except InputRefused as error:
        return Raw(file, reason="unpacking", detail=error.why, last=True)
    except OSError as error:
        return Raw(file, reason="unreadable", detail=str(error.strerror), last=True)
    if len(data) > MOST_BYTES:
        return Raw(file, reason="too_large", detail=f"more than {MOST_BYTES >> 20} MiB", last=True)
    return Raw(file, data, kind=file.format, last=True)


def _rows(file: InputFile, text_field: str, skip: int) -> Iterator[Raw]:
    """The lines of a file of JSON, blank ones left out."""
    number = 0
    try:
        with open_unpacked(file.path) as stream:
            for line in _lines(stream):
                if number >= skip:
                    yield _row(file, number, line, text_field)
                number += 1
    except InputRefused as error:
        yield Raw(file, number=number, reason="unpacking", detail=error.why, last=True)
    except OSError as error:
        yield Raw(file, number=number, reason="unreadable", detail=str(error.strerror), last=True)


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Lines; None for one that is too long, the rest of which is read over."""
    first = True
    while line := stream.readline(MOST_BYTES + 1):
        if len(line) > MOST_BYTES and not line.endswith(b"\n"):
            yield None
            while line and not line.endswith(b"\n"):
                line = stream.readline(SKIP_BYTES)
        elif (line.removeprefix(BOM) if first else line).strip():
            yield line.removeprefix(BOM) if first else line
        first = False


def _row(file: InputFile, number: int, line: bytes | None, text_field: str) -> Raw:
    if line is None:
        return Raw(
            file, number=number, reason="too_large", detail=f"a line of more than {MOST_BYTES >> 20} MiB"
        )
    try:
        row = orjson.loads(line)
    except ValueError as error:
        return Raw(file, number=number, reason="bad_row", detail=str(error))
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return Raw(file, number=number, reason="no_text", detail=f"no text under {text_field!r}")
    return Raw(file, text.encode("utf-8", "replace"), number, "row", extra=plain_extra(row, text_field))


def _records(file: InputFile, text_field: str, skip: int) -> Iterator[Raw]:
    """The records of a Parquet or WARC file, as the other process hands them over."""
    number = skip
    try:
        with RecordsChild(file.path, file.format, text_field, skip) as child:
            for record in child.records():
                yield Raw(file, record.data, number, record.kind, record.reason, record.detail, record.extra)
                number += 1
    except Ended as error:
        yield Raw(file, number=number, reason=f"read_{error.reason}", detail=error.detail, last=True)
