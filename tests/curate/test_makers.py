"""Who made a value: a judge answers for what it said itself, and for nothing that came with the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import stand_ins
from stand_ins import JUDGE, curate, kept, row, tagged

from ojak.curate.shards import MOST_MAKERS, UNKNOWN, Survey
from ojak.curate.view import View
from ojak.engines.scripted import ScriptedEngine
from ojak.records import Message

NEED = "tags.difficulty"


def judged_by(survey: Survey, name: str) -> None:
    survey.add(View.of(tagged(0, by={"model": name}, difficulty="easy")), (NEED,))


def test_who_grades_vouches_for_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    rows = [tagged(i, by=None, difficulty="very easy") for i in range(3)]
    rules = "[{min_tag: {tag: difficulty, value: hard}}, {min_score: {score: judge_score, at_least: 0}}]"
    artifact = curate(tmp_path, rows, rules, with_engine=ScriptedEngine())
    assert set(artifact.stats["not_applied"]) == {"min_difficulty"}
    assert kept(artifact) == [0, 1, 2]
    assert all(record.meta["grader"] == JUDGE and "judge" not in record.meta for record in artifact.records())


def test_a_maker_that_is_known_stays_known_among_many() -> None:
    survey = Survey()
    for number in range(3 * MOST_MAKERS):
        judged_by(survey, f"m{number % MOST_MAKERS}")
    assert len(survey.makers[NEED]) == MOST_MAKERS
    assert UNKNOWN not in survey.makers[NEED]
    judged_by(survey, "one too many")
    assert UNKNOWN in survey.makers[NEED]


def test_a_greeting_is_no_answer() -> None:
    """What rules look at is what a judge is shown."""
    asked = row(1, "How high is the tower?", "Fifty metres.")
    greeted = [Message(role="assistant", content="Hello, how can I help?"), *asked.messages]
    view = View.of(replace(asked, messages=greeted))
    assert (view.instruction, view.response) == ("How high is the tower?", "Fifty metres.")
