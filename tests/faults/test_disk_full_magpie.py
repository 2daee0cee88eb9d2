"""A disk that fills up during a Magpie run: exit code 6, the earlier artifact whole, and the run can go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from magpie_processes import running

from ojak.artifact import Artifact, verify
from ojak.synthesize.folder import LEDGER
from scripted_runs import data, run

ROWS = 60


@pytest.mark.timeout(60)
def test_no_room_at_any_point_of_the_run(tmp_path: Path) -> None:
    """Limits on the size of a file, from one that stops the ledger at once to one that stops nothing."""
    whole, out = data(run(tmp_path / "whole", ROWS)), tmp_path / "d"
    before = run(out, 12)
    kept, ends = [(out / LEDGER).stat().st_size], []
    with running() as runs:
        for limit in (100, 30_000, 80_000, 200_000, 10**9):
            ends.append(runs.run(out, ROWS, file_limit=limit))
            kept.append((out / LEDGER).stat().st_size)
            if ends[-1] == 0:
                break
            assert Artifact.open(out) == before
            assert verify(out) == before
            assert not list(out.glob(".staging-*"))
    assert set(ends[:-1]) == {6}
    assert ends[-1] == 0
    assert len(ends) >= 3
    assert kept == sorted(kept)
    assert data(verify(out)) == whole
