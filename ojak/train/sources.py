"""Where training rows come from: a file of any format, an artifact, plain text, or a folder of such files.

A source is written `PATH`, or `PATH:WEIGHT` in a mixture: an epoch sees each of its rows WEIGHT times (0.5: half of
them, in the next epoch the other half). Of an artifact with splits, training takes `train`; `PATH@SPLIT` names another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ojak._manifest import DATA
from ojak.artifact import Artifact, verify
from ojak.errors import OjakError, UsageError
from ojak.model.files import cached_sha256
from ojak.sources import LongText, files_at, is_artifact, read_files

if TYPE_CHECKING:
    from ojak._jsonl import Warn
    from ojak.records import AnyRecord

MOST_WEIGHT = 10_000


@dataclass(frozen=True, slots=True)
class DataSource:
    """`split` is that of an artifact, None for what `split_of` finds."""

    path: Path
    weight: Fraction = Fraction(1)
    split: str | None = None


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


def check_data(data: Sequence[str], held_out: Iterable[str | None] = ()) -> None:
    """Say what is wrong with where the rows are, before anything is loaded. Raises UsageError."""
    for text, wanted in [
        *((text, "train") for text in data),
        *((text, "validation") for text in held_out if text),
    ]:
        split_of(parse_source(text), wanted)


def content_sha256(source: DataSource) -> str:
    """A hash over the content of a source, wherever it lies and whenever it was made: of an artifact its rows'."""
    digest = hashlib.sha256()
    if is_artifact(source.path):
        for entry in Artifact.open(source.path).files:
            if entry["path"].startswith(f"{DATA}/"):
                digest.update(f"{entry['path']}\0{entry['sha256']}\n".encode())
        return digest.hexdigest()
    for path in files_at(source.path):
        # The name is part of the ids of rows that have none, and says what is plain text.
        digest.update(f"{path.name}\0{cached_sha256(path)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def contents_sha256(data: Sequence[str]) -> list[str] | None:
    """`content_sha256` of each of `data`, None where one of them is not there (any more)."""
    try:
        return [content_sha256(parse_source(text)) for text in data]
    except (OjakError, OSError):
        return None


def sha256_by_source(data: Sequence[str]) -> dict[str, str | None]:
    """The same of each of `data` by itself, so that one that is not there takes no other's hash away."""
    return {text: found[0] if (found := contents_sha256([text])) else None for text in data}


def read_source(source: DataSource, split: str | None, warn: Warn) -> Iterator[AnyRecord | LongText]:
    """The records of a source in order; a plain text is one document. Raises what `formats.load` does.

    An artifact is verified first: its hash, which the token cache goes by, is otherwise only what it says of itself.
    """
    if is_artifact(source.path):
        yield from verify(source.path).records(split)
        return
    yield from read_files(source.path, warn)
