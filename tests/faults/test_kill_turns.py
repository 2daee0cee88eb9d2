"""kill -9 in runs of several turns and several answers, and in runs of personas: the data of a run without kills."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from magpie_processes import running
from test_kill import committed, sent

from ojak.artifact import verify
from scripted_runs import data

ROWS, KILLS = 40, 12
RUNS: dict[str, dict[str, Any]] = {
    "turns": {"settings": {"turns": 3}},
    "responses": {"settings": {"responses": 3}},
    "both": {"settings": {"turns": 2, "responses": 2}},
    "personas": {"personas": {"rounds": 3, "relatives": 2}},
}


def task_of(kind: str, tmp_path: Path) -> dict[str, Any]:
    task = RUNS[kind]
    if kind != "personas":
        return task
    source = tmp_path / "texts.txt"
    source.write_text("\n\n".join(f"Text {n} " + "x" * 1500 for n in range(6)), "utf-8")
    return {"personas": {**task["personas"], "source": str(source)}}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", RUNS)
def test_kills_change_nothing_and_no_finished_request_is_sent_again(tmp_path: Path, kind: str) -> None:
    out, log, draw = tmp_path / "killed", tmp_path / "log", random.Random(kind)
    task, killed = task_of(kind, tmp_path), 0
    with running() as runs:
        assert runs.run(tmp_path / "whole", ROWS, **task) == 0
        for number in range(KILLS):
            before, known = len(sent(log)), committed(out)
            moment = (draw.randrange(0, 12), draw.uniform(0, 0.004))
            status = runs.run(out, ROWS, log=str(log), pause_s=0.001, seed=number, kill_after=moment, **task)
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            assert not set(sent(log, before)) & known.keys()
            assert known.items() <= committed(out).items()
        before, known = len(sent(log)), committed(out)
        assert runs.run(out, ROWS, log=str(log), **task) == 0
    assert not set(sent(log, before)) & known.keys()
    assert killed >= 8, "the kills came too late to test anything"
    assert data(verify(out)) == data(verify(tmp_path / "whole"))
