"""The ledger: a SQLite file with one row for every finished request to an engine. Resume rests on it.

A request is keyed by everything that shapes its answer, except the cap on its length: an answer that was cut
by a smaller cap counts as absent when a larger one is asked for. `put` commits before it returns, so that a
killed process loses nothing but the requests in flight; a power cut may take the last commits with it, never
the file.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import orjson

from ojak.errors import InputRefused, Locked, OjakError, ResourceExhausted, UsageError, VerificationFailed

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6F6A616B  # "ojak"
BUSY_TIMEOUT_MS = 5_000
WAL_PAGES = 4_000  # a checkpoint costs an fsync; four times the default spacing makes a `put` a fifth cheaper

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE requests (
    key TEXT PRIMARY KEY, "row" INTEGER NOT NULL, kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ok', 'failed')), max_tokens INTEGER NOT NULL, finish_reason TEXT,
    text TEXT NOT NULL, token_count INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, seconds REAL,
    payload TEXT NOT NULL, created REAL NOT NULL
);
CREATE TABLE runs (seconds REAL NOT NULL, tokens INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

# What a write that found no room looks like from SQLite: it says FULL for ENOSPC alone, and an I/O error for
# a quota or a file size limit.
_NO_ROOM = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ})
_DENIED = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished request: "ok" with its text, or "failed" with `payload["error"]`.

    `token_count` and `prompt_tokens` are tokens, `seconds` the time the request took if known, `created` Unix
    time. `payload` holds the rest as JSON: sampling, seed, error, log-probabilities.
    """

    key: str
    row: int
    kind: str
    state: Literal["ok", "failed"]
    max_tokens: int
    finish_reason: str | None
    text: str
    token_count: int
    prompt_tokens: int
    seconds: float | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)


class Totals(NamedTuple):
    """Seconds of generation and tokens made, over all runs of a resumed folder."""

    seconds: float
    tokens: int


_COLUMNS = tuple(item.name for item in fields(Entry))
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
_PUT = f"INSERT OR REPLACE INTO requests ({_NAMES}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_PAYLOAD = _COLUMNS.index("payload")


def request_key(**everything: object) -> str:
    """The key of a request: SHA-256 (hex) of the canonical JSON of everything that shapes its answer.

    The cap on the answer's length is no part of it; passing `max_tokens` raises ValueError. Text that is not
    Unicode raises InputRefused.
    """
    if "max_tokens" in everything:
        raise ValueError("the cap on tokens is no part of a request's key")
    return hashlib.sha256(_json(everything)).hexdigest()


class Ledger:
    """The ledger in the file `path`, which is created if it is not there. A context manager; for one thread.

    `read_only`: nothing is written, neither to the file nor beside it, and it must be there.

    Raises VerificationFailed if the file is damaged or no ledger, InputRefused if a newer ojak wrote it,
    Locked if another process keeps it busy, ResourceExhausted if the disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        with self._errors():
            self._db = sqlite3.connect(_uri(self.path, read_only), isolation_level=None, uri=True)
        try:
            with self._errors():
                self._prepare(read_only)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Nothing is written here that was not committed before."""
        with self._errors():
            self._db.close()

    def discard_empty(self) -> None:
        """Close the file, and remove it if no request was ever put into it."""
        empty = not self.counts()
        self.close()
        if empty:
            self.path.unlink()

    def get(self, key: str, max_tokens: int) -> Entry | None:
        """The finished request with this key, ok or failed; None if there is none, or if a cap below
        `max_tokens` cut its answer short."""
        with self._errors():
            found = self._db.execute(f"SELECT {_NAMES} FROM requests WHERE key = ?", (key,)).fetchone()
        entry = _entry(found) if found else None
        if entry and entry.finish_reason == "length" and entry.max_tokens < max_tokens:
            return None
        return entry

    def put(self, entry: Entry) -> None:
        """Store a finished request and commit it. An entry with the same key is replaced."""
        with self._errors():
            self._db.execute(_PUT, _values(entry))

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """The finished requests (of one kind) in the order of their rows."""
        where, values = ("", ()) if kind is None else ("WHERE kind = ?", (kind,))
        with self._errors():
            found = self._db.execute(
                f'SELECT {_NAMES} FROM requests {where} ORDER BY "row", kind, key', values
            )
            for row in found:
                yield _entry(row)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many requests there are: kind -> state -> number."""
        with self._errors():
            found = self._db.execute(
                "SELECT kind, state, COUNT(*) FROM requests GROUP BY kind, state"
            ).fetchall()
        counts: dict[str, dict[str, int]] = {}
        for kind, state, number in found:
            counts.setdefault(kind, {"ok": 0, "failed": 0})[state] = number
        return counts

    def finished(self, kind: str, *, rows: int, max_tokens: int) -> tuple[int, float]:
        """How many of the first `rows` rows have a finished request of this kind, and its mean tokens.

        Those that the cap `max_tokens` reopens are left out, as in `get`.
        """
        with self._errors():
            return self._db.execute(
                'SELECT COUNT(*), COALESCE(AVG(token_count), 0.0) FROM requests WHERE kind = ? AND "row" < ?'
                " AND NOT (finish_reason = 'length' AND max_tokens < ?)",
                (kind, rows, max_tokens),
            ).fetchone()

    def add_run(self, seconds: float, tokens: int) -> None:
        """Add time and tokens to the totals; a long run may add them bit by bit, to lose little to a kill."""
        with self._errors():
            self._db.execute("INSERT INTO runs VALUES (?, ?, ?)", (seconds, tokens, time.time()))

    def totals(self) -> Totals:
        """The sum of what `add_run` was told, over all processes that ever worked on this ledger."""
        with self._errors():
            found = self._db.execute("SELECT COALESCE(SUM(seconds), 0.0), COALESCE(SUM(tokens), 0) FROM runs")
            return Totals(*found.fetchone())

    def clear(self) -> None:
        """Forget every request. The file keeps its size, and uses the room again."""
        with self._errors():
            self._db.execute("DELETE FROM requests")

    def get_meta(self, name: str) -> Any:
        """The JSON value stored under `name`, or None."""
        with self._errors():
            found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        try:
            return orjson.loads(found[0]) if found else None
        except orjson.JSONDecodeError as error:
            raise _damaged(self.path, error) from error

    def set_meta(self, name: str, value: Any) -> None:
        """Store a JSON value under `name`, such as the fingerprint of the run's settings; replaces."""
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, _json(value).decode()))

    def _prepare(self, read_only: bool) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        version = self._pragma("user_version")
        if version > SCHEMA_VERSION:
            raise InputRefused(
                f"{self.path} was written by a newer ojak",
                why=f"its schema is version {version}; this ojak knows {SCHEMA_VERSION}",
                fix="update ojak, or start in another folder",
            )
        if version == 0 and not read_only:
            self._create()
        elif self._pragma("application_id") != APPLICATION_ID:
            raise self._not_a_ledger()
        if read_only:
            return
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")

    def _create(self) -> None:
        if self._pragma("application_id") or self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise self._not_a_ledger()
        self._db.executescript(_SCHEMA)

    def _pragma(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _not_a_ledger(self) -> VerificationFailed:
        return VerificationFailed(
            f"{self.path} is an SQLite file, but not a ledger of ojak",
            fix="choose another folder for the run",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise _not_unicode(error) from error
        except sqlite3.DatabaseError as error:
            translated = _translated(error, self.path)
            if translated is None:
                raise
            raise translated from error


def _uri(path: Path, read_only: bool) -> str:
    """The file's address for SQLite. `immutable` keeps a reader from making files beside a ledger closed cleanly."""
    mode = "rwc"
    if read_only:
        in_use = path.with_name(f"{path.name}-wal").exists()
        mode = "ro" if in_use else "ro&immutable=1"
    return f"{path.absolute().as_uri()}?mode={mode}"


def _json(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise _not_unicode(error) from error


def _not_unicode(error: Exception) -> InputRefused:
    return InputRefused(
        "a request or its answer cannot be stored", why=f"it is not Unicode text or not JSON: {error}"
    )


def _values(entry: Entry) -> list[Any]:
    values = [getattr(entry, name) for name in _COLUMNS]
    values[_PAYLOAD] = _json(entry.payload).decode()
    return values


def _entry(row: tuple[Any, ...]) -> Entry:
    values = list(row)
    values[_PAYLOAD] = orjson.loads(values[_PAYLOAD])
    return Entry(*values)


def _translated(error: sqlite3.DatabaseError, path: Path) -> OjakError | None:
    """The error for a person, or None for one that only a defect of ojak can cause."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _NO_ROOM:
        return ResourceExhausted(
            f"no space left while writing {path}",
            why=f"{error}: the disk, a quota or a file size limit is used up, or the disk fails",
            fix="make room and run the same command again; what was finished is kept",
        )
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(f"another process keeps {path} busy", why=str(error), fix="wait for it, or stop it")
    if code in _BROKEN or code & 0xFF in _BROKEN:
        return _damaged(path, error)
    if code & 0xFF in _DENIED:
        return UsageError(f"cannot open {path}", why=str(error), fix="check the folder and its permissions")
    return None


def _damaged(path: Path, error: Exception) -> VerificationFailed:
    return VerificationFailed(
        f"{path} is damaged, or is no ledger",
        why=str(error),
        fix=f"move it away (with {path.name}-wal and {path.name}-shm) and run again,"
        f" or try `sqlite3 {path.name} .recover`",
    )
