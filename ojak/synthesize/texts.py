"""Texts to read personas out of: a file or a folder of them, in a fixed order, cut into excerpts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ojak.artifact import Artifact
from ojak.errors import InputRefused, UsageError
from ojak.formats import load
from ojak.records import AnyRecord, Conversation, Document

MOST_CHARACTERS = 2_000  # of an excerpt: more than enough to tell who would read it
PLAIN = (".txt", ".md")
READ = (*PLAIN, ".jsonl", ".json", ".parquet")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text, or the beginning of it. `source` names the record, or the file and the place in it (from 1)."""

    source: str
    text: str


def read_excerpts(path: Path, most: int | None = None) -> tuple[Excerpt, ...]:
    """The excerpts of a file (plain text: its paragraphs, joined up to the limit; otherwise its records), of an
    artifact's folder, or of all such files in a folder, in the order of their names; at most `most`.

    Raises UsageError if there is nothing there, InputRefused for what cannot be read.
    """
    found: list[Excerpt] = []
    for excerpt in _excerpts(path):
        found.append(excerpt)
        if len(found) == most:
            break
    if not found:
        raise InputRefused(
            f"{path} holds no texts", fix=f"give a file or a folder with {', '.join(READ)} files"
        )
    return tuple(found)


def sha256_of(excerpts: tuple[Excerpt, ...]) -> str:
    """A hash of what is read, wherever it lies."""
    digest = hashlib.sha256()
    for excerpt in excerpts:
        digest.update(hashlib.sha256(excerpt.text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def _excerpts(path: Path) -> Iterator[Excerpt]:
    if not path.exists():
        raise UsageError(f"there is nothing at {path}", fix="give a file or a folder of texts")
    if path.is_dir() and not (path / "manifest.json").exists():
        inside = sorted(each for each in path.rglob("*") if each.suffix in READ and each.is_file())
        for each in inside:
            yield from _of_file(each, each.relative_to(path).as_posix())
    else:
        yield from _of_file(path, path.name)


def _of_file(path: Path, name: str) -> Iterator[Excerpt]:
    if path.is_file() and path.suffix in PLAIN:
        for number, text in enumerate(_pieces(path), 1):
            yield Excerpt(f"{name}:{number}", text)
        return
    records = Artifact.open(path).records() if path.is_dir() else load(path)
    for record in records:
        text = _text_of(record).strip()
        if text:
            yield Excerpt(record.id, text[:MOST_CHARACTERS])


def _text_of(record: AnyRecord) -> str:
    if isinstance(record, Document):
        return record.text
    if isinstance(record, Conversation):
        return "\n\n".join(turn["content"] for turn in record.messages if turn["role"] != "system")
    raise InputRefused(f"record {record.id!r} is no text", why=f"it is a {type(record).__name__}")


def _pieces(path: Path) -> Iterator[str]:
    """Paragraphs of a plain text, as many together as fit an excerpt; a longer one is cut."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputRefused(f"{path} is not UTF-8", why=str(error)) from error
    held = ""
    for paragraph in filter(None, map(str.strip, _PARAGRAPHS.split(text))):
        if held and len(held) + 2 + len(paragraph) > MOST_CHARACTERS:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph[:MOST_CHARACTERS]
    if held:
        yield held
