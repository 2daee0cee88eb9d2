"""Parquet and WARC files, read in a process of its own: a few bytes of either can stand for more memory than there is.

That process writes, for each record, a line of JSON and the record's bytes; a last line says that the file is at its
end. Of a WARC file the documents are the responses and conversions; requests and notes of the crawler are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from ojak import _child as child

if TYPE_CHECKING:
    from types import TracebackType

MOST_BYTES = 64 * 2**20  # of a document: a file, a line, a record
PIECE_BYTES = 2**20
BATCH_ROWS = 32
MOST_COLUMNS = 32
MOST_EXTRA_BYTES = 16 * 2**10
CPU_S = 60.0  # for one record
MEMORY_BYTES = 3 * 2**30
HTML_TYPES = ("text/html", "application/xhtml+xml")
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """The bytes of a record and what they are ("row", "html", "text"), or the reason why there are none."""

    data: bytes = b""
    kind: str = ""
    reason: str = ""
    detail: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class RecordsChild:
    """The process that reads one file, from record number `skip` on."""

    def __init__(self, path: Path, kind: str, text_field: str, skip: int) -> None:
        settings = {"path": str(path.resolve()), "format": kind, "text_field": text_field, "skip": skip}
        self._child = child.Child(__name__, settings, cpu_s=CPU_S, memory_bytes=MEMORY_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

    def records(self) -> Iterator[Record]:
        """The records in order. Raises child.Ended where the process dies."""
        while "end" not in (found := self._child.line()):
            data = self._child.exactly(found.pop("bytes"))
            yield Record(data, **found)


def plain_extra(row: Row, text_field: str) -> dict[str, Any]:
    """What a row says beside its text: numbers, short texts, truth values; nothing if that is too much."""
    kept = {
        name: value
        for name, value in row.items()
        if name != text_field and value == value and isinstance(value, str | int | float | bool)
    }
    try:
        return kept if len(orjson.dumps(kept)) <= MOST_EXTRA_BYTES else {}
    except (TypeError, ValueError):  # an integer of more than 64 bits
        return {}


# -- within the process -----------------------------------------------------------------------------------------------


def serve(settings: Row) -> None:
    """The process: records out until the file ends, or they break a limit."""
    _, sink = child.streams()
    read = _parquet if settings["format"] == "parquet" else _warc
    found = read(settings["path"], settings["text_field"])
    child.limit_memory(settings["memory_bytes"])
    child.put(sink, {"ready": True})
    try:
        for record in islice(_guarded(found, settings["cpu_s"]), settings["skip"], None):
            header = {
                "kind": record.kind,
                "reason": record.reason,
                "detail": record.detail,
                "extra": record.extra,
            }
            child.put(sink, {**header, "bytes": len(record.data)}, record.data)
    except MemoryError:
        raise SystemExit(child.OUT_OF_MEMORY) from None
    child.put(sink, {"end": True})


def _guarded(found: Iterator[Record], cpu_s: float) -> Iterator[Record]:
    """The records, each within its time; an error of a library becomes the last one."""
    while True:
        child.limit_time(cpu_s)
        try:
            record = next(found, None)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a reader makes of a damaged file is that file's fault
            yield Record(reason="damaged", detail=child.told(error))
            return
        if record is None:
            return
        yield record


def _parquet(path: str, text_field: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=PIECE_BYTES, pre_buffer=False) as file:
        schema = file.schema_arrow
        if text_field not in schema.names or not _is_text(schema.field(text_field).type):
            yield Record(reason="no_text", detail=f"no column {text_field!r} of text")
            return
        plain = [each.name for each in schema if _is_text(each.type) or pa.types.is_primitive(each.type)]
        columns = [text_field, *(name for name in plain if name != text_field)][:MOST_COLUMNS]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
            texts = batch.column(batch.schema.names.index(text_field))
            for index, text in enumerate(texts):
                row = {name: batch.column(at)[index] for at, name in enumerate(batch.schema.names)}
                yield _parquet_row(text, row, text_field)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _parquet_row(text: Any, row: Row, text_field: str) -> Record:
    """text, row: values of Arrow, not yet Python's: a text of a gigabyte is measured before it is copied."""
    if not text.is_valid:
        return Record(reason="no_text", detail=f"null under {text_field!r}")
    if text.as_buffer().size > MOST_BYTES:
        return Record(reason="too_large", detail=f"a text of more than {MOST_BYTES >> 20} MiB")
    small = {
        name: value.as_py()
        for name, value in row.items()
        if name != text_field and not (_is_text(value.type) and _size(value) > MOST_EXTRA_BYTES)
    }
    return Record(text.as_buffer().to_pybytes(), "row", extra=plain_extra(small, text_field))


def _size(value: Any) -> int:
    return value.as_buffer().size if value.is_valid else 0


def _warc(path: str, _text_field: str) -> Iterator[Record]:
    from warcio.archiveiterator import ArchiveIterator

    with Path(path).open("rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type in ("response", "conversion"):
                yield _page(record)


def _page(record: Any) -> Record:
    """A page of a crawl (datatrove's `process_record` in short: responses of HTML, conversions to text)."""
    headers = record.rec_headers
    extra = {"url": headers.get_header("WARC-Target-URI"), "date": headers.get_header("WARC-Date")}
    extra = plain_extra({name: value for name, value in extra.items() if value is not None}, "")
    kind = _media_type(record)
    wanted = kind in HTML_TYPES or (record.rec_type == "conversion" and kind == "text/plain")
    if not wanted:
        return Record(reason="not_a_page", detail=kind[:100], extra=extra)
    data = bytearray()
    for piece in _pieces(record.content_stream()):
        data += piece
        if len(data) > MOST_BYTES:
            return Record(
                reason="too_large", detail=f"a page of more than {MOST_BYTES >> 20} MiB", extra=extra
            )
    return Record(bytes(data), "html" if kind in HTML_TYPES else "text", extra=extra)


def _pieces(stream: Any) -> Iterable[bytes]:
    return iter(lambda: stream.read(PIECE_BYTES), b"")


def _media_type(record: Any) -> str:
    """What the crawler recognised, or else what the server said."""
    found = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    if not found and record.http_headers is not None:
        found = record.http_headers.get_header("Content-Type")
    if not found and record.rec_type == "conversion":
        found = record.rec_headers.get_header("Content-Type")
    return (found or "").partition(";")[0].strip().lower()
