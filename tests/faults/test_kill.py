"""kill -9 in the middle of Magpie: the resumed run ends with the data of an uninterrupted one, and pays nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from magpie_processes import running

from ojak.artifact import verify
from ojak.synthesize.folder import LEDGER
from scripted_runs import data, run

ROWS, KILLS = 80, 20
REAL = "smollm2-135m-instruct"
REAL_ROWS = 12
Finished = dict[tuple[int, str], float]  # (row, kind) -> when it was committed


def committed(out: Path) -> Finished:
    """What the ledger holds, seen by another process: nothing if there is none yet."""
    if not (out / LEDGER).exists():
        return {}
    try:
        with closing(sqlite3.connect(f"{(out / LEDGER).as_uri()}?mode=ro", uri=True)) as db:
            return {
                (row, kind): made
                for row, kind, made in db.execute('SELECT "row", kind, created FROM requests')
            }
    except sqlite3.OperationalError:  # it is just being made
        return {}


def sent(log: Path, after: int = 0) -> list[tuple[int, str]]:
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    return [(row, kind) for row, kind in map(json.loads, lines[after:])]


def moments(seed: int) -> list[tuple[int, float]]:
    """After so many requests and seconds; the last few fall into the end of the run, where it publishes."""
    draw = random.Random(seed)
    early = [(draw.randrange(0, 13), draw.uniform(0, 0.004)) for _ in range(KILLS - 6)]
    return early + [(0, draw.uniform(0, 0.15)) for _ in range(6)]


@pytest.mark.timeout(120)
def test_twenty_kills_change_nothing_and_no_finished_request_is_sent_again(tmp_path: Path) -> None:
    whole = data(run(tmp_path / "whole", ROWS))
    out, log = tmp_path / "killed", tmp_path / "log"
    killed, progress = 0, []
    with running() as runs:
        for number, moment in enumerate(moments(seed=1)):
            before, known = len(sent(log)), committed(out)
            status = runs.run(out, ROWS, log=str(log), pause_s=0.001, seed=number, kill_after=moment)
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            assert not set(sent(log, before)) & known.keys()
            assert known.items() <= committed(out).items()
            progress.append(len(known))
        before, known = len(sent(log)), committed(out)
        assert runs.run(out, ROWS, log=str(log)) == 0
    assert not set(sent(log, before)) & known.keys()
    assert killed >= 15, "the kills came too late to test anything"
    assert len(set(progress)) > 8, "the kills came at the same moment"
    assert data(verify(out)) == whole
    assert {item.name for item in out.iterdir()} <= {
        ".lock", LEDGER, "data", "rejected", "README.md", "manifest.json",
    }  # fmt: skip


@pytest.mark.timeout(60)
def test_kills_while_publishing_leave_the_earlier_artifact_or_the_new_one(tmp_path: Path) -> None:
    out = tmp_path / "d"
    old, draw, seen = data(run(out, 40)), random.Random(2), set()
    new = data(run(tmp_path / "whole", 44))
    with running() as runs:
        assert runs.run(tmp_path / "warm", 4) == 0
        for _ in range(10):
            log = tmp_path / "log"
            status = runs.run(out, 44, log=str(log), kill_after=(0, draw.uniform(0.005, 0.12)))
            seen.add(status)
            if (out / "manifest.json").exists() and not (out / ".swap.json").exists():
                assert data(verify(out)) in (old, new)
            if status == 0:
                break
        assert runs.run(out, 44) == 0
    assert -signal.SIGKILL in seen
    assert data(verify(out)) == new


def real_run(out: Path) -> subprocess.Popen[bytes]:
    command = f"synthesize magpie --model {REAL} --rows {REAL_ROWS} --max-instruction-tokens 24 --max-response-tokens 24"
    return subprocess.Popen(
        [sys.executable, "-m", "ojak", *command.split(), "--grid", "0.7:1.0", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_at(process: subprocess.Popen[bytes], out: Path, requests: int) -> None:
    while process.poll() is None and len(committed(out)) < requests:
        time.sleep(0.002)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended by itself: {said.decode()}"


@pytest.mark.real
@pytest.mark.timeout(240)
def test_three_kills_of_the_real_engine_change_nothing(tmp_path: Path) -> None:
    whole, out = real_run(tmp_path / "whole"), tmp_path / "killed"
    kept: list[Finished] = [{}]
    for requests in (1, 8, REAL_ROWS - 1):
        kill_at(real_run(out), out, requests)
        kept.append(committed(out))
        assert kept[-2].items() <= kept[-1].items()
        assert len(kept[-1]) >= requests
        assert not (out / "manifest.json").exists(), "the kill came too late to test anything"
    last = real_run(out)
    _, said = last.communicate()
    assert last.returncode in (0, 3), said.decode()  # 3: of so few and so short rows the rules may keep none
    assert kept[-1].items() <= committed(out).items(), "a finished request was sent again"
    _, said = whole.communicate()
    assert whole.returncode == last.returncode, said.decode()
    assert committed(out).keys() == committed(tmp_path / "whole").keys()
    assert data(verify(out)) == data(verify(tmp_path / "whole"))
    assert verify(out).counts["rows"] == REAL_ROWS
