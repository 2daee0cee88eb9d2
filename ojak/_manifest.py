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
DATA_FILE = re.compile(r"data/([a-z][a-z0-9_]{0,63})-(?P<number>[0-9]{5})-of-[0-9]{5}\.parquet")
REJECTED_FILE = re.compile(r"rejected/part-(?P<number>[0-9]{5})-of-[0-9]{5}\.parquet")
KIND = re.compile(r"[a-z][a-z0-9_-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")
PARTS_OF_MANIFEST = {
    "kind": str, "created": str, "ojak_version": str, "config": dict, "inputs": list, "files": list,
    "counts": dict, "stats": dict,
}  # fmt: skip
COUNTS = {"rows", "accepted", "rejected", "failed"}
ENTRY = {"path", "bytes", "sha256", "rows"}


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
        manifest = json.loads(raw, object_pairs_hook=_once, parse_constant=_no_constant)
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # two readers could take two different values
        raise ValueError("it has a name twice in one place")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _wrong_manifest(manifest: Any) -> str:
    """What is wrong with the form of a manifest; empty if nothing is."""
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        return "it has no schema_version"
    for name, kind in PARTS_OF_MANIFEST.items():
        if not isinstance(manifest.get(name), kind):
            return f"its {name!r} is missing or of another type"
    checks = (_wrong_names, _wrong_counts, _wrong_files)
    return next(filter(None, (check(manifest) for check in checks)), "")


def _wrong_names(manifest: dict[str, Any]) -> str:
    unknown = manifest.keys() - PARTS_OF_MANIFEST.keys() - {"schema_version"}
    if unknown:
        return f"it has parts that nobody knows: {sorted(unknown)}"
    if not KIND.fullmatch(manifest["kind"]):
        return f"its kind is {manifest['kind'][:80]!r}"
    if not all(isinstance(item, dict) for item in manifest["inputs"]):
        return "its inputs are of another type"
    return ""


def _wrong_counts(manifest: dict[str, Any]) -> str:
    counts = manifest["counts"]
    if counts.keys() != COUNTS:
        return f"its counts are not those of {sorted(COUNTS)}"
    reasons = counts["rejected"]
    numbers = [counts[name] for name in COUNTS - {"rejected"}]
    if not isinstance(reasons, dict) or not all(_is_count(item) for item in [*numbers, *reasons.values()]):
        return "its counts are not numbers"
    return ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong_files(manifest: dict[str, Any]) -> str:
    files = manifest["files"]
    wrong = next(filter(None, map(_wrong_entry, files)), "")
    names = [] if wrong else [entry["path"] for entry in files]
    if len(set(names)) != len(names):
        return "it lists a file twice"
    return wrong or _wrong_set(names)


def _wrong_entry(entry: Any) -> str:
    """What is wrong with an entry under "files". Only names of our own pattern pass, so none leads out."""
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return "an entry of its files has no path"
    name = entry["path"]
    if name != CARD and not DATA_FILE.fullmatch(name) and not REJECTED_FILE.fullmatch(name):
        return f"its files list {name!r}, which is no name of an artifact's file"
    hashed = isinstance(entry.get("sha256"), str) and SHA256.fullmatch(entry["sha256"])
    if entry.keys() != ENTRY or not hashed or not _is_count(entry["bytes"]) or not _is_count(entry["rows"]):
        return f"its entry for {name!r} is incomplete, or not of the form of an entry"
    return ""


def _wrong_set(names: list[str]) -> str:
    """What is missing among the files: the card, a table of data, a shard."""
    shards: dict[str, list[str]] = {}
    for name in names:
        match = DATA_FILE.fullmatch(name) or REJECTED_FILE.fullmatch(name)
        if match:
            shards.setdefault(name[: match.start("number")], []).append(name[match.start("number") :])
    if CARD not in names or not any(stem.startswith(f"{DATA}/") for stem in shards):
        return f"its files lack {CARD if CARD not in names else 'a table of data'}"
    for stem, found in shards.items():
        whole = [f"{number:05d}-of-{len(found):05d}.parquet" for number in range(len(found))]
        if sorted(found) != whole:
            return f"its files under {stem}* are not all of their shards"
    return ""
