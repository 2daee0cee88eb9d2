"""What is said of a row with all rows in sight, and what is read and written on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
from stand_ins import curate, reasons, row

from ojak.curate import columns, run
from ojak.errors import ResourceExhausted


def test_no_rows_and_one(tmp_path: Path) -> None:
    assert columns.near_duplicates([], 0.7, "word").tolist() == []
    assert columns.near_duplicates(["one text"], 0.7, "word").tolist() == [0]
    one = columns.nearest(np.eye(1, 4, dtype=np.float32))
    assert (one.distance.tolist(), one.index.tolist()) == ([2.0], [-1])


def test_the_manifest_says_how_neighbours_were_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_embedder(monkeypatch)
    rows = [row(i) for i in range(4)]
    near = curate(tmp_path, rows, "[{min_neighbor_distance: {above: 0}}]")
    assert near.stats["neighbors"] == {"exact": True, "recall": [1.0, 1.0, 1.0]}
    assert curate(tmp_path, rows, "[]", out="b").stats["neighbors"] == {}


def test_a_disk_that_is_full_at_the_last_row_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file holds back is written when it is closed: there, too, rows must not be lost in silence."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    opened = Path.open

    def full(path: Path, *mode: Any, **options: Any) -> Any:
        is_bucket = path.name.startswith("bucket-") and mode == ("wb",)
        return opened(Path("/dev/full") if is_bucket else path, *mode, **options)

    monkeypatch.setattr(run.Path, "open", full)
    with pytest.raises(ResourceExhausted, match="no space left"):
        curate(tmp_path, [row(i) for i in range(3)], "[]", "pick: {by: longest, number: 2, shuffle: 1}")


def test_test_sets_may_have_any_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    run_of_words = "how many apples does Ann have left after she gave three away"
    pq.write_table(pa.table({"question": [run_of_words], "n": [3]}), tmp_path / "exam.parquet")
    rows = [row(0, f"Tell me, {run_of_words}?"), row(1, "Tell me of apples.")]
    rules = f"[{{no_contamination: {{against: ['{tmp_path}/exam.parquet'], n: 8}}}}]"
    assert reasons(curate(tmp_path, rows, rules)) == {0: "no_contamination"}
