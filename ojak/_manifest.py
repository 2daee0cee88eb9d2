"""The manifest of an artifact: its form, and reading one that may be damaged or hostile."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ojak._swap import JOURNAL
from ojak.errors import InputRefused, VerificationFailed

SCHEMA_VERSION = 1
MANIFEST, CARD, DATA, REJECTED = "manifest.json", "README.md", "data", "rejected"
MAX_MANIFEST_BYTES = 64 * 2**20
DATA_FILE = re.compile(r"data/([a-z][a-z0-9_]{0,63})-\d{5}-of-\d{5}\.parquet")
REJECTED_FILE = re.compile(r"rejected/part-\d{5}-of-\d{5}\.parquet")


def read_manifest(path: Path) -> bytes:
    """The bytes of the manifest in the folder `path`; raises InputRefused if there is none."""
    manifest = path / MANIFEST
    if manifest.is_symlink():
        raise VerificationFailed(f"{manifest} is a link", why="an artifact holds its own files")
    try:
        size = manifest.stat().st_size
        if not manifest.is_file() or size > MAX_MANIFEST_BYTES:
            raise VerificationFailed(f"{manifest} is no file, or too big", why=f"{size} bytes")
        return manifest.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _no_artifact(path) from None


def _no_artifact(path: Path) -> InputRefused:
    why = "it has no manifest.json, which is written last"
    if not path.exists():
        why = "there is no such folder"
    elif (path / JOURNAL).exists():
        why = "a write into it was interrupted; the command that wrote it will put it right"
    return InputRefused(
        f"{path} is not a finished artifact", why=why, fix="run the command that makes it (again)"
    )


def parse_manifest(path: Path, raw: bytes) -> dict[str, Any]:
    """The manifest in `raw`, its form checked: types, counts, names that stay inside the folder `path`.

    Raises VerificationFailed if it is damaged, InputRefused if a newer ojak wrote it.
    """
    where = path / MANIFEST
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{where} is damaged", why=str(error)) from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputRefused(
            f"{path} was written by a newer ojak",
            why=f"its manifest is version {version}; this ojak knows {SCHEMA_VERSION}",
            fix="update ojak",
        )
    wrong = _wrong_manifest(manifest)
    if wrong:
        raise VerificationFailed(f"{where} is not a manifest of ojak", why=wrong)
    return manifest


def _wrong_manifest(manifest: Any) -> str:
    """What is wrong with the form of a manifest; empty if nothing is."""
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        return "it has no schema_version"
    expected = {"kind": str, "config": dict, "inputs": list, "files": list, "counts": dict, "stats": dict}
    for name, kind in expected.items():
        if not isinstance(manifest.get(name), kind):
            return f"its {name!r} is missing or of another type"
    counts = manifest["counts"]
    numbers = [counts.get(name) for name in ("rows", "accepted", "failed")]
    reasons = counts.get("rejected")
    if not isinstance(reasons, dict) or not all(_is_count(item) for item in [*numbers, *reasons.values()]):
        return "its counts are not numbers"
    return next(filter(None, map(_wrong_entry, manifest["files"])), "")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong_entry(entry: Any) -> str:
    """What is wrong with an entry under "files". Only names of our own pattern pass, so none leads out."""
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return "an entry of its files has no path"
    name = entry["path"]
    if name != CARD and not DATA_FILE.fullmatch(name) and not REJECTED_FILE.fullmatch(name):
        return f"its files list {name!r}, which is no name of an artifact's file"
    if (
        not _is_count(entry.get("bytes"))
        or not _is_count(entry.get("rows"))
        or not isinstance(entry.get("sha256"), str)
    ):
        return f"its entry for {name!r} is incomplete"
    return ""
