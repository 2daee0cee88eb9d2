"""Which files there are: folders walked in the order of names, nothing followed, everything counted.

A name that begins with a dot is passed over, as a shell's `*` does; every other entry is a file to read, or is turned
away with a reason. Links inside a folder are turned away: they can lead out of it, or in a circle.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from ojak._files import sha256_file
from ojak.errors import InputRefused, UsageError

PACKED = (".gz", ".zst")
FORMATS = {
    ".txt": "text", ".text": "text", ".rst": "text", ".md": "markdown", ".markdown": "markdown",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf", ".docx": "docx",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".warc": "warc", ".wet": "warc",
}  # fmt: skip
OF_ROWS = ("jsonl", "parquet", "warc")  # one document for each record; of the others one for each file


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file: `name` as documents call it ("notes/a.txt"), `format` of FORMATS, or why it is not read.

    number: its place among all files of the run, from 0.
    """

    path: Path
    name: str
    format: str
    reason: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies under each of the paths: a hash over names and contents, in order; files and bytes in all."""

    digests: tuple[str, ...]
    files: int
    size_bytes: int


def files(paths: Sequence[Path]) -> Iterator[InputFile]:
    """Every file under the paths, in the same order each time. Raises UsageError for a path that is not there."""
    names = root_names(paths)
    found = chain.from_iterable(_under(path, name) for path, name in zip(paths, names, strict=True))
    for number, file in enumerate(found):
        yield replace(file, number=number)


def root_names(paths: Sequence[Path]) -> list[str]:
    """What the paths are called in the names of documents: the last part, numbered where two have the same."""
    seen, names = Counter[str](), []
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path} is not there", fix="give files or folders of text")
        name = path.name or path.resolve().name or "root"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return names


def survey(paths: Sequence[Path]) -> Survey:
    """Read every byte once, for its hash: whether a run may go on, and what a result was made of, hang on it."""
    digests, count, size = [], 0, 0
    for path, name in zip(paths, root_names(paths), strict=True):
        digest = hashlib.sha256()
        for file in _under(path, name):
            content, length = _content(file)
            count, size = count + 1, size + length
            digest.update(f"{file.name}\0{content}\0".encode("utf-8", "surrogatepass"))
        digests.append(digest.hexdigest())
    if not count:
        raise InputRefused("there are no files to read", fix="give files, or folders that hold some")
    return Survey(tuple(digests), count, size)


def _content(file: InputFile) -> tuple[str, int]:
    """(a hash of what a file holds, or why it is not read; its bytes)."""
    if file.reason:
        return file.reason, 0
    try:
        return sha256_file(file.path), file.path.stat().st_size
    except OSError:  # it went since the folder was listed, or its disk fails; reading it will say so
        return "unreadable", 0


def _under(path: Path, name: str) -> Iterator[InputFile]:
    """The file itself, or what a walk of the folder finds, name by name."""
    try:
        mode = path.stat().st_mode  # a link that a person names is followed
    except OSError:
        yield InputFile(path, name, "", "unreadable")
        return
    if not stat.S_ISDIR(mode):
        yield _file(path, name, mode)
        return
    open_folders = [
        _entries(path, name)
    ]  # not recursion: folders may lie deeper in each other than Python calls
    while open_folders:
        found = next(open_folders[-1], None)
        if found is None:
            open_folders.pop()
        elif isinstance(found, InputFile):
            yield found
        else:
            open_folders.append(_entries(*found))


def _entries(folder: Path, name: str) -> Iterator[InputFile | tuple[Path, str]]:
    """What lies directly in a folder: files, and (folder, name) of those below."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield InputFile(folder, _shown(name), "", "unreadable")
        return
    for entry in entries:
        below, called = Path(entry.path), f"{name}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            yield InputFile(below, _shown(called), "", "link")
        elif entry.is_dir(follow_symlinks=False):
            yield below, called
        else:
            yield _file(below, called, entry.stat(follow_symlinks=False).st_mode)


def _shown(name: str) -> str:
    """The name as text: names of files are bytes, those of documents are not."""
    return name.encode("utf-8", "backslashreplace").decode()


def _file(path: Path, name: str, mode: int) -> InputFile:
    kind, shown = format_of(path.name), _shown(name)
    if not stat.S_ISREG(mode):
        return InputFile(path, shown, kind, "not_a_file")
    if not os.access(path, os.R_OK):
        return InputFile(path, shown, kind, "unreadable")
    return InputFile(path, shown, kind, "" if kind else "format_unknown")


def format_of(name: str) -> str:
    """The format that a file's name says; "" for one that is not read."""
    lower = name.lower()
    for ending in PACKED:
        lower = lower.removesuffix(ending)
    return FORMATS.get(os.path.splitext(lower)[1], "")
