"""The rows that something is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ojak.errors import UsageError
from ojak.records import AnyRecord
from ojak.sources import read_all


def rows_at(data: Path | str, split: str | None) -> Iterator[AnyRecord]:
    """What `read_all` gives. Raises UsageError where there is nothing, before the first row is asked for."""
    if not Path(data).exists():
        raise UsageError(
            f"there is nothing at {str(data)!r}", fix="give --data a file, a folder or an artifact"
        )
    return read_all(Path(data), split)
