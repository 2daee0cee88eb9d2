"""Ctrl-C and SIGTERM through the command line: the exit code, what is done published, and the run can go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_kill import committed
from typer.testing import CliRunner

from ojak.artifact import verify
from ojak.cli.app import app
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import Stopped
from ojak.synthesize import run as synthesis
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import config, data

ROWS = 600


def command(out: Path, rows: int = ROWS, *more: str) -> list[str]:
    words = f"synthesize magpie --model scripted --rows {rows} --json".split()
    return [sys.executable, "-m", "ojak", *words, "--out", str(out), *more]


def whole(out: Path) -> dict[str, str]:
    return data(synthesize_magpie(config(out, ROWS), engine=ScriptedEngine()))


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "d"
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(committed(out)) < 40:
        time.sleep(0.005)
    process.send_signal(number)
    said, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "run it again to go on" in told
    assert "Traceback" not in told
    stopped, kept = verify(out), committed(out)
    assert 0 < stopped.counts["rows"] < ROWS
    assert stopped.stats["stopped"] == "signal"
    printed = json.loads(said)
    assert (printed["stopped"], printed["out"]) == ("signal", str(out))
    assert printed["rows"] == stopped.counts["rows"]
    assert printed["pending"] == ROWS - printed["rows"]
    again = synthesize_magpie(config(out, ROWS), engine=ScriptedEngine(shuffle_seed=1))
    assert data(again) == whole(tmp_path / "whole")
    assert kept.items() <= committed(out).items()


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_recipe_with_its_object(tmp_path: Path, number: signal.Signals, code: int) -> None:
    recipe = f"version: 1\nname: r\nstages:\n  magpie: {{model: scripted, rows: {ROWS}}}\n  split:\n"
    (tmp_path / "r.yaml").write_text(recipe, "utf-8")
    words = [
        sys.executable,
        "-m",
        "ojak",
        "run",
        str(tmp_path / "r.yaml"),
        "--out",
        str(tmp_path / "d"),
        "--json",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(committed(tmp_path / "d/magpie")) < 40:
        time.sleep(0.005)
    process.send_signal(number)
    said, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    printed = json.loads(said)
    (stage,) = printed["stages"]
    assert (printed["stopped"], stage["name"], stage["stopped"]) == ("signal", "magpie", "signal")
    assert 0 < stage["facts"]["rows"] < ROWS


@pytest.mark.parametrize("error", [Stopped(15, "stopped by SIGTERM"), KeyboardInterrupt()])
def test_a_signal_before_the_first_row_prints_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def load(*_given: object) -> None:
        raise error

    monkeypatch.setattr(synthesis, "load_engine", load)
    result = CliRunner().invoke(app, command(tmp_path / "d")[3:])
    assert json.loads(result.stdout) == {"out": str(tmp_path / "d"), "stopped": "signal"}
    assert result.exit_code == (143 if isinstance(error, Stopped) else 130)
    assert "run the same command again" in result.stderr or isinstance(error, Stopped)


@pytest.mark.timeout(60)
def test_a_budget_ends_the_command_with_its_own_code(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, 60, "--limit-tokens", "300"),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert told["stopped"] == "limit_tokens"
    assert told["completion_tokens"] >= 300
    assert told["rows"] == told["accepted"] + sum(told["rejected"].values()) + told["failed"] < 60
