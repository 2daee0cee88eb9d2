"""Rows of any format, gathered into one artifact with the splits train, test and validation.

The sizes are exact. Which rows are set aside follows from their ids and the seed alone, as in `split`; without a seed
rows keep the order of their files: the first are to train on, the next to test, the last to validate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field, computed_field, field_validator

from ojak._progress import silent
from ojak._settings import Settings
from ojak.artifact import Artifact, publish
from ojak.curate.split import choose
from ojak.errors import InputRefused, UsageError
from ojak.formats import load
from ojak.model.files import cached_sha256
from ojak.records import Record, Rejected
from ojak.sources import evenly

SPLITS = ("train", "test", "validation")


class RowsConfig(Settings):
    """data: files of any format, or artifacts. test, validation: a share of the rows below 1, a number of rows
    otherwise (0: none). seed: what decides where a row goes; none: the order of the files. limit: at most so many rows,
    taken evenly.
    """

    data: tuple[str, ...] = Field(min_length=1)
    test: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    validation: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    seed: int | None = 0
    limit: int | None = Field(default=None, ge=1)

    @field_validator("data")
    @classmethod
    def _is_there(cls, data: tuple[str, ...]) -> tuple[str, ...]:
        missing = [text for text in data if not text or not Path(text).exists()]
        if missing:
            raise ValueError(f"there is nothing at {missing[0][:200]!r}")
        return data

    @computed_field
    @property
    def data_sha256(self) -> tuple[str, ...]:
        """A hash of each of `data`, so that a changed file is a changed setting."""
        paths = map(Path, self.data)
        return tuple(Artifact.open(p).manifest_sha256 if p.is_dir() else cached_sha256(p) for p in paths)


def gather(out: Path | str, config: RowsConfig, *, notify: Callable[[str], None] = silent) -> Artifact:
    """Publish the rows of `config.data` in `out`.

    Rows keep their order and every field. Raises InputRefused for rows that cannot be read, are of several kinds or
    share an id, and for none; UsageError for splits that leave no row to train on; and what `publish` raises.
    """
    records = [record for path in config.data for record in _read(path, notify)]
    records = [records[place] for place in evenly(len(records), config.limit)]
    _check(config, records)
    sizes = split_sizes(len(records), config.test, config.validation)
    parts = _parts(records, sizes, config.seed)
    return publish(
        Path(out),
        kind="rows",
        splits=parts,
        config={**config.model_dump(mode="json"), "data": [Path(path).name for path in config.data]},
        inputs=[
            {"path": Path(p).name, "sha256": d} for p, d in zip(config.data, config.data_sha256, strict=True)
        ],
        stats={name: len(rows) for name, rows in parts.items()},
    )


def _read(path: str, notify: Callable[[str], None]) -> list[Record]:
    found: list[Record] = []
    for record in load(path, warn=notify):
        if isinstance(record, Rejected):
            raise InputRefused(f"{path} holds rows that were turned away", fix="give the rows that were kept")
        found.append(record)
    return found


def _check(config: RowsConfig, records: list[Record]) -> None:
    names = ", ".join(config.data)
    if not records:
        raise InputRefused(f"{names} holds no rows")
    kinds = sorted({type(record).__name__.lower() + "s" for record in records})
    if len(kinds) > 1:
        raise InputRefused(
            f"{names}: rows of several kinds ({', '.join(kinds)})", fix="give each kind a run of its own"
        )


def split_sizes(rows: int, test: float, validation: float) -> tuple[int, int, int]:
    """(train, test, validation): shares of `rows` are rounded half up, and at least one row where not 0.

    Raises UsageError where they are no whole numbers, or leave no row to train on.
    """
    sizes = [_size(rows, wanted) for wanted in (test, validation)]
    train = rows - sum(sizes)
    if train < 1:
        raise UsageError(
            f"test {test:g} and validation {validation:g} cannot be taken from {rows} rows",
            why="they would leave no row to train on",
        )
    return train, sizes[0], sizes[1]


def _size(rows: int, wanted: float) -> int:
    if wanted >= 1 and wanted != int(wanted):
        raise UsageError(f"{wanted:g} is neither a share below 1 nor a whole number of rows")
    share = max(1, int(rows * wanted + 0.5)) if wanted else 0
    return int(wanted) if wanted >= 1 else share


def _parts(
    records: list[Record], sizes: tuple[int, int, int], seed: int | None
) -> Mapping[str, list[Record]]:
    """The rows of each split that has any, in the order in which they came."""
    if seed is None:
        rows = iter(records)
        parts = [list(itertools.islice(rows, size)) for size in sizes]
    else:
        _, test, validation = sizes
        ids = [record.id for record in records]
        # Those with the smallest numbers are the test rows, the next ones the validation rows.
        tested, aside = choose(ids, test, seed), choose(ids, test + validation, seed)
        chosen = (~aside, tested, aside & ~tested)
        parts = [list(itertools.compress(records, mask)) for mask in chosen]
    return {name: part for name, part in zip(SPLITS, parts, strict=True) if part}
