"""Everything that happened to a row, here and in the folders that this one was made from, where they still exist."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ojak._files import sha256_file
from ojak._progress import silent
from ojak.artifact import Artifact
from ojak.curate.filters import MISSING, NoDuplicates, Rule
from ojak.curate.recipe import from_json
from ojak.curate.view import NOTES
from ojak.errors import OjakError, UsageError, VerificationFailed
from ojak.records import AnyRecord, Conversation, Rejected, from_row

MOST_ANCESTORS = 64

Step = dict[str, Any]


def explain_row(folder: Artifact | Path | str, row_id: str) -> dict[str, Any]:
    """{"id", "messages", "history"}: what became of the row, the newest folder first.

    Each step of `history` has "folder", "kind" and "fate": "kept", "rejected" (with "reason"), "absent" (the folder
    has no such row) or "unknown" (with "why": the folder is gone or has changed since). Where the row is there, also
    "tags", "scores" and "meta"; of a curation "rules": each rule with what it asks, its value and its verdict.

    Raises InputRefused if there is no artifact, UsageError if no folder has such a row, VerificationFailed for a file
    that is damaged.
    """
    artifact = folder if isinstance(folder, Artifact) else Artifact.open(folder)
    history = list(_history(artifact, row_id))
    seen = [step for step in history if step["fate"] in ("kept", "rejected")]
    if not seen:
        raise UsageError(
            f"{artifact.path} has no row {row_id[:80]!r}, nor has what it was made from",
            fix="`ojak show DIR` and `ojak show DIR --rejected` print the ids",
        )
    messages = next((step["messages"] for step in seen if step["messages"]), [])
    for step in seen:
        del step["messages"]
    return {"id": row_id, "messages": messages, "history": history}


def _history(artifact: Artifact, row_id: str) -> Iterator[Step]:
    """The steps of a row, breadth first, no folder twice."""
    waiting, known = [artifact], {artifact.manifest_sha256}
    for _ in range(MOST_ANCESTORS):
        if not waiting:
            return
        current = waiting.pop(0)
        yield _step(current, row_id)
        for entry in current.manifest["inputs"]:
            place = Path(os.path.normpath(current.path / str(entry.get("path", ""))))
            if "manifest_sha256" not in entry:
                yield _file_step(place, entry, row_id)
                continue
            found = _ancestor(place, entry)
            if isinstance(found, Artifact):
                if found.manifest_sha256 not in known:
                    known.add(found.manifest_sha256)
                    waiting.append(found)
            else:
                yield found


def _ancestor(place: Path, entry: dict[str, Any]) -> Artifact | Step:
    try:
        artifact = Artifact.open(place)
    except OjakError as error:
        return _unknown(place, error.why or error.what)
    if artifact.manifest_sha256 != entry["manifest_sha256"]:
        return _unknown(place, "it has been made anew since")
    return artifact


def _unknown(place: Path, why: str) -> Step:
    return {"folder": str(place), "kind": "", "fate": "unknown", "why": why}


def _step(artifact: Artifact, row_id: str) -> Step:
    record = find_row(artifact, row_id)
    step: Step = {"folder": str(artifact.path), "kind": artifact.kind}
    step["created"] = artifact.manifest["created"]
    if record is None:
        return {**step, "fate": "absent"}
    step |= _told(record)
    notes = record.meta.get(NOTES)
    if artifact.kind == "curate" and isinstance(notes, dict):
        step["rules"] = _rules(artifact, notes)
        step["rank"] = notes.get("rank")
    return step


def _told(record: AnyRecord) -> Step:
    """What the row itself says."""
    meta = {name: value for name, value in record.meta.items() if name not in (NOTES, "tags", "scores")}
    turned_away = isinstance(record, Rejected)
    tags = getattr(record, "tags", None) or _dict(record.meta.get("tags"))
    scores = getattr(record, "scores", None) or _dict(record.meta.get("scores"))
    found: Step = {
        "fate": "rejected" if turned_away else "kept",
        "tags": tags,
        "scores": scores,
        "meta": meta,
    }
    found |= {"reason": record.reason, "stage": record.stage} if turned_away else {}
    return {**found, "messages": getattr(record, "messages", [])}


def find_row(artifact: Artifact, row_id: str) -> AnyRecord | None:
    """The record with this id, kept or rejected; None if the artifact has none. Raises VerificationFailed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for entry in artifact.files:
        path = artifact.path / entry["path"]
        if path.suffix != ".parquet":
            continue
        try:
            rows = pq.read_table(path, filters=[("id", "==", row_id)]).to_pylist()
            if rows:
                return from_row(rows[0])
        except UnicodeEncodeError:  # an id with half a character, as a shell may pass it on: no row has one
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise VerificationFailed(f"{path} cannot be searched", why=str(error)[:300]) from error
    return None


def _rules(artifact: Artifact, notes: dict[str, Any]) -> list[dict[str, Any]]:
    """Each rule of the curation with its value and its verdict for a row."""
    recipe = from_json(_dict(artifact.manifest["config"].get("recipe")), f"in {artifact.path}")
    skipped = _dict(artifact.stats.get("not_applied"))
    return [
        {"rule": rule.name, "asks": rule.resolved(), **_verdict(rule, notes, skipped)}
        for rule in recipe.rules
    ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _verdict(rule: Rule, notes: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    values, failed, reason = _dict(notes.get("values")), notes.get("failed"), notes.get("reason")
    failed = failed if isinstance(failed, list) else []
    value = values.get(rule.name)
    if rule.name in skipped:
        return {"value": value, "verdict": "not applied", "why": skipped[rule.name]}
    if reason == rule.name and rule.name not in failed:
        return {"value": value, "verdict": "dropped here", "why": "its group had no place left"}
    if rule.name in failed:
        return {"value": value, "verdict": "dropped here" if reason == rule.name else "would drop it, too"}
    if value is None and isinstance(rule, NoDuplicates):
        return {"value": None, "verdict": "not looked at", "why": "it was dropped before"}
    if value is None:
        here = reason == rule.name + MISSING
        return {
            "value": None,
            "verdict": "dropped here" if here else "no value",
            "why": "the value is missing",
        }
    return {"value": value, "verdict": "passed"}


def _file_step(place: Path, entry: dict[str, Any], row_id: str) -> Step:
    """What a file says of the row that was read from it."""
    step: Step = {"folder": str(place), "kind": "file"}
    if not place.is_file():
        return _unknown(place, "the file is gone")
    if sha256_file(place) != entry.get("sha256"):
        return _unknown(place, "the file has changed since")
    from ojak.formats import load

    record = next((item for item in load(place, warn=silent) if item.id == row_id), None)
    if not isinstance(record, Conversation):
        return {**step, "fate": "absent"}
    return {**step, **_told(record)}
