"""A calibration that is stopped goes on after the last answer, says how far it is, and ends the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from reading import ReadingEngine, Stops, WritingEngine, chance
from typer.testing import CliRunner

from ojak._progress import Progress
from ojak.cli.app import app
from ojak.engines import remembering
from ojak.engines.scripted import ScriptedEngine
from ojak.judge.calibrate import calibrate_and_keep
from ojak.judge.kept import Calibration, requests_path
from ojak.judge.prompts import Question, Row
from ojak.judge.work import Meter


def opinion(question: Question, row: Row) -> float:
    return chance(question.name, *row)


class Stopping(Stops, ReadingEngine):
    """Ends with Ctrl-C when so many requests and windows are finished; `done` counts them."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__(opinion)
        self.most = most


class Heard:
    def __init__(self) -> None:
        self.states: list[tuple[str, int, int]] = []

    def update(self, state: Progress) -> None:
        self.states.append((state.phase, state.rows_done, state.rows_total))


def plain(found: Calibration) -> dict[str, object]:
    value = found.to_dict()
    del value["speed"]
    return value


def test_it_goes_on_after_the_last_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "WINDOW", 32)
    whole_engine = Stopping()
    whole, path = calibrate_and_keep(whole_engine, rows=12)
    assert whole.speed
    path.unlink()
    done = 0
    for most in (30, 100, 90, 10**9):
        engine = Stopping(most)
        if most < 10**9:
            with pytest.raises(KeyboardInterrupt):
                calibrate_and_keep(engine, rows=12)
            assert requests_path(engine.identity).is_file()
            assert not path.exists()
        else:
            again, _ = calibrate_and_keep(engine, rows=12)
            assert plain(again) == plain(whole)
            assert not again.speed, "what was looked up has no speed"
        done += engine.done
    assert done == whole_engine.done
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("engine", [ReadingEngine(opinion), WritingEngine()])
def test_it_says_before_how_many_requests_and_counts_them(folder: Path, engine: ScriptedEngine) -> None:
    heard, notes = Heard(), []
    calibrate_and_keep(engine, rows=12, progress=heard, notify=notes.append)
    (note,) = notes
    requests = int(
        re.findall(r"^([\d,]+) requests about \d+ rows, 12 of them good$", note)[0].replace(",", "")
    )
    phases = list(dict.fromkeys(phase for phase, _, _ in heard.states))
    assert phases == ["judging", "comparing", "tagging"]
    done = [count for _, count, _ in heard.states]
    assert done == sorted(done)
    assert requests <= done[-1] <= 2 * requests, "labels that could not be read are asked for again"
    if engine.capabilities.scores:
        assert done[-1] <= requests + 8


def test_the_time_left_goes_by_new_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter()
    meter.begin("judging", 110)
    now[0] += 50
    meter.add(10, False)
    assert meter.state.eta_s is None
    for _ in range(10):
        now[0] += 2
        meter.add(1, True)
    assert meter.state.eta_s == pytest.approx(2 * 90)
    assert meter.recalled == 10


def test_the_command_shows_it(folder: Path) -> None:
    words = ["judge", "calibrate", "--model", "scripted", "--rows", "10", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 10
    assert "requests about" in result.stderr
    assert re.search(r"tagging +[\d,]+/[\d,]+ requests +ETA 0:00", result.stderr)
    assert "accepted" not in result.stderr
