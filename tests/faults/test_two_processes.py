"""Two processes on one folder, let go at the same moment: one works, the other is told who does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ojak.errors
from ojak.artifact import verify

ROUNDS = 50

# A round: read the moment to start at, spin until then, try, tell how it went, and hold on until told to let
# go.
RACER = """
import json, os, sys, time
from pathlib import Path
from ojak.artifact import TargetLock, publish
from ojak.errors import Locked, OjakError
from ojak.records import Document

def tell(**what):
    print(json.dumps(what), flush=True)

def hold(out):
    with TargetLock(out):
        tell(won=True)
        sys.stdin.readline()

def write(out):
    records = (Document(f"{os.getpid()}-{row}", "x") for row in range(50))
    publish(out, kind="race", records=records, config={"pid": os.getpid()})
    tell(won=True)

publish(Path(sys.argv[1]) / f"warm-up-{os.getpid()}", kind="race", records=[], config={})
tell(ready=True)
for line in sys.stdin:
    task = json.loads(line)
    while time.time() < task["at"]:
        pass
    try:
        {"hold": hold, "write": write}[task["do"]](Path(task["out"]))
    except OjakError as error:
        tell(won=False, kind=type(error).__name__, code=error.exit_code, message=str(error))
"""


class Racer:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RACER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(ojak.errors.__file__).parents[1])},
        )

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, object]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def racers(tmp_path: Path) -> Iterator[list[Racer]]:
    both = [Racer(tmp_path) for _ in range(2)]
    for racer in both:
        assert racer.hear() == {"ready": True}
    yield both
    for racer in both:
        racer.process.kill()
        racer.process.communicate()


def race(racers: list[Racer], do: str, out: Path) -> list[dict[str, object]]:
    task = json.dumps({"at": time.time() + 0.01, "do": do, "out": str(out)})
    for racer in racers:
        racer.send(task)
    return [racer.hear() for racer in racers]


@pytest.mark.timeout(60)
def test_one_holds_the_lock_and_the_other_is_told_who(tmp_path: Path, racers: list[Racer]) -> None:
    for turn in range(ROUNDS):
        out = tmp_path / f"out{turn % 5}"
        answers = race(racers, "hold", out)
        assert sorted(bool(answer["won"]) for answer in answers) == [False, True]
        winner = next(racer for racer, answer in zip(racers, answers, strict=True) if answer["won"])
        loser = next(answer for answer in answers if not answer["won"])
        assert (loser["kind"], loser["code"]) == ("Locked", 8)
        assert f"process {winner.process.pid} on {os.uname().nodename}" in str(loser["message"])
        winner.send("")
        while (out / ".lock.json").exists():
            time.sleep(0.001)


@pytest.mark.timeout(60)
def test_one_publishes_and_the_other_is_refused(tmp_path: Path, racers: list[Racer]) -> None:
    for turn in range(ROUNDS // 3):
        out = tmp_path / f"out{turn}"
        answers = race(racers, "write", out)
        won = [racer.process.pid for racer, answer in zip(racers, answers, strict=True) if answer["won"]]
        assert len(won) == 1
        refusal = next(answer for answer in answers if not answer["won"])
        assert refusal["kind"] in ("Locked", "TargetExists")
        artifact = verify(out)
        assert artifact.manifest["config"] == {"pid": won[0]}
        assert {item.name for item in out.iterdir()} == {".lock", "data", "README.md", "manifest.json"}


def test_a_killed_owner_holds_nothing(tmp_path: Path, racers: list[Racer]) -> None:
    first, second = racers
    task = json.dumps({"at": 0, "do": "hold", "out": str(tmp_path / "out")})
    first.send(task)
    assert first.hear()["won"]
    second.send(task)
    assert not second.hear()["won"]
    first.process.kill()
    first.process.wait()
    second.send(task)
    assert second.hear()["won"]
