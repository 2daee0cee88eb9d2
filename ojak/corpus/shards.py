"""Decided documents on disk while a run works: what was read and filtered survives a kill.

    .corpus-<key>/part-000000.kept.parquet       documents that the filters let through (at most 4,096)
    .corpus-<key>/part-000000.rejected.parquet   the others of the same stretch of the input, with reasons
    .corpus-<key>/part-000000.json               what was counted, and where the input goes on; written last

The key is a hash of the contents of all files, of the rules and of the code: parts of another run are never taken.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ojak._files import disk_errors, remove, write_atomic
from ojak._tables import TableWriter, read_parquet
from ojak.errors import VerificationFailed
from ojak.records import Document, Rejected, dump_json

DOCUMENTS_PER_PART, CHARACTERS_PER_PART = 4096, 16 * 2**20
SECONDS_PER_PART = 20.0  # what a kill may cost
PREFIX = ".corpus-"
KEPT, REJECTED, NOTE = "kept.parquet", "rejected.parquet", "json"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the input goes on: with record `number` of file `file`, both counted from 0."""

    file: int = 0
    number: int = 0


@dataclass
class Counted:
    """How many documents the filters let through, and how many they did not, by reason."""

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def documents(self) -> int:
        """All of them."""
        return self.kept + self.rejected.total()

    def merge(self, other: Counted) -> None:
        """Take in what was counted elsewhere."""
        self.kept += other.kept
        self.rejected.update(other.rejected)


class Parts:
    """The parts of one run, in the folder `out`."""

    def __init__(self, out: Path, key: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(dump_json(key).encode("utf-8", "surrogatepass")).hexdigest()
        self.folder, self._out = out / f"{PREFIX}{digest[:16]}", out
        self.count, self.place, self.counted = 0, Place(), Counted()
        while (note := self._path(self.count, NOTE)).is_file():
            try:
                found = json.loads(note.read_bytes())
                self.place = Place(*found["place"])
                self.counted.merge(Counted(found["kept"], Counter(found["rejected"])))
            except (ValueError, KeyError, TypeError) as error:
                raise VerificationFailed(f"{note} is damaged", fix=f"remove {self.folder}") from error
            self.count += 1

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"part-{number:06d}.{suffix}"

    def write(self, decided: Iterable[tuple[Document | Rejected, Place]]) -> Iterator[None]:
        """Write what comes, each with the place after it, part by part; yields after each part."""
        with disk_errors(self.folder):
            part, after = None, self.place
            for record, after in decided:
                part = part or self._begin()
                part.add(record)
                if part.is_full():
                    yield self._end(part, after)
                    part = None
            if part:
                yield self._end(part, after)

    def _begin(self) -> _Part:
        """The next part. The folder is made for the first: a run that cannot begin leaves nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return _Part(self._path(self.count, KEPT), self._path(self.count, REJECTED))

    def _end(self, part: _Part, after: Place) -> None:
        part.close()
        counted = {"kept": part.counted.kept, "rejected": part.counted.rejected}
        note = {"place": [after.file, after.number], **counted}
        write_atomic(self._path(self.count, NOTE), json.dumps(note).encode())
        self.count, self.place = self.count + 1, after
        self.counted.merge(part.counted)

    def kept(self) -> Iterator[Document]:
        """The documents that the filters let through, in order."""
        for number in range(self.count):
            yield from read_parquet(self._path(number, KEPT), own=True)  # type: ignore[misc]

    def rejected(self) -> Iterator[Rejected]:
        """The others, in order."""
        for number in range(self.count):
            yield from read_parquet(self._path(number, REJECTED), own=True)  # type: ignore[misc]

    def remove(self) -> None:
        """Remove the working folders of this output, those of other settings, too."""
        for folder in self._out.glob(f"{PREFIX}*"):
            remove(folder)


class _Part:
    """A part that is being written."""

    def __init__(self, kept: Path, rejected: Path) -> None:
        for path in (kept, rejected):
            path.unlink(missing_ok=True)  # of a part that was not finished
        self._kept, self._rejected = TableWriter(kept, Document), TableWriter(rejected, Rejected)
        self._began, self._characters = time.monotonic(), 0
        self.counted = Counted()

    def add(self, record: Document | Rejected) -> None:
        if isinstance(record, Document):
            self._kept.add(record)
            self.counted.kept += 1
        else:
            self._rejected.add(record)
            self.counted.rejected[record.reason] += 1
        self._characters += len(record.text)

    def is_full(self) -> bool:
        return (
            self.counted.documents >= DOCUMENTS_PER_PART
            or self._characters >= CHARACTERS_PER_PART
            or time.monotonic() - self._began >= SECONDS_PER_PART
        )

    def close(self) -> None:
        self._kept.close()
        self._rejected.close()
