"""Records in Parquet files: one fixed schema for each record type, whatever the rows hold."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ojak.errors import InputRefused, OjakError, VerificationFailed
from ojak.records import JSON_FIELDS, MESSAGE_FIELDS, AnyRecord, dump_json, field_names, from_row, to_row

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 8_192
CHARACTERS_PER_GROUP = 16 * 2**20  # long documents make smaller groups, so that a reader's memory is bounded
CHARACTERS_PER_SHARD = 512 * 2**20
READ_BATCH_ROWS = 1_024
Decode: TypeAlias = Callable[[dict[str, Any], str, int], Iterable[AnyRecord]]
MAGIC = b"PAR1"


def schema_of(record_type: type[AnyRecord]) -> pa.Schema:
    """The Arrow schema of a record type: turns are list<struct<role, content>>, everything else is text."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            (name, pa.list_(pa.field("item", message)) if name in MESSAGE_FIELDS else pa.string())
            for name in field_names(record_type)
        ]
    )


class TableWriter:
    """Writes records of one type into the new Parquet file `path`; `close` makes it whole and durable.

    The records are grouped by number and length alone, so that equal records make equal files. Raises
    InputRefused for a record of another type, or with text that is not Unicode.
    """

    def __init__(self, path: Path, record_type: type[AnyRecord]) -> None:
        import pyarrow.parquet as pq

        self._type = record_type
        self._group: list[dict[str, Any]] = []
        self._group_characters = 0
        self.rows = self.characters = 0
        self._file = path.open("xb")
        try:
            self._parquet = pq.ParquetWriter(self._file, schema_of(record_type), compression="zstd")
        except BaseException:
            self._file.close()
            raise

    def add(self, record: AnyRecord) -> None:
        """Add a record; now and then this writes what came in since the last time."""
        if type(record) is not self._type:
            raise InputRefused(
                f"a {type(record).__name__} among records of type {self._type.__name__}",
                why="all records of an artifact are of one type",
            )
        row = encode(record)
        self._group.append(row)
        self._group_characters += _characters(row)
        if len(self._group) >= ROWS_PER_GROUP or self._group_characters >= CHARACTERS_PER_GROUP:
            self._end_group()

    def close(self) -> None:
        """Write the rest and the footer, and sync the file."""
        if self._group:
            self._end_group()
        self._parquet.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Give the file back to the system after an error; it is not a Parquet file then."""
        # A footer that finds no room, or nothing to write: the first error is what counts.
        with suppress(Exception):
            self._parquet.close()
        with suppress(OSError):
            self._file.close()

    def _end_group(self) -> None:
        self._parquet.write_table(_table(self._group, self._type))
        self.rows += len(self._group)
        self.characters += self._group_characters
        self._group, self._group_characters = [], 0


def write_table(
    path: Path, record_type: type[AnyRecord], records: Iterable[AnyRecord], *, limit: int = 0
) -> int:
    """Write records into one new file, until `limit` characters (0: all) are written; the number of rows."""
    writer = TableWriter(path, record_type)
    try:
        for record in records:
            writer.add(record)
            if limit and writer.characters >= limit:
                break
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return writer.rows


def write_shards(
    folder: Path, stem: str, record_type: type[AnyRecord], records: Iterable[AnyRecord]
) -> list[tuple[Path, int]]:
    """Write `<stem>-00000-of-0000N.parquet` files into `folder`, at least one; their paths and rows."""
    rest = iter(records)
    shards: list[tuple[Path, int]] = []
    while True:
        first = list(itertools.islice(rest, 1))
        if shards and not first:
            break
        path = folder / f".{stem}-{len(shards):05d}.partial"
        rows = write_table(path, record_type, itertools.chain(first, rest), limit=CHARACTERS_PER_SHARD)
        shards.append((path, rows))
    named = [folder / f"{stem}-{index:05d}-of-{len(shards):05d}.parquet" for index in range(len(shards))]
    for (path, _), name in zip(shards, named, strict=True):
        path.rename(name)
    return [(name, rows) for name, (_, rows) in zip(named, shards, strict=True)]


def encode(record: AnyRecord) -> dict[str, Any]:
    """The record's row, with `meta`, `tags` and `scores` as JSON text."""
    row = to_row(record)
    for name in JSON_FIELDS:
        if name in row:
            row[name] = _json_text(record.id, name, row[name])
    return row


def _json_text(record_id: str, name: str, value: object) -> str:
    try:
        return dump_json(value)
    except (TypeError, ValueError) as error:
        raise InputRefused(
            f"the {name} of record {record_id!r} cannot be stored", why=f"it is not JSON: {error}"
        ) from error


def _characters(row: dict[str, Any]) -> int:
    texts = sum(len(value) for value in row.values() if isinstance(value, str))
    return texts + sum(len(turn["content"]) for name in MESSAGE_FIELDS for turn in row.get(name, ()))


def _table(rows: list[dict[str, Any]], record_type: type[AnyRecord]) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pylist(rows, schema=schema_of(record_type))
    except (UnicodeEncodeError, pa.ArrowException, TypeError) as error:
        raise InputRefused(
            f"record {_culprit(rows, record_type)!r} cannot be stored",
            why=f"its fields are not text: {error}",
        ) from error


def _culprit(rows: list[dict[str, Any]], record_type: type[AnyRecord]) -> str:
    import pyarrow as pa

    for row in rows:
        try:
            pa.Table.from_pylist([row], schema=schema_of(record_type))
        except (UnicodeEncodeError, pa.ArrowException, TypeError):
            return str(row["id"])
    return "?"


def is_parquet(path: Path) -> bool:
    """Whether the file begins as a Parquet file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _one(row: dict[str, Any], key: str, position: int) -> list[AnyRecord]:
    return [from_row(row, key=key, position=position)]


def read_parquet(path: Path, *, own: bool = False, decode: Decode = _one) -> Iterator[AnyRecord]:
    """The records of a Parquet file, in order; `decode` makes them of (row, file name, position).

    `own` says that ojak wrote the file, so that anything odd means damage (VerificationFailed); in a foreign
    file it means that the file is of no use (InputRefused).
    """
    for position, row in enumerate(read_table(path, own=own)):
        try:
            yield from decode(row, path.name, position)
        except (ValueError, KeyError) as error:
            raise _unreadable(path, own, position, error) from error


def read_table(path: Path, *, own: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, whatever its columns are; raises like `read_parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    position = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=READ_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield row
                    position += 1
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, own, position, error) from error


def _unreadable(path: Path, own: bool, position: int, error: Exception) -> OjakError:
    kind = VerificationFailed if own else InputRefused
    return kind(f"{path} cannot be read as records", why=f"row {position}: {error}")


def row_count(path: Path) -> int:
    """The number of rows that a Parquet file of ours holds; raises VerificationFailed if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise VerificationFailed(f"{path} is not a Parquet file", why=str(error)) from error


def column_counts(path: Path, name: str) -> dict[str, int]:
    """How often each value of a text column occurs in a Parquet file of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = file.read([name])[name].value_counts().to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise VerificationFailed(f"{path} has no column {name!r}", why=str(error)) from error
    return {item["values"]: item["counts"] for item in found}


def column_values(path: Path, name: str) -> Iterator[str]:
    """The values of a text column of a Parquet file of ours, in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=READ_BATCH_ROWS, columns=[name], use_threads=False):
            yield from batch.column(0).to_pylist()


def column_names(path: Path) -> set[str]:
    """The names of the columns of a foreign Parquet file; raises InputRefused if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise InputRefused(f"{path} is not a Parquet file", why=str(error)) from error
