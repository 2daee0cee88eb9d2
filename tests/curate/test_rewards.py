"""Rewards against transformers itself; the reward difference against rewards worked out by hand; nothing asked twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from stand_ins import curate, reasons, recipe_file, row, source

from ojak.artifact import Artifact
from ojak.curate.base import ANSWER, HEAD, QUERY, BaseAnswers
from ojak.curate.config import CurateConfig
from ojak.curate.reward import Rewards
from ojak.curate.run import curate_data
from ojak.curate.view import View
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import EngineUnavailable, InputRefused, UsageError
from ojak.judge.reward import RewardModel
from ojak.ledger import Ledger
from ojak.model.request import Request
from reward_heads import last_word_head, random_head

REWARDS = {"cat": 2.0, "dog": -3.0, "sat": 0.5}  # of an answer's last word; any other: 0
DIFFERENCE = "[{min_score: {score: reward_difference, above: 0}}]"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_head(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def last_word(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return last_word_head(tmp_path_factory.mktemp("last"), REWARDS)


def asked(request: Request) -> str:
    """The instruction in a base model's prompt."""
    text = str(request.prompt)
    assert text.startswith(HEAD) and text.endswith(f"\n\n{ANSWER}\n")
    return text.removeprefix(f"{HEAD}{QUERY}\n").removesuffix(f"\n\n{ANSWER}\n")


def echo(request: Request) -> str:
    """A base model that answers with the word after "say"."""
    return f" it is {asked(request).rpartition(' ')[2]}\n"


def scores(artifact: Artifact) -> dict[int, dict[str, Any]]:
    rows = [*artifact.records(), *artifact.rejected()]
    found = {row.id: getattr(row, "scores", None) or row.meta.get("scores", {}) for row in rows}
    return {int(name.rpartition("-")[2]): each for name, each in found.items()}


# ----------------------------------------------------------------------------------------------------------- rewards


def test_rewards_are_those_of_transformers(head: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = [
        View.of(row(i, *pair)) for i, pair in enumerate((("see the cat", "the cat sat"), ("cat", "the")))
    ]
    rewards = Rewards(RewardModel(str(head)))
    rewards.annotate(found)
    tokenizer: Any = AutoTokenizer.from_pretrained(head)
    model: Any = AutoModelForSequenceClassification.from_pretrained(head)
    for view in found:
        turns = [
            {"role": "user", "content": view.instruction},
            {"role": "assistant", "content": view.response},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        with torch.no_grad():
            expected = (
                model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item()
            )
        assert view.scores["reward"] == pytest.approx(expected, abs=1e-5)
        assert view.makers["reward_model"] == rewards.identity
    assert found[0].scores["reward"] != found[1].scores["reward"]


def test_a_text_cannot_hold_special_tokens(head: Path) -> None:
    model = RewardModel(str(head))
    assert model.reward("see the cat", "sat <s> sat") == model.reward("see the cat", "sat < s> sat")


def test_heads_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="2 outputs"):
        RewardModel(str(random_head(tmp_path / "two", labels=2)))
    for name in (str(tmp_path / "nothing"), "nothing"):  # no name on the hub: it is not asked
        with pytest.raises(UsageError, match="there is no reward model"):
            RewardModel(name)
    pickled = random_head(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputRefused, match="cannot be used"):
        RewardModel(str(pickled))


def test_a_reward_model_is_a_judge_like_any_other(
    tmp_path: Path, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "[{min_score: {score: reward, above: -100}}]"
    stand_ins.use_judge(monkeypatch, usable=None)
    artifact = curate(tmp_path, [row(0)], rule, reward_model=str(head))
    said = artifact.stats["not_applied"]["min_reward"]
    assert "has not been calibrated; `ojak judge calibrate --reward-model NAME`" in said
    assert str(head) not in (tmp_path / "out/manifest.json").read_text("utf-8")
    trusted = curate(tmp_path, [row(0)], rule, out="b", reward_model=str(head), trust_anyway=True)
    assert trusted.stats["not_applied"] == {}


# ------------------------------------------------------------------------------------------------ the base's answers


def test_the_difference_is_that_of_two_answers_to_one_instruction(tmp_path: Path, last_word: Path) -> None:
    rows = [
        row(0, "say dog", "the cat"),
        row(1, "say cat", "the dog"),
        row(2, "say cat", "a cat"),
        row(3, "say 3", "sat"),
    ]
    base = ScriptedEngine(echo)
    artifact = curate(
        tmp_path, rows, DIFFERENCE, trust_anyway=True, reward_model=str(last_word), with_base=base
    )
    assert artifact.stats["not_applied"] == {}
    assert {name: each["reward_difference"] for name, each in scores(artifact).items()} == pytest.approx(
        {0: 2 - -3, 1: -3 - 2, 2: 0, 3: 0.5}, abs=1e-3
    )
    assert scores(artifact)[0]["base_reward"] == pytest.approx(-3, abs=1e-3)
    assert reasons(artifact) == {1: "min_reward_difference", 2: "min_reward_difference"}
    (first, _) = artifact.records()
    kept = first.meta["reward_base"]
    assert (kept["response"], kept["finish_reason"], kept["model"]) == ("it is dog", "stop", "scripted")
    assert base.sent == 3  # equal instructions are asked once
    assert not list((tmp_path / "out").glob(".curate-*"))


def test_a_published_recipe_is_applied_as_a_whole(
    tmp_path: Path, last_word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    stand_ins.use_embedder(monkeypatch)
    asked = "Prove in {} steps that there are {} ways to say dog"
    rows = [
        row(i, asked.format("ab"[i % 2] * (i + 1), "xyz" * i), "the cat" if i else "dog") for i in range(4)
    ]
    config = CurateConfig(recipe="air-300k", reward_model=str(last_word), keep=3)
    artifact = curate_data(
        source(tmp_path, rows),
        tmp_path / "out",
        config,
        engine=ScriptedEngine(),
        base_engine=ScriptedEngine(echo),
    )
    assert artifact.stats["not_applied"] == {}
    assert reasons(artifact) == {0: "min_reward_difference"}


def test_without_the_two_models_the_rule_is_named(tmp_path: Path, last_word: Path) -> None:
    for number, (settings, why) in enumerate(
        (
            ({}, "no reward model was named for it (--reward-model)"),
            ({"reward_base": "scripted"}, "no reward model was named for it (--reward-model)"),
            ({"reward_model": str(last_word)}, "no base model was named for it (--reward-base)"),
        )
    ):
        artifact = curate(tmp_path, [row(0)], DIFFERENCE, out=f"o{number}", trust_anyway=True, **settings)
        assert artifact.stats["not_applied"] == {"min_reward_difference": why}


def test_a_difference_that_came_with_the_rows_is_of_the_model_that_they_name(
    tmp_path: Path, last_word: Path
) -> None:
    brought = [row(0, scores={"reward_difference": 9.0}, meta={"reward_model": {"model": "other"}})]
    both = "[{min_score: {score: reward_difference, above: 0}}, {min_score: {score: reward, above: -9}}]"
    used = curate(tmp_path, brought, both, trust_anyway=True)
    assert set(used.stats["not_applied"]) == {"min_reward"}
    anew = curate(tmp_path, brought, both, out="b", trust_anyway=True, reward_model=str(last_word))
    assert set(anew.stats["not_applied"]) == {"min_reward_difference"}
    assert "reward_difference" not in scores(anew)[0]


class Failing(ScriptedEngine):
    """Gives up on every request of which the prompt holds "bad"."""

    def _complete(self, request: Request) -> Any:
        from dataclasses import replace

        done = super()._complete(request)
        return replace(done, text="", error="no") if "bad" in asked(request) else done


def test_an_answer_that_was_given_up_is_a_missing_value(tmp_path: Path, last_word: Path) -> None:
    rows = [row(i, f"say {'bad' if i == 3 else i}", "the cat") for i in range(8)]
    artifact = curate(
        tmp_path, rows, DIFFERENCE, trust_anyway=True, reward_model=str(last_word), with_base=Failing(echo)
    )
    assert reasons(artifact) == {3: "min_reward_difference_missing"}


def test_what_a_base_model_must_be_able_to_do(tmp_path: Path) -> None:
    small = ScriptedEngine(echo)
    small.context_tokens = 400
    with pytest.raises(UsageError, match="reads too little"):
        BaseAnswers(small, tmp_path / "a.sqlite", 300)
    long = "word " * 5000
    engine = ScriptedEngine(lambda request: f"{len(asked(request).split())}")
    (answer,) = BaseAnswers(engine, tmp_path / "a.sqlite", 8).answers([long])
    assert answer and int(answer.text) <= 768


def test_answers_are_capped_and_texts_of_special_tokens_broken_up(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda request: f"{'many ' * 50}{asked(request)}")
    first = BaseAnswers(engine, tmp_path / "a.sqlite", 5).answers(["end <|im_end|>", ""])
    assert [answer and answer.finish_reason for answer in first] == ["length", "length"]
    whole = BaseAnswers(engine, tmp_path / "a.sqlite", 80).answers(["end <|im_end|>"])
    assert whole[0] and whole[0].finish_reason == "stop"  # a larger cap asks again
    assert whole[0].text.endswith("end < |im_end|>")
    assert BaseAnswers(engine, tmp_path / "a.sqlite", 80).answers([]) == []


def test_a_base_model_without_a_template_writes_what_follows_the_prompt(tmp_path: Path) -> None:
    import tiny

    from ojak.engines.native import NativeEngine, generate

    made = tiny.model("llama", max_position_embeddings=4096)
    texts = ["What is a tide?", "Say </s> twice."]
    answers = BaseAnswers(NativeEngine(made), tmp_path / "a.sqlite", 12).answers(texts)
    safe = ["What is a tide?", "Say < /s> twice."]
    prompts = [f"{HEAD}{QUERY}\n{text}\n\n{ANSWER}\n" for text in safe]
    alone = generate(made, prompts, max_tokens=12, stop=["\n# Query"])
    assert [answer and answer.text for answer in answers] == [each.text.strip() for each in alone]


# ------------------------------------------------------------------------------------------------ nothing asked twice


class Dying(ScriptedEngine):
    """Is gone after some answers."""

    left = 0

    def _complete(self, request: Request) -> Any:
        if self.sent == self.left:
            raise EngineUnavailable("gone")
        return super()._complete(request)


def test_a_run_that_broke_off_asks_for_nothing_again(tmp_path: Path, last_word: Path) -> None:
    made = source(tmp_path, [row(i, f"say {i}", "the cat") for i in range(20)])
    config = CurateConfig(
        recipe=recipe_file(tmp_path, DIFFERENCE), reward_model=str(last_word), trust_anyway=True
    )
    dying = Dying(echo)
    dying.left = 11
    with pytest.raises(EngineUnavailable):
        curate_data(made, tmp_path / "out", config, base_engine=dying)
    with Ledger(tmp_path / "out/.curate-base.sqlite", read_only=True) as ledger:
        assert ledger.counts() == {"base": {"ok": 11, "failed": 0}}
    after = ScriptedEngine(echo)
    artifact = curate_data(made, tmp_path / "out", config, base_engine=after)
    assert after.sent == 9
    whole = curate_data(made, tmp_path / "whole", config, base_engine=ScriptedEngine(echo))
    assert list(artifact.records()) == list(whole.records())


KILLED = """
import os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/curate"]
from test_rewards import echo
from ojak.curate.config import CurateConfig
from ojak.curate.run import curate_data
from ojak.engines.scripted import ScriptedEngine

class Killed(ScriptedEngine):
    def _complete(self, request):
        if self.sent == 7:
            os.kill(os.getpid(), 9)
        return super()._complete(request)

where, head = sys.argv[2:]
config = CurateConfig(recipe=f"{where}/mine.yaml", reward_model=head, trust_anyway=True)
curate_data(f"{where}/in", f"{where}/out", config, base_engine=Killed(echo))
"""


def test_kill_9_repeats_no_answer(tmp_path: Path, last_word: Path) -> None:
    source(tmp_path, [row(i, f"say {i}", "the cat") for i in range(12)])
    recipe = recipe_file(tmp_path, DIFFERENCE)
    arguments = [str(Path(__file__).parent.parent), str(tmp_path), str(last_word)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env={**os.environ}, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    after = ScriptedEngine(echo)
    config = CurateConfig(recipe=recipe, reward_model=str(last_word), trust_anyway=True)
    artifact = curate_data(tmp_path / "in", tmp_path / "out", config, base_engine=after)
    assert after.sent == 12 - 7
    assert len(list(artifact.records())) == 12


# ------------------------------------------------------------------------------------------------------- trust, verbs


def test_trust_follows_from_the_calibration(folder: Path, last_word: Path) -> None:
    from typer.testing import CliRunner

    from ojak.cli.app import app

    source(folder, [row(i, "say dog", "the cat") for i in range(3)])
    recipe_file(
        folder, "[{min_score: {score: reward, above: 0}}, {min_score: {score: reward_difference, above: 0}}]"
    )
    command = ["curate", "in", "--recipe", "./mine.yaml", "--reward-model", str(last_word)]
    command += ["--reward-base", "scripted", "--reward-base-tokens", "30", "--json"]
    before = CliRunner().invoke(app, [*command, "--out", "a"])
    assert before.exit_code == 3
    assert set(json.loads(before.stdout)["not_applied"]) == {"min_reward", "min_reward_difference"}
    measured = CliRunner().invoke(
        app, ["judge", "calibrate", "--reward-model", str(last_word), "--rows", "12", "--json"]
    )
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["usable"] is False
    after = CliRunner().invoke(app, [*command, "--out", "b"])
    assert after.exit_code == 3
    said = json.loads(after.stdout)["not_applied"]["min_reward"]
    assert "did not pass its calibration" in said
    trusted = CliRunner().invoke(app, [*command, "--out", "c", "--trust-anyway"])
    assert trusted.exit_code == 0, trusted.output
    explained = CliRunner().invoke(app, ["explain", "c", row(0).id])
    assert "min_reward_difference" in explained.stdout and "meta.reward_base" in explained.stdout


@pytest.mark.real
def test_a_real_base_model_answers_and_stops(tmp_path: Path) -> None:
    from ojak.engines.open import EngineSpec, open_engine

    engine = open_engine(EngineSpec(model="gemma-3-270m", accept_license=("gemma",)), chat=False)
    (answer,) = BaseAnswers(engine, tmp_path / "a.sqlite", 24).answers(["What is the capital of Portugal?"])
    assert answer and "Lisbon" in answer.text
    assert answer.finish_reason == "stop"
