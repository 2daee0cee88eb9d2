"""Where training rows come from: a file of any format, an artifact, plain text, or a folder of such files.

A source is written `PATH`, or `PATH:WEIGHT` in a mixture: an epoch sees each of its rows WEIGHT times (0.5: half of
them, in the next epoch the other half). Of an artifact with splits, training takes `train`; `PATH@SPLIT` names another.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ojak._compressed import open_unpacked
from ojak.artifact import Artifact, verify
from ojak.errors import InputRefused, UsageError
from ojak.formats import load
from ojak.model.files import cached_sha256

if TYPE_CHECKING:
    from ojak._jsonl import Warn
    from ojak.records import AnyRecord

PLAIN = (".txt", ".md")
PACKED = (".gz", ".zst")
READ = (*PLAIN, ".jsonl", ".json", ".parquet")
MOST_WEIGHT = 10_000
BLOCK_BYTES = 256 * 1024  # of plain text, tokenized at a time


@dataclass(frozen=True, slots=True)
class DataSource:
    """`split` is that of an artifact, None for what `split_of` finds."""

    path: Path
    weight: Fraction = Fraction(1)
    split: str | None = None


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

    def _text(self, decoder: codecs.IncrementalDecoder, data: bytes, final: bool = False) -> str:
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise InputRefused(f"{self.path} is not UTF-8", why=str(error)[:200]) from error


def parse_source(text: str) -> DataSource:
    """The source that `PATH[@SPLIT][:WEIGHT]` names. What exists as a path is one, whatever signs it holds.

    Raises UsageError for a weight that is no positive number, and where there is nothing at the path.
    """
    if text and Path(text).exists():
        return DataSource(Path(text))
    head, colon, tail = text.rpartition(":")
    if colon and head:
        return replace(parse_source(head), weight=_weight(text, tail))
    head, at, split = text.rpartition("@")
    if at and head and (Path(head) / "manifest.json").exists():
        return DataSource(Path(head), split=split)
    raise UsageError(
        f"there is nothing at {text!r}",
        fix="give a file, a folder or an artifact, as PATH, PATH:WEIGHT or (a split of an artifact) PATH@SPLIT",
    )


def _weight(text: str, weight: str) -> Fraction:
    try:
        value = Fraction(weight.strip())
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= MOST_WEIGHT:
        raise UsageError(
            f"{text!r}: {weight!r} is no weight",
            fix=f"a weight says how often an epoch sees each row: above 0, at most {MOST_WEIGHT:,}, such as 0.5 or 2",
        )
    return value


def split_of(source: DataSource, wanted: str = "train") -> str | None:
    """The split of an artifact to read: the one it names, else `wanted` if it is there, else the only one.

    For "validation" that of `ojak split`, "test", will do. None for what is no artifact. Raises UsageError where none
    of these is there.
    """
    if not is_artifact(source.path):
        return None
    splits = list(Artifact.open(source.path).splits)
    usual = [name for name in (wanted, "test" if wanted == "validation" else wanted) if name in splits]
    name = source.split or next(iter(usual or splits[: len(splits) == 1]), None)
    if name not in splits:
        raise UsageError(
            f"{source.path} has no split {name or wanted!r}",
            fix=f"name one as PATH@SPLIT: {', '.join(splits)}",
        )
    return name


def is_artifact(path: Path) -> bool:
    """Whether `path` is a folder that says to be an artifact."""
    return (path / "manifest.json").is_file()


def content_sha256(source: DataSource) -> str:
    """A hash over the content of a source, wherever it lies: of an artifact its manifest's, else of the files."""
    if is_artifact(source.path):
        return Artifact.open(source.path).manifest_sha256
    digest = hashlib.sha256()
    for path in _files(source.path):
        # The name is part of the ids of rows that have none, and says what is plain text.
        digest.update(f"{path.name}\0{cached_sha256(path)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_source(source: DataSource, split: str | None, warn: Warn) -> Iterator[AnyRecord | LongText]:
    """The records of a source in order; a plain text is one document. Raises what `formats.load` does.

    An artifact is verified first: its hash, which the token cache goes by, is otherwise only what it says of itself.
    """
    if is_artifact(source.path):
        yield from verify(source.path).records(split)
        return
    for path in _files(source.path):
        if _is_plain(path):
            yield LongText(path)
        else:
            yield from load(path, warn=warn)


def _is_plain(path: Path) -> bool:
    return (Path(path.stem) if path.suffix in PACKED else path).suffix in PLAIN


def _files(path: Path) -> list[Path]:
    """The file itself, or those in a folder that can be read, in the order of their names."""
    if path.is_file():
        return [path]
    inside = sorted(each for each in path.rglob("*") if each.is_file() and _readable(each))
    if not inside:
        raise InputRefused(
            f"{path} holds no data", fix=f"give a file or a folder with {', '.join(READ)} files"
        )
    return inside


def _readable(path: Path) -> bool:
    name = Path(path.stem) if path.suffix in PACKED else path
    return name.suffix in READ and not path.name.startswith(".")
