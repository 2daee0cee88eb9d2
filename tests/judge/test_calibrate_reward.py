"""Reward models of known character are reported as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reading import chance
from typer.testing import CliRunner

from ojak.cli.app import app
from ojak.judge import load_calibration
from ojak.judge.calibrate import Sample, bundled
from ojak.judge.calibrate_reward import calibrate_reward
from ojak.judge.corrupt import CORRUPTIONS
from ojak.judge.kept import Calibration, keep_calibration
from ojak.judge.prompts import Row
from ojak.judge.published import Published
from ojak.judge.reward import RewardModel
from reward_heads import last_word_head, random_head

GOOD = {(sample.row.instruction, sample.row.response) for sample in bundled()}
SAME_LENGTH = {"shuffled", "wrong_language", "off_topic", "contradicting"}


class Rigged:
    """Rewards by a function of instruction and answer."""

    def __init__(self, opinion: Any) -> None:
        self.opinion = opinion
        self.identity = {"engine": "reward", "model": "rigged", "model_sha256": "r" * 64}

    def reward(self, instruction: str, response: str) -> float | None:
        return self.opinion(instruction, response)


def measured(opinion: Any, **options: Any) -> Calibration:
    return calibrate_reward(Rigged(opinion), **options)


def test_a_perfect_one_may_filter_by_both() -> None:
    found = measured(lambda asked, answered: -4.0 if (asked, answered) in GOOD else -9.0)
    assert set(found.auroc) == set(CORRUPTIONS)
    assert all(value == 1.0 for value, _, _ in found.auroc.values())
    assert found.usable and found.may_filter("reward") and found.may_filter("reward_difference")
    assert not found.may_filter("judge_score")
    difference = found.measures["reward_difference"]
    assert set(difference["auroc"]) >= SAME_LENGTH
    assert all(value == 1.0 and 0.6 < low < 1 for value, low, _ in difference["auroc"].values())
    assert (found.tags, found.position, found.unparsed) == ({}, {}, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_one_may_not(seed: int) -> None:
    found = measured(lambda asked, answered: chance(str(seed), asked, answered), seed=seed)
    assert 0.35 < found.overall[0] < 0.65
    assert 0.35 < found.measures["reward_difference"]["overall"][0] < 0.65
    assert not found.may_filter("reward") and not found.may_filter("reward_difference")


def test_length_earns_nothing() -> None:
    found = measured(lambda _asked, answered: float(len(answered)))
    assert found.length_bias[0] > 0.99
    assert all(0.4 < value < 0.6 for value, _, _ in found.auroc.values())
    assert not found.usable


def test_one_that_knows_only_how_hard_a_request_is_tells_no_answers_apart() -> None:
    """What depends on the instruction alone cancels out in a difference: every pair is a tie."""
    found = measured(lambda asked, _answered: float(len(asked)))
    each = found.measures["reward_difference"]
    assert all(value == 0.5 for value, _, _ in each["auroc"].values())
    assert each["overall"] == (0.5, 0.5, 0.5)


def test_differences_are_shares_of_pairs() -> None:
    """By hand: all good answers but the first ten beat what was made of them."""
    order = {sample.row.instruction: place for place, sample in enumerate(bundled())}

    def opinion(asked: str, answered: str) -> float:
        is_good = (asked, answered) in GOOD
        return float(is_good if order.get(asked, 0) >= 10 else not is_good)

    found = measured(opinion, rows=60).measures["reward_difference"]["auroc"]["off_topic"]
    near = [sample.row for sample in bundled() if len(sample.row.response) >= 30]
    beaten = sum(order[row.instruction] < 10 for row in near)
    assert found[0] == pytest.approx(1 - beaten / len(near), abs=0.1)


def test_no_rewards_give_no_vote() -> None:
    found = measured(lambda _asked, _answered: None)
    assert found.unparsed == 1.0
    assert found.auroc == {} and not found.usable
    assert not found.measures["reward_difference"]["usable"]
    assert json.loads(json.dumps(found.to_dict()))["overall"] == [None, None, None]


def test_a_head_whose_auroc_is_known(tmp_path: Path) -> None:
    """It looks at the last sign: a full stop is worth 3. Cut answers lack it, the other bad ones mostly do not."""
    model = RewardModel(str(last_word_head(tmp_path / "head", {".": 3.0})))
    samples = [sample for sample in bundled() if sample.row.response.endswith(".")]
    found = calibrate_reward(model, [Sample(sample.row) for sample in samples], rows=len(samples))
    assert found.auroc["truncated"][0] == 1.0
    assert found.auroc["shuffled"][0] == found.auroc["contradicting"][0] == found.auroc["off_topic"][0] == 0.5
    assert found.measures["reward_difference"]["auroc"]["shuffled"][0] == 0.5
    assert "truncated" not in found.measures["reward_difference"]["auroc"]
    assert not found.usable


def test_published_scores_are_compared() -> None:
    rows = [Row(f"Task {i}", f"answer {i}") for i in range(12)]
    known = Published(
        rows, {"gpt4": [8.0 * i for i in range(12)], "llama3_8b": [90 - 8.0 * i for i in range(12)]}
    )
    found = measured(
        lambda asked, _answered: float(asked[5:]) if asked[:4] == "Task" else 0.0, published=known
    )
    assert found.correlation["reward"]["gpt4"]["pearson"][0] == pytest.approx(1)
    assert found.correlation["reward"]["llama3_8b"]["spearman"][0] == pytest.approx(-1)


def test_it_is_kept_apart_from_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ojak.judge import kept

    found = measured(lambda _asked, _answered: 1.0, rows=12)
    keep_calibration(found)
    monkeypatch.setattr(kept, "judge_code", lambda: "changed")
    again = load_calibration(found.identity)
    assert again is not None and again.to_dict() == found.to_dict()
    monkeypatch.setattr(kept, "reward_code", lambda: "changed")
    assert load_calibration(found.identity) is None


def test_the_command(folder: Path) -> None:
    head = str(random_head(folder / "head"))
    arguments = ["judge", "calibrate", "--reward-model", head, "--rows", "12"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["identity"] == RewardModel(head).identity
    assert load_calibration(facts["identity"]) is not None
    shown = CliRunner().invoke(app, arguments)
    assert "head as reward_difference" in shown.stdout
    assert "agreement" not in shown.stdout
    assert head not in json.dumps(facts | {"path": ""})
    for wrong in ([*arguments, "--model", "scripted"], arguments[:2], [*arguments, "--reason-tokens", "3"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
