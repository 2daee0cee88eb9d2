"""Rows wherever they lie: a file of any format, plain text, an artifact, or a folder of such files."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ojak._compressed import open_unpacked
from ojak._jsonl import Warn, warn_user
from ojak.artifact import Artifact
from ojak.errors import InputRefused, UsageError
from ojak.formats import load
from ojak.records import AnyRecord, Document

PLAIN = (".txt", ".md")
PACKED = (".gz", ".zst")
READ = (*PLAIN, ".jsonl", ".json", ".parquet")
BLOCK_BYTES = 256 * 1024  # of plain text, read at a time


@dataclass(frozen=True, slots=True)
class LongText:
    """A document that is read in blocks, as it may be larger than memory."""

    path: Path

    def blocks(self) -> Iterator[str]:
        """The text in blocks that end with a line, where lines are not longer than a block."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        with open_unpacked(self.path) as file:
            while data := file.read(BLOCK_BYTES):
                yield self._text(decoder, data + file.readline(BLOCK_BYTES))
            self._text(decoder, b"", final=True)

    def document(self) -> Document:
        """The whole text."""
        return Document(self.path.name, "".join(self.blocks()), source=self.path.name)

    def _text(self, decoder: codecs.IncrementalDecoder, data: bytes, final: bool = False) -> str:
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise InputRefused(f"{self.path} is not UTF-8", why=str(error)[:200]) from error


def evenly(count: int, most: int | None) -> Sequence[int]:
    """The places of at most `most` of `count` rows, spread evenly over them; None: of all."""
    if most is None or count <= most:
        return range(count)
    return [i * count // most for i in range(most)]


def is_artifact(path: Path) -> bool:
    """Whether `path` is a folder that says to be an artifact."""
    return (path / "manifest.json").is_file()


def read_all(path: Path, split: str | None = None) -> Iterator[AnyRecord]:
    """The records at `path`, plain texts as documents; of an artifact one split, or all.

    Raises UsageError for the split of what has none, InputRefused for what cannot be read.
    """
    if is_artifact(path):
        yield from Artifact.open(path).records(split)
        return
    if split is not None:
        raise UsageError(
            f"{path} has no splits", why="only an artifact's folder has", fix="leave out --split"
        )
    for record in read_files(path):
        yield record.document() if isinstance(record, LongText) else record


def read_files(path: Path, warn: Warn = warn_user) -> Iterator[AnyRecord | LongText]:
    """The records of a file, or of those in a folder, in order; a plain text is one document. Raises what
    `formats.load` does."""
    for file in files_at(path):
        if _is_plain(file):
            yield LongText(file)
        else:
            yield from load(file, warn=warn)


def files_at(path: Path) -> list[Path]:
    """The file itself, or those in a folder that can be read, in the order of their names."""
    if path.is_file():
        return [path]
    inside = sorted(each for each in path.rglob("*") if each.is_file() and _readable(each))
    if not inside:
        raise InputRefused(
            f"{path} holds no data", fix=f"give a file or a folder with {', '.join(READ)} files"
        )
    return inside


def _unpacked(path: Path) -> Path:
    return Path(path.stem) if path.suffix in PACKED else path


def _is_plain(path: Path) -> bool:
    return _unpacked(path).suffix in PLAIN


def _readable(path: Path) -> bool:
    return _unpacked(path).suffix in READ and not path.name.startswith(".")
