"""Judges of known character are reported as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import ReadingEngine, chance

from ojak.errors import InputRefused
from ojak.judge.calibrate import Sample, bundled, calibrate
from ojak.judge.corrupt import CORRUPTIONS
from ojak.judge.kept import Calibration
from ojak.judge.prompts import Question, Row
from ojak.judge.published import read_published

GOOD = {(sample.row.instruction, sample.row.response) for sample in bundled()}
KNOWN = {sample.row.instruction: sample for sample in bundled()}


def perfect(question: Question, row: Row) -> float:
    sample = KNOWN.get(row.instruction)
    if question.name == "pair":
        return 0.0 if (row.instruction, row.response) in GOOD else 1.0
    if question.name == "difficulty":
        return 1.0 if sample and sample.level == "hard" else 0.0
    if question.name == "task_category":
        return question.labels.index(str(sample and sample.category)) / (len(question.labels) - 1)
    if question.name == "input_quality":
        return 1.0 if sample else 0.0
    return 1.0 if (row.instruction, row.response) in GOOD else 0.0


def at_random(question: Question, row: Row) -> float:
    return chance(question.name, *row)


def by_length(question: Question, row: Row) -> float:
    if question.name == "pair":
        return 0.0 if len(row.response) > len(row.other) else 1.0
    return min(1.0, len(row.response) / 700)


def the_first(question: Question, row: Row) -> float:
    return 0.0 if question.name == "pair" else 0.5


def found(opinion, **options) -> Calibration:  # noqa: ANN001, ANN003
    return calibrate(ReadingEngine(opinion), **options)


def test_a_perfect_judge_may_filter() -> None:
    result = found(perfect)
    assert result.rows == 60
    assert set(result.auroc) == set(CORRUPTIONS)
    assert all(value == 1.0 and low > 0.7 for value, low, _ in result.auroc.values())
    assert result.overall[0] == 1.0
    assert result.usable
    assert result.position["first_preferred"][0] == 0.5
    assert result.position["accuracy"][0] == result.position["consistent"][0] == 1.0
    assert result.agreement[0] == pytest.approx(1.0)
    assert all(tag["usable"] for tag in result.tags.values())
    assert set(result.tags) == {"input_quality", "difficulty", "task_category"}
    assert all(result.may_filter(name) for name in ("judge_score", "difficulty", "input_quality"))


@pytest.mark.parametrize("seed", range(3))
def test_a_random_judge_may_not(seed: int) -> None:
    result = found(at_random, seed=seed)
    assert 0.4 < result.overall[0] < 0.6
    assert result.overall[1] < 0.5 < result.overall[2]
    assert not result.usable
    assert not any(
        result.may_filter(name) for name in ("judge_score", "difficulty", "input_quality", "nonsense")
    )
    assert abs(result.agreement[0]) < 0.2
    assert 0.3 < result.position["accuracy"][0] < 0.7


def test_a_judge_that_goes_by_length_gains_nothing_by_it() -> None:
    result = found(by_length)
    assert result.length_bias[0] > 0.99
    assert all(0.4 < value < 0.6 for value, _, _ in result.auroc.values())
    assert not result.usable
    assert all(0.4 < each[0] < 0.6 for each in result.measures["length"]["auroc"].values())


def test_a_judge_that_takes_the_first_is_seen() -> None:
    result = found(the_first)
    assert result.position["first_preferred"][0] == 1.0
    assert result.position["consistent"][0] == 0.0
    assert result.position["accuracy"][0] == 0.5
    assert result.overall[0] == 0.5


def test_a_likelihood_can_be_better_than_the_judge() -> None:
    def belief(prompt: str, response: str) -> float:
        known = any(asked in prompt and response == answer for asked, answer in GOOD)
        return -1.0 if known else -3.0

    result = calibrate(ReadingEngine(at_random, belief))
    assert not result.usable
    assert result.may_filter("instruction_gain")
    assert result.measures["instruction_gain"]["overall"][0] == 1.0


def test_it_is_the_same_again_and_survives_the_disk() -> None:
    first, second = found(at_random, rows=20, seed=5), found(at_random, rows=20, seed=5)
    ours, theirs = first.to_dict(), second.to_dict()
    del ours["speed"], theirs["speed"]
    assert ours == theirs
    back = Calibration.from_dict(json.loads(json.dumps(first.to_dict())))
    assert back.to_dict() == first.to_dict()
    assert back.usable == first.usable


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputRefused, match="too few"):
        found(perfect, samples=bundled()[:9])
    with pytest.raises(InputRefused, match="too few"):
        found(perfect, rows=9)


def test_rows_of_ones_own_have_no_known_category() -> None:
    samples = [Sample(sample.row) for sample in bundled()[:30]]
    assert set(found(perfect, samples=samples).tags) == {"input_quality"}


def test_published_scores_are_compared(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Task {i}", "input": "", "output": "right", "model 1 response": f"answer {i}"}
        for i in range(12)
    ]
    scores = {"gpt4": [8 * i for i in range(12)], "llama3-8b": [90 - 8 * i for i in range(12)]}
    (tmp_path / "eval-example-data.json").write_text(json.dumps(rows))
    for name, values in scores.items():
        (tmp_path / f"scores_{name}-model-1-response.json").write_text(json.dumps(values))

    def graded(question: Question, row: Row) -> float:
        if not row.instruction.startswith("Task"):
            return 0.5
        assert row.reference == "right"
        return int(row.instruction.removeprefix("Task ")) / 11

    result = found(graded, rows=10, published=read_published(tmp_path))
    assert result.correlation["judge"]["gpt4"]["spearman"][0] > 0.95
    assert result.correlation["judge"]["llama3_8b"]["pearson"][0] < -0.95
    assert result.correlation["gpt4"]["llama3_8b"]["pearson"][0] == pytest.approx(-1.0)
    (tmp_path / "scores_gpt4-model-1-response.json").write_text("[1, 2]")
    with pytest.raises(InputRefused, match="2 scores for 12 rows"):
        read_published(tmp_path)
