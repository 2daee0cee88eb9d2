"""Where models are kept, and the hashes of their files.

`OJAK_HOME` names the folder; without it, the platform's place for a user's caches is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs

from ojak._files import sha256_file


def home() -> Path:
    """The folder of ojak's cache (it need not exist)."""
    return Path(os.environ.get("OJAK_HOME") or platformdirs.user_cache_dir("ojak")).expanduser().absolute()


def cached_sha256(path: Path) -> str:
    """`sha256_file`, remembered in the cache for as long as the file's place, size and time of change stay the same.

    A model is hashed at every start (its hash is part of what is recorded), and hundreds of megabytes take a second.
    """
    path = path.resolve()
    stat = path.stat()
    note = home() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    state = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    try:
        remembered = json.loads(note.read_text("utf-8"))
        if remembered["state"] == state:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or not one of ours: hash the file
    digest = sha256_file(path)
    _write_quietly(note, json.dumps({"state": state, "sha256": digest}))
    return digest


def combined_sha256(paths: Iterable[Path], root: Path) -> str:
    """One hash for several files: over the sorted lines "hash  name", names relative to `root`."""
    lines = sorted(f"{cached_sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def _write_quietly(path: Path, text: str) -> None:
    """Write a note whose loss costs time only: a full or read-only disk is no reason to stop."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, "utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # renamed away if all went well
