"""A train and a test split: exact sizes, the same on every machine, and stable while the data grow.

Each row gets a number from its id and the seed alone; the rows with the smallest numbers are the test split.
So a row's place does not depend on the order of the rows, and rows added later move few others from one split
to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ojak._settings import Settings
from ojak.artifact import Artifact, publish
from ojak.errors import InputRefused, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAW_BYTES = 16  # of a row's number: two words for numpy


class SplitConfig(Settings):
    """How to split: `test` is a share of the rows if it is below 1, a number of rows otherwise."""

    test: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    seed: int = 0


def split(source: Artifact | Path | str, out: Path | str, config: SplitConfig | None = None) -> Artifact:
    """Publish the rows of `source` (all its splits) in `out` as an artifact with the splits "train" and
    "test".

    Rows keep their order and every field. Raises InputRefused for fewer than two rows, UsageError for a test
    split that leaves no row to train on or is no whole number of rows, and what `publish` raises.
    """
    config = config or SplitConfig()
    artifact = source if isinstance(source, Artifact) else Artifact.open(source)
    rows = sum(artifact.splits.values())
    number = size_of_test(rows, config.test)
    chosen = choose((record.id for record in artifact.records()), number, config.seed)
    return publish(
        Path(out),
        kind="split",
        splits={
            "train": compress(artifact.records(), ~chosen),
            "test": compress(artifact.records(), chosen),
        },
        config=config.model_dump(),
        inputs=[artifact],
        counts={"rows": rows},
        stats={"train": rows - number, "test": number},
    )


def size_of_test(rows: int, test: float) -> int:
    """The size of the test split: `test` of `rows` rounded half up and at least 1, or `test` itself from 1 on."""
    if rows < 2:
        raise InputRefused(
            f"{rows} rows cannot be split", why="each of train and test needs a row", fix="make more rows"
        )
    number = max(1, int(rows * test + 0.5)) if test < 1 else int(test)
    if number >= rows or (test >= 1 and number != test):
        raise UsageError(
            f"a test split of {test:g} cannot be taken from {rows} rows",
            why="it must be a share below 1 or a whole number of rows, and leave rows to train on",
        )
    return number


def choose(ids: Iterable[str], number: int, seed: int) -> NDArray[np.bool_]:
    """[rows]: whether a row is one of the `number` whose ids have the smallest hashes with `seed`."""
    import numpy as np

    draws = bytearray()
    for identity in ids:
        draws += _draw(identity, seed)
    high, low = np.frombuffer(draws, dtype=">u8").reshape(-1, 2).T
    chosen = np.zeros(len(high), dtype=bool)
    chosen[np.lexsort((low, high))[:number]] = True
    return chosen


def _draw(identity: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{identity}".encode("utf-8", "surrogatepass")).digest()[:DRAW_BYTES]
