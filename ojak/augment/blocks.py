"""Documents in blocks of whole groups, and the finished blocks on disk: what was paid for survives a kill.

    .augment-<key>/block-000000.jsonl   what was counted, then each document and each discarded pair; there whole or not

The key is a hash of the input, the settings, the model and the code: a block of others is never taken for ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from ojak._files import disk_errors, remove, write_atomic
from ojak.augment.draws import Draws
from ojak.errors import InputRefused, VerificationFailed
from ojak.records import AnyRecord, Document, Rejected, dump_json, from_row, to_row

BLOCK = 2048  # documents of a block, or a few more so that the last group is whole
MOST_CHARACTERS = 32 * 2**20  # of a block
PREFIX = ".augment-"


def blocks(records: Iterable[AnyRecord], shots: int) -> Iterator[list[Document]]:
    """The documents, as many together as make whole groups; raises InputRefused for what is no document."""
    block: list[Document] = []
    characters = 0
    for record in records:
        if not isinstance(record, Document):
            raise InputRefused(
                f"row {record.id!r} is a {type(record).__name__}",
                why="pairs are made out of texts",
                fix="give an artifact or a file of documents, such as `ojak corpus` makes",
            )
        block.append(record)
        characters += len(record.text)
        if len(block) % shots == 0 and (len(block) >= BLOCK or characters >= MOST_CHARACTERS):
            yield block
            block, characters = [], 0
    if block:
        yield block


def groups(block: Sequence[Document], shots: int, seed: int) -> list[list[Document]]:
    """The documents of a block dealt into groups of `shots`, the last one with what is left.

    Which ones come together follows from seed and ids alone, not from the order in which they came.
    """
    order = sorted(block, key=lambda document: (Draws(seed, "group").bits(document.id), document.id))
    return [order[begin : begin + shots] for begin in range(0, len(order), shots)]


def group_id(group: Sequence[Document]) -> str:
    """The name of a group: it follows from its documents' ids."""
    names = dump_json([document.id for document in group])
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Kept:
    """The finished blocks of one augmentation in the folder `out`."""

    def __init__(self, out: Path, key: dict[str, Any]) -> None:
        digest = hashlib.sha256(dump_json(key).encode("utf-8", "surrogatepass")).hexdigest()
        self._out, self.folder = out, out / f"{PREFIX}{digest[:16]}"
        self.counts: list[dict[str, Any]] = []
        while (path := self._path(len(self.counts))).is_file():
            self.counts.append(next(self._lines(path)))

    def __len__(self) -> int:
        """How many blocks are there."""
        return len(self.counts)

    def add(
        self, counts: dict[str, Any], documents: Sequence[Document], rejected: Sequence[Rejected]
    ) -> None:
        """Keep a block. Raises InputRefused for what is no Unicode text, ResourceExhausted where the disk is full."""
        try:
            lines = [orjson.dumps(each) for each in (counts, *map(to_row, [*documents, *rejected]))]
        except orjson.JSONEncodeError as error:
            raise InputRefused(
                "a document cannot be stored", why=f"it is no Unicode text: {error}"
            ) from error
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path(len(self.counts)), b"\n".join(lines) + b"\n")
        self.counts.append(counts)

    def documents(self) -> Iterator[Document]:
        return (record for record in self._records() if isinstance(record, Document))

    def rejected(self) -> Iterator[Rejected]:
        return (record for record in self._records() if isinstance(record, Rejected))

    def remove(self) -> None:
        """Remove the working folders of this output, those of other settings, too."""
        for folder in self._out.glob(f"{PREFIX}*"):
            remove(folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:06d}.jsonl"

    def _records(self) -> Iterator[AnyRecord]:
        for number in range(len(self.counts)):
            for row in islice(self._lines(self._path(number)), 1, None):
                yield from_row(row)

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                for line in file:
                    yield orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise VerificationFailed(f"{path} is damaged", fix=f"remove {self.folder}") from error
