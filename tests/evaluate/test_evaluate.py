"""`ojak evaluate`: models in folders, the artifact, two models on the same rows, and going on after a stop."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_likelihood import TEMPLATE, chat
from typer.testing import CliRunner, Result

from ojak.artifact import verify
from ojak.cli.app import app
from ojak.engines.native import NativeEngine
from ojak.evaluate.answers import Question, ask, question_of
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.likelihood import Likelihood
from ojak.evaluate.run import Measured, differences, evaluate_model
from ojak.records import Conversation


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    folders = {}
    for name, seed in (("a", 0), ("b", 1)):
        folders[name] = str(replace(tiny.model(seed=seed), chat_template=TEMPLATE).save(root / name))
    folders["base"] = str(tiny.model().save(root / "base"))
    return folders


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    turns = [chat(f"What is {n}?", f"It is the number {n}.").messages for n in range(6)]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns), "utf-8")
    return str(path)


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_all_measures_and_the_artifact(models: dict[str, str], rows: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    flags = [
        "--measure",
        "likelihood",
        "--measure",
        "answers",
        "--measure",
        "instructions",
        "--checks",
        "16",
        "--max-tokens",
        "12",
    ]
    result = ojak("evaluate", models["a"], "--data", rows, *flags, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["rows"] == 6
    assert told["perplexity_interval"][0] <= told["perplexity"] <= told["perplexity_interval"][1]
    assert told["answers"]["rows"] == 6
    assert told["answers"]["chrf"]["rows"] == 6
    assert told["instructions"]["rows"] == 16
    artifact = verify(out)
    assert artifact.counts["accepted"] == 22
    first = next(iter(artifact.records()))
    assert isinstance(first, Conversation)
    assert first.meta["reference"] == "It is the number 0."
    assert first.messages[-1]["role"] == "assistant"
    again = ojak("evaluate", models["a"], "--data", rows, "--out", out)
    assert again.exit_code != 0
    assert "exists" in again.stderr


def test_two_models_on_the_same_rows(models: dict[str, str], rows: str) -> None:
    result = ojak("evaluate", models["a"], "--data", rows, "--against", models["b"], "--json")
    told = json.loads(result.stdout)
    apart = told["bits_per_byte"] - told["against"]["bits_per_byte"]
    value, low, high = told["difference"]["bits_per_byte"]
    assert value == pytest.approx(apart, abs=1e-9)
    assert low <= value <= high
    same = ojak("evaluate", models["a"], "--data", rows, "--against", models["a"], "--json")
    assert json.loads(same.stdout)["difference"]["bits_per_byte"] == [0.0, 0.0, 0.0]


def test_the_tables_for_a_reader(models: dict[str, str], rows: str) -> None:
    result = ojak("evaluate", models["a"], "--data", rows, "--against", models["b"])
    assert result.exit_code == 0, result.stderr
    assert "bits per byte" in result.stdout
    assert "difference" in result.stdout
    assert "identity" not in result.stdout


class Broken(Exception):
    """What ends a run in the middle."""


def test_answers_that_are_there_are_not_asked_for_again(
    models: dict[str, str], rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(model=models["a"], data=rows, measures=("answers",), max_tokens=8)
    whole = evaluate_model(config, tmp_path / "whole")
    generate, asked = NativeEngine.generate, Counter[str]()

    def counted(self: NativeEngine, requests: Any, *, longest: int) -> Any:
        for number, done in enumerate(generate(self, requests, longest=longest), 1):
            asked["answers"] += 1
            yield done
            if asked["limit"] == number:
                raise Broken

    monkeypatch.setattr(NativeEngine, "generate", counted)
    asked["limit"] = 4
    with pytest.raises(Broken):
        evaluate_model(config, tmp_path / "parts")
    asked["limit"] = 0
    found = evaluate_model(config, tmp_path / "parts")
    assert asked["answers"] == 6
    assert found["answers"] == whole["answers"]
    texts = [[row.messages for row in verify(tmp_path / name).records()] for name in ("whole", "parts")]  # type: ignore[union-attr]
    assert texts[0] == texts[1]
    assert not list((tmp_path / "parts").glob("*.sqlite*"))


def test_questions_that_cannot_be_asked_are_counted(models: dict[str, str]) -> None:
    from ojak.model.load import load_model

    engine = NativeEngine(load_model(models["a"], dtype="float32"))
    odd = Question("odd", ({"role": "user", "content": "a"}, {"role": "user", "content": "b"}))
    long = Question("long", ({"role": "user", "content": "x" * 600},))
    answers, skipped = ask(engine, [odd, long], max_tokens=8)
    assert (answers, skipped) == ([], {"template": 1, "too_long": 1})
    assert question_of(Conversation("c", [])) is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--measure", "likelihood"], 2, "--data"),
        (["--data", "nothing.jsonl"], 9, "not there"),
        (["--data", "{rows}", "--measure", "charm"], 2, "measures"),
        (["--data", "{rows}", "--judge", "{a}", "--measure", "answers"], 2, "may not grade"),
    ],
)
def test_what_is_refused(
    models: dict[str, str], rows: str, arguments: list[str], code: int, words: str
) -> None:
    given = [text.format(rows=rows, a=models["a"]) for text in arguments]
    result = ojak("evaluate", models["a"], *given)
    assert result.exit_code == code, result.stderr
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("more", [("--against", "nowhere"), ("--judge", "{a}")])
def test_a_second_model_or_a_judge_is_refused_before_the_first_one_works(
    models: dict[str, str], rows: str, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("it answered first")

    monkeypatch.setattr(NativeEngine, "generate", worked)
    others = [text.format(a=models["a"]) for text in more]
    result = ojak("evaluate", models["a"], "--data", rows, "--measure", "answers", *others)
    assert result.exit_code == 2, result.stderr


def test_a_base_model_is_refused_for_conversations_and_read_for_text(
    models: dict[str, str], rows: str, tmp_path: Path
) -> None:
    refused = ojak("evaluate", models["base"], "--data", rows)
    assert refused.exit_code == 9
    assert "base model" in refused.stderr
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "Some text to read."}) + "\n", "utf-8")
    assert ojak("evaluate", models["base"], "--data", str(text)).exit_code == 0


def test_rows_are_taken_evenly(models: dict[str, str], rows: str) -> None:
    found = evaluate_model(EvaluateConfig(model=models["a"], data=rows, limit=3))
    assert found["rows"] == 3


def test_a_difference_that_is_there_is_found_and_noise_is_not() -> None:
    def measured(nats: list[float]) -> Measured:
        count = len(nats)
        found = Likelihood(tuple(range(count)), tuple(nats), (10,) * count, (40,) * count, {})
        return Measured("m", {}, likelihood=found)

    left = [30.0 + n % 7 for n in range(60)]
    value, low, high = differences(measured(left), measured([x + 1 for x in left]), 0)["bits_per_byte"]
    assert low <= value <= high < 0
    noise = [x + (1 if n % 2 else -1) for n, x in enumerate(left)]
    _, low, high = differences(measured(left), measured(noise), 0)["bits_per_byte"]
    assert low < 0 < high
