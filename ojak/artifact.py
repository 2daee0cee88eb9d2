"""An artifact: a folder of records that exists only when its manifest does, and can be checked against it.

    data/train-00000-of-0000N.parquet      the records, one schema in all shards
    rejected/part-00000-of-0000N.parquet   rows turned away, with the reason (if there are any)
    README.md                              a data card; its head tells `datasets` where the data are
    manifest.json                          hashes, counts, settings, inputs; written last

The folder may hold other files (a ledger, a run's settings); they are not part of the artifact.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from ojak import _card
from ojak._code import version
from ojak._files import (
    TargetLock,
    disk_errors,
    fsync_dir,
    remove,
    sha256_file,
    target_exists,
    write_atomic,
    write_synced,
)
from ojak._jsonl import Warn, read_records, warn_user
from ojak._manifest import (
    CARD,
    COUNTS,
    DATA,
    DATA_FILE,
    KIND,
    MANIFEST,
    REJECTED,
    REJECTED_FILE,
    SCHEMA_VERSION,
    parse_manifest,
    read_manifest,
)
from ojak._swap import STAGING_PREFIX, swap_in, undo
from ojak._tables import column_counts, column_values, is_parquet, read_parquet, row_count, write_shards
from ojak.errors import InputRefused, OjakError, UsageError, VerificationFailed
from ojak.records import AnyRecord, Conversation, Record, Rejected

__all__ = ["Artifact", "TargetLock", "publish", "read", "verify", "write_atomic"]

DIGEST_BYTES = 8  # of an id; numpy reads them as one number
MOST_DOUBLE = 1_000  # digests that occur twice and are looked into: one true case is enough
PARTS = (DATA, REJECTED, CARD, MANIFEST)  # in the order in which they are put in place

_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,63}")

Input: TypeAlias = "Artifact | Path | str | Mapping[str, Any]"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk: its folder, what its manifest says, and the SHA-256 of that manifest."""

    path: Path
    manifest: dict[str, Any]
    manifest_sha256: str

    @classmethod
    def open(cls, path: Path | str) -> Artifact:
        """The artifact in the folder `path`, its files there with the right sizes; `verify` reads them, too.

        Raises InputRefused if there is none, or a newer ojak made it, VerificationFailed if it is damaged.
        """
        path = Path(path)
        raw = read_manifest(path)
        artifact = cls(path, parse_manifest(path, raw), hashlib.sha256(raw).hexdigest())
        for entry in artifact.files:
            _check_file(path, entry)
        return artifact

    @property
    def kind(self) -> str:
        """What made it: "magpie", "split", ..."""
        return self.manifest["kind"]

    @property
    def counts(self) -> dict[str, Any]:
        """{"rows": all rows in, "accepted": kept, "rejected": {reason: number}, "failed": number}."""
        return self.manifest["counts"]

    @property
    def stats(self) -> dict[str, Any]:
        """What the stage had to say about its work."""
        return self.manifest["stats"]

    @property
    def files(self) -> list[dict[str, Any]]:
        """{"path", "bytes", "sha256", "rows"} of each file."""
        return self.manifest["files"]

    @property
    def splits(self) -> dict[str, int]:
        """The splits in the order in which they were written, with their numbers of rows."""
        return _split_rows(self.files)

    def records(self, split: str | None = None) -> Iterator[Record]:
        """The records, of one split or of all. Raises UsageError if there is no such split."""
        if split is not None and split not in self.splits:
            raise UsageError(f"{self.path} has no split {split!r}", fix=f"it has: {', '.join(self.splits)}")
        paths = [
            self.path / entry["path"] for entry, name in _data_files(self.files) if split in (None, name)
        ]
        found = itertools.chain.from_iterable(read_parquet(path, own=True) for path in paths)
        return cast("Iterator[Record]", found)

    def rejected(self) -> Iterator[Rejected]:
        """The rows that were turned away."""
        paths = [self.path / entry["path"] for entry in self.files if REJECTED_FILE.fullmatch(entry["path"])]
        found = itertools.chain.from_iterable(read_parquet(path, own=True) for path in paths)
        return cast("Iterator[Rejected]", found)

    def verify(self) -> Artifact:
        """Check every hash and every count against the manifest on disk; see the function `verify`."""
        return verify(self.path)


def publish(
    out: Path,
    *,
    kind: str,
    records: Iterable[Record] | None = None,
    rejected: Iterable[Rejected] = (),
    config: Mapping[str, Any],
    inputs: Iterable[Input] = (),
    counts: Mapping[str, Any] | None = None,
    stats: Mapping[str, Any] | None = None,
    splits: Mapping[str, Iterable[Record]] | None = None,
    replace: bool = False,
) -> Artifact:
    """Write an artifact into the folder `out`, beside whatever else is there; either all of it or nothing.

    Give `records` (they become the split "train") or `splits`. `counts` needs only what cannot be counted
    here: "failed", or "rows" to check against; rows = accepted + rejected + failed must hold. An artifact
    that is there already is replaced only on `replace`, and stays whole if anything goes wrong on the way.

    Raises TargetExists; InputRefused for records that cannot be stored or share an id; VerificationFailed if
    the counts do not add up; ResourceExhausted if the disk is full; Locked if another process works in `out`.
    """
    if (records is None) == (splits is None):
        raise UsageError("an artifact is made of `records` or of `splits`, and of only one of them")
    splits = {"train": records} if splits is None and records is not None else splits or {}
    _check_names(kind, splits)
    out = Path(out)
    with TargetLock(out), disk_errors(out):
        undo(out, PARTS)
        _check_target(out, replace)
        staging = out / f"{STAGING_PREFIX}{uuid.uuid4().hex}"
        try:
            files, accepted, reasons = _write_data(staging, splits, rejected)
            manifest: dict[str, Any] = {
                "schema_version": SCHEMA_VERSION,
                "kind": kind,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "ojak_version": version(),
                "config": dict(config),
                "inputs": [_input(item, out) for item in inputs],
                "files": files,
                "counts": _counts(accepted, reasons, counts or {}),
                "stats": dict(stats or {}),
            }
            _write_card(out, staging, manifest, _split_rows(files))
            _write_manifest(staging, manifest)
            swap_in(out, staging, PARTS)
        finally:
            remove(staging)
    return Artifact.open(out)


def verify(path: Path | str) -> Artifact:
    """The artifact in the folder `path`, after every hash and every count in its manifest was checked.

    Raises VerificationFailed, naming the file, for anything missing, changed, added, linked or miscounted,
    and InputRefused if there is no artifact.
    """
    artifact = Artifact.open(path)
    _check_extra(artifact)
    for entry in artifact.files:
        _check_content(artifact.path, entry)
    _check_counts(artifact)
    return artifact


def read(path: Path | str, *, warn: Warn = warn_user) -> Iterator[AnyRecord]:
    """The records of an artifact, of a Parquet file, or of JSON lines (messages): told by content.

    Raises InputRefused if the path is none of these. `warn` is called with what a person should know, such as
    a last line that was cut off.
    """
    path = Path(path)
    if path.is_dir():
        return Artifact.open(path).records()
    if not path.is_file():
        raise InputRefused(
            f"{path} is not there", fix="give an artifact's folder, a Parquet file or JSON lines"
        )
    return read_parquet(path) if is_parquet(path) else read_records(path, warn)


def _data_files(files: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    for entry in files:
        match = DATA_FILE.fullmatch(entry["path"])
        if match:
            yield entry, match[1]


def _split_rows(files: list[dict[str, Any]]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for entry, split in _data_files(files):
        rows[split] = rows.get(split, 0) + entry["rows"]
    return rows


def _check_names(kind: str, splits: Mapping[str, object]) -> None:
    if not KIND.fullmatch(kind):
        raise UsageError(
            f"{kind!r} is no name for a kind of artifact", fix="use lower-case letters, digits, - and _"
        )
    wrong = [name for name in splits if not _SPLIT.fullmatch(name)]
    if wrong or not splits:
        raise UsageError(f"{wrong} cannot be names of splits", fix="use lower-case letters, digits and _")


def _check_target(out: Path, replace: bool) -> None:
    """Replace only what ojak wrote, and that only when asked to."""
    refuse_within(out)
    there = [name for name in PARTS if os.path.lexists(out / name)]
    if MANIFEST in there:
        if not replace:
            raise target_exists(out / MANIFEST, why="the folder holds a finished artifact")
        _check_own_manifest(out)
    elif there:
        raise target_exists(out / there[0], why="it is not part of an artifact, so it is not ours to replace")


def refuse_within(out: Path) -> None:
    """Raises UsageError where `out` lies among the shards of an artifact, which would no longer verify."""
    place = out.resolve()
    for folder in (place, *place.parents):
        if folder.name in (DATA, REJECTED) and (folder.parent / MANIFEST).is_file():
            raise UsageError(
                f"{out} lies in the artifact {folder.parent}",
                why="what is added to its files makes it fail `ojak verify`",
                fix="choose a folder outside it",
            )


def refuse_inside(out: Path, paths: Sequence[Path]) -> None:
    """Raises UsageError where a result would lie in a folder that is read for it."""
    place = out.resolve()
    for path in paths:
        if path.resolve() in (place, *place.parents):
            raise UsageError(
                f"{out} lies in {path}, which is read",
                why="the next run would read what this one wrote",
                fix="choose a folder outside it",
            )


def _check_own_manifest(out: Path) -> None:
    try:
        parse_manifest(out, read_manifest(out))
    except OjakError as error:
        raise target_exists(out / MANIFEST, why=f"it cannot be replaced: {error.what}") from error


def _write_data(
    staging: Path, splits: Mapping[str, Iterable[Record]], rejected: Iterable[Rejected]
) -> tuple[list[dict[str, Any]], int, Counter[str]]:
    """Write the shards; their entries in the manifest, the number of records, the rejections by reason."""
    staging.mkdir(parents=True)
    iterators, record_type = _peek(splits)
    digests = bytearray()
    files: list[dict[str, Any]] = []
    (staging / DATA).mkdir()
    for split, records in iterators.items():
        shards = write_shards(staging / DATA, split, record_type, _digested(records, digests))
        files += [_entry(staging, path, rows) for path, rows in shards]
    _check_ids(staging, files, digests)
    fsync_dir(staging / DATA)
    reasons: Counter[str] = Counter()
    turned_away = iter(rejected)
    first = next(turned_away, None)
    if first is not None:
        (staging / REJECTED).mkdir()
        counted = _count(itertools.chain([first], turned_away), reasons)
        shards = write_shards(staging / REJECTED, "part", Rejected, counted)
        files += [_entry(staging, path, rows) for path, rows in shards]
        fsync_dir(staging / REJECTED)
    return files, len(digests) // DIGEST_BYTES, reasons


def _peek(splits: Mapping[str, Iterable[Record]]) -> tuple[dict[str, Iterator[Record]], type[AnyRecord]]:
    """The splits as iterators, and the type of the first record; of no records at all, a conversation's."""
    iterators: dict[str, Iterator[Record]] = {}
    record_type: type[AnyRecord] | None = None
    for split, records in splits.items():
        iterator = iter(records)
        first = list(itertools.islice(iterator, 1)) if record_type is None else []
        record_type = type(first[0]) if first else record_type
        iterators[split] = itertools.chain(first, iterator)
    return iterators, record_type or Conversation


def _digested(records: Iterable[Record], digests: bytearray) -> Iterator[Record]:
    """The records, of whose ids some bytes each are kept: the ids of a million rows do not belong into memory."""
    for record in records:
        digests += _digest(record.id)
        yield record


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _check_ids(staging: Path, files: list[dict[str, Any]], digests: bytearray) -> None:
    """Raises InputRefused if two records have one id. Digests may agree by chance, so the ids themselves decide."""
    import numpy as np

    found = np.sort(np.frombuffer(digests, dtype=np.uint64))
    double = {each.tobytes() for each in found[1:][found[1:] == found[:-1]][:MOST_DOUBLE]}
    seen: set[str] = set()
    for entry in files if double else ():
        for name in column_values(staging / entry["path"], "id"):
            if _digest(name) in double:
                if name in seen:
                    raise InputRefused(
                        f"two records have the id {name!r}", why="an id names one row of an artifact"
                    )
                seen.add(name)


def _count(rejected: Iterable[Rejected], reasons: Counter[str]) -> Iterator[Rejected]:
    for record in rejected:
        reasons[record.reason] += 1
        yield record


def _entry(root: Path, path: Path, rows: int) -> dict[str, Any]:
    return {
        "path": path.relative_to(root).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "rows": rows,
    }


def _counts(accepted: int, reasons: Counter[str], given: Mapping[str, Any]) -> dict[str, Any]:
    if given.keys() - COUNTS:
        raise UsageError(
            f"{sorted(given.keys() - COUNTS)} are no counts of an artifact", fix=f"give {sorted(COUNTS)}"
        )
    counted: dict[str, Any] = {"accepted": accepted, "rejected": dict(sorted(reasons.items()))}
    counts = {"rows": 0, **counted, "failed": 0, **given}
    total = counts["accepted"] + sum(counts["rejected"].values()) + counts["failed"]
    counts["rows"] = given.get("rows", total)
    if counts["rows"] != total or any(counts[name] != counted[name] for name in counted):
        raise VerificationFailed(
            f"the counts do not add up: {counts}",
            why=f"{accepted} records and {reasons.total()} rejected rows came in",
        )
    return counts


def _input(item: Input, out: Path) -> dict[str, Any]:
    """An input's entry in the manifest: its path as seen from `out`, the hash of its manifest or bytes."""
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, (str, Path)) and Path(item).is_file():
        return {"path": os.path.relpath(item, out), "sha256": sha256_file(Path(item))}
    artifact = item if isinstance(item, Artifact) else Artifact.open(item)
    return {"path": os.path.relpath(artifact.path, out), "manifest_sha256": artifact.manifest_sha256}


def _encoded(manifest: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(manifest, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        return text.encode()
    except (TypeError, ValueError) as error:
        raise InputRefused(
            "the settings or statistics of the artifact are not JSON", why=str(error)
        ) from error


def _write_manifest(staging: Path, manifest: dict[str, Any]) -> None:
    write_synced(staging / MANIFEST, _encoded(manifest))
    fsync_dir(staging)


def _write_card(out: Path, staging: Path, manifest: dict[str, Any], splits: dict[str, int]) -> None:
    _encoded(manifest)  # what is no JSON is refused before the card reads it
    text = _card.render(manifest, splits, _card.ancestors(out, manifest))
    write_synced(staging / CARD, text.encode())
    manifest["files"].append(_entry(staging, staging / CARD, 0))


def _check_file(root: Path, entry: dict[str, Any]) -> None:
    path = root / entry["path"]
    if path.is_symlink() or (path.parent != root and path.parent.is_symlink()):
        raise VerificationFailed(f"{path} is a link", why="an artifact holds its own files")
    if not path.is_file():
        raise VerificationFailed(f"{path} is missing", why="the manifest lists it")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise VerificationFailed(
            f"{path} has changed", why=f"it has {size} bytes; the manifest says {entry['bytes']}"
        )


def _check_content(root: Path, entry: dict[str, Any]) -> None:
    path = root / entry["path"]
    found = sha256_file(path)
    if found != entry["sha256"]:
        raise VerificationFailed(
            f"{path} has changed", why=f"its SHA-256 is {found}; the manifest says otherwise"
        )
    rows = row_count(path) if path.suffix == ".parquet" else 0
    if rows != entry["rows"]:
        raise VerificationFailed(f"{path} holds {rows} rows", why=f"the manifest says {entry['rows']}")


def _check_extra(artifact: Artifact) -> None:
    listed = {entry["path"] for entry in artifact.files}
    for folder in (DATA, REJECTED):
        path = artifact.path / folder
        if path.is_symlink():
            raise VerificationFailed(f"{path} is a link", why="an artifact holds its own files")
        names = sorted(f"{folder}/{item.name}" for item in path.iterdir()) if path.is_dir() else []
        extra = [name for name in names if name not in listed]
        if extra:
            raise VerificationFailed(
                f"{artifact.path / extra[0]} is not in the manifest", why="it was added later"
            )


def _check_counts(artifact: Artifact) -> None:
    counts, reasons = artifact.counts, Counter[str]()
    for entry in artifact.files:
        if REJECTED_FILE.fullmatch(entry["path"]):
            reasons.update(column_counts(artifact.path / entry["path"], "reason"))
    kept = sum(artifact.splits.values())
    if kept != counts["accepted"] or dict(reasons) != counts["rejected"]:
        raise VerificationFailed(
            f"{artifact.path}: the files hold {kept} records and {dict(reasons)}",
            why=f"the manifest says {counts}",
        )
    if counts["rows"] != kept + reasons.total() + counts["failed"]:
        raise VerificationFailed(f"{artifact.path}: the counts do not add up", why=str(counts))
