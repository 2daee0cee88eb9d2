"""Two Magpie runs on one folder: the second is refused, the first does not notice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from magpie_processes import running

from ojak.artifact import verify
from ojak.errors import Locked
from scripted_runs import data, run

ROWS = 40


@pytest.mark.timeout(60)
def test_the_second_run_on_a_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "d"
    with running() as runs:
        runs.start(out, ROWS, pause_s=0.02)
        while not (out / ".lock.json").exists():
            time.sleep(0.005)
        with pytest.raises(Locked, match="another process works in") as caught:
            run(out, ROWS)
        assert caught.value.exit_code == 8
        assert runs.end() == 0
    assert data(verify(out)) == data(run(tmp_path / "alone", ROWS))
    assert run(out, ROWS).counts["rows"] == ROWS


@pytest.mark.timeout(60)
def test_the_refused_run_has_its_own_exit_code(tmp_path: Path) -> None:
    with running() as first, running() as second:
        first.start(tmp_path, ROWS, pause_s=0.02)
        assert second.run(tmp_path / "elsewhere", 1) == 0
        while not (tmp_path / ".lock.json").exists():
            time.sleep(0.005)
        assert second.run(tmp_path, ROWS) == 8
        assert first.end() == 0
