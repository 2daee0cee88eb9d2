"""`ojak verify`, `ojak show`, `ojak export-data`: artifacts checked, read and handed to other programs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ojak.cli.terminal import one_line, say, visible, write, write_json, write_pages
from ojak.cli.words import Json, place

Folder = Annotated[Path, typer.Argument(parser=place, metavar="DIR", help="The folder of an artifact.")]


def verify(folder: Folder, as_json: Json = False) -> None:
    """Check every hash and every count of an artifact.

    Exit 0 only if all of them hold, 7 if one does not. Files beside the artifact (a ledger, notes) are left
    unread. Of a run that was stopped it says what is still to be done; its data are whole as far as they go, so
    that this is no error.
    """
    from ojak.artifact import verify as verify_artifact

    artifact = verify_artifact(folder)
    counts = artifact.counts
    stopped, pending = artifact.stats.get("stopped"), artifact.stats.get("pending")
    if as_json:
        found = {"out": str(folder), "kind": artifact.kind, "files": len(artifact.files), **counts}
        write_json({**found, "stopped": stopped, "pending": pending})
    else:
        rejected = sum(counts["rejected"].values())
        write(
            f"{folder}: sound ({artifact.kind}, {len(artifact.files)} files, {counts['rows']} rows = "
            f"{counts['accepted']} kept + {rejected} rejected + {counts['failed']} failed)"
        )
        if stopped:
            write(
                f"not finished: it stopped at {one_line(stopped)}; the data are whole as far as they go,"
                f" {one_line(pending)} rows are pending; {_resume(folder, artifact.kind)}"
            )


def _resume(folder: Path, kind: str) -> str:
    """How to go on with a run in `folder`, which may be a stage of a recipe."""
    from ojak._recipe_run import RECORD

    if (folder / RECORD).exists():
        return "go on with `ojak run` and the recipe it was begun with"
    return f"go on with `ojak synthesize {kind} --out {folder}` and the settings it was begun with"


def show(
    folder: Folder,
    rows: Annotated[int, typer.Option(min=0, help="How many rows; 0 for all.")] = 10,
    rejected: Annotated[bool, typer.Option("--rejected", help="The rows turned away, with reasons.")] = False,
    as_json: Json = False,
) -> None:
    """Read an artifact's rows, or those that were rejected.

    In a pager on a terminal. Hidden characters are shown as visible signs.
    """
    from ojak.artifact import Artifact
    from ojak.records import to_row

    artifact = Artifact.open(folder)
    found = artifact.rejected() if rejected else artifact.records()
    chosen = islice(found, rows or None)
    if as_json:
        write_json({"rows": [to_row(record) for record in chosen]})
    else:
        write_pages(text for record in chosen for text in record_lines(to_row(record)))


def record_lines(row: dict[str, Any]) -> Iterator[str]:
    """A record for reading: a heading, then its turns or its text, safe to print."""
    reason = (
        f"   rejected: {one_line(row['reason'])} (in {one_line(row['stage'])})" if "reason" in row else ""
    )
    yield f"── {one_line(row['id'])}{reason}"
    parts = ("messages",) if row.get("messages") else ("prompt", "chosen", "rejected")
    for part in parts:
        for turn in row.get(part) or []:
            yield (
                f"{part[:8]} {one_line(turn['role'])}:"
                if part != "messages"
                else f"{one_line(turn['role'])}:"
            )
            yield _indented(turn["content"])
    if "text" in row and (row["text"] or not row.get("messages")):
        yield "raw text:" if "reason" in row else "text:"
        yield _indented(row["text"])
    yield ""


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))


def export_data(
    folder: Folder,
    fmt: Annotated[Literal["messages", "sharegpt", "alpaca", "parquet"], typer.Option("--format")],
    out: Annotated[Path, typer.Option(parser=place, metavar="PATH", help="The new file.")],
    split: Annotated[str | None, typer.Option(help="Only this split, such as train.")] = None,
    as_json: Json = False,
) -> None:
    """Write an artifact's rows as a file for another program.

    What the format cannot hold is counted and said.
    """
    from ojak.formats import export

    result = export(folder, fmt, out, split=split)
    for warning in result.warnings:
        say(warning, "yellow", "note: ")
    if as_json:
        found = {"rows": result.rows, "skipped": result.skipped, "warnings": list(result.warnings)}
        write_json({**found, "format": fmt, "out": str(out)})
        return
    skipped = "".join(f"; {number} left out: {reason}" for reason, number in result.skipped.items())
    say(f"{result.rows:,} rows{skipped}")
    write(out)
