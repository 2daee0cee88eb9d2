"""`ojak evaluate`: models in folders, the artifact, two models on the same rows, and going on after a stop."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_likelihood import TEMPLATE, chat
from typer.testing import CliRunner, Result

from ojak.artifact import verify
from ojak.chat import encode_chat
from ojak.cli.app import app
from ojak.engines.native import NativeEngine
from ojak.evaluate.answers import Question, ask, question_of, rouge_l
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.likelihood import Likelihood, likelihood, reference_logprobs
from ojak.evaluate.run import Measured, _renderer, differences, evaluate_model
from ojak.formats import load, template_turns
from ojak.model.load import load_model
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
    for name in ("chrf", "rouge_l", "reference_logprob"):
        assert told["answers"][name]["rows"] == 6
    assert told["answers"]["reference_logprob"]["mean"] == pytest.approx(-told["loss"], rel=1e-2)
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
        (["--data", "nothing.jsonl"], 2, "there is nothing at 'nothing.jsonl'"),
        (["--data", "{rows}", "--measure", "charm"], 2, "likelihood, answers, instructions"),
        (["--data", "{rows}", "--split", "test"], 2, "has no splits"),
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


def test_a_folder_of_texts_is_read_as_training_reads_it(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("Some text to read.", "utf-8")
    (tmp_path / "texts/b.md").write_text("Another one.", "utf-8")
    (tmp_path / "texts/c.jsonl").write_text(json.dumps({"text": "A third."}) + "\n", "utf-8")
    found = evaluate_model(EvaluateConfig(model=models["base"], data=str(tmp_path / "texts")))
    assert found["rows"] == 3
    alone = evaluate_model(EvaluateConfig(model=models["base"], data=str(tmp_path / "texts/b.md")))
    assert alone["bytes"] == len("nother one.")  # this model has no BOS: the first token is only read
    (tmp_path / "none").mkdir()
    empty = ojak("evaluate", models["base"], "--data", str(tmp_path / "none"))
    assert empty.exit_code == 9 and "fix:" in empty.stderr
    (tmp_path / "empty.jsonl").write_text("", "utf-8")
    empty = ojak("evaluate", models["base"], "--data", str(tmp_path / "empty.jsonl"))
    assert empty.exit_code == 9 and "why:" in empty.stderr and "fix:" in empty.stderr


def test_a_reference_is_scored_after_the_request(models: dict[str, str]) -> None:
    model = load_model(models["a"], dtype="float32")
    rows = [chat("Who?", "A crow."), chat("Who?", "A crow.", "Sure?", "Yes."), chat("a", "</s>")]
    found = reference_logprobs(NativeEngine(model), rows)
    for row, value in zip(rows[:2], found, strict=False):
        ids, _ = encode_chat(TEMPLATE, model.tokenizer, row.messages)
        logits = model.decoder(torch.tensor([ids]))[0].double().log_softmax(-1)
        said = len(row.messages[-1]["content"].encode()) + 1  # with the token that ends the turn
        expected = [float(logits[place - 1, ids[place]]) for place in range(len(ids) - said, len(ids))]
        assert value == pytest.approx(sum(expected) / said, abs=1e-5)
    assert found[2] is None


def test_rouge_l_is_the_librarys_and_reads_every_script() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    library = RougeScorer(["rougeL"])
    for text, reference in (
        ("The cat_sat on a mat.", "A cat sat, on 2 mats!"),
        ("", "x"),
        ("a b c", "c b a"),
    ):
        expected = 100 * library.score(reference, text)["rougeL"].fmeasure
        assert rouge_l(text, reference) == pytest.approx(expected)
    assert rouge_l("까마귀와 까치가 다리를 놓는다", "까치가 다리를 놓는다") == pytest.approx(100 * 6 / 7)


def test_an_alpaca_row_is_asked_in_the_prompt_that_was_learnt(tmp_path: Path) -> None:
    """Its input goes where the model's own template has it."""
    template = TEMPLATE.replace(
        "{{ m.content }}", "{{ m.content }}{% if m.input %}({{ m.input }}){% endif %}"
    )
    model = replace(tiny.model(), chat_template=template)
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "Add.", "input": "1 and 2", "output": "3"}]), "utf-8")
    (row,) = load(path)
    assert isinstance(row, Conversation)
    question = question_of(row)
    assert question is not None and question.given == "1 and 2"
    assert _renderer(model)(question) == "[user]Add.\n1 and 2(1 and 2)</s>[assistant]"
    seen: list[str] = []

    class Listening(NativeEngine):
        def generate(self, requests: Any, *, longest: int) -> Any:
            asked = list(requests)
            seen.extend(str(each.prompt) for each in asked)
            return super().generate(iter(asked), longest=longest)

    answers, _ = ask(Listening(model), [question], max_tokens=4, render=_renderer(model))
    assert len(answers) == 1 and seen == ["[user]Add.\n1 and 2(1 and 2)</s>[assistant]"]
    ids, mask = encode_chat(template, model.tokenizer, template_turns(row))
    assert likelihood(NativeEngine(model), [row]).tokens == (sum(mask),)
    assert likelihood(NativeEngine(model), [row]).nats[0] == pytest.approx(
        -sum(
            float(value)
            for value in model.decoder(torch.tensor([ids]))[0]
            .double()
            .log_softmax(-1)[
                [place - 1 for place, counts in enumerate(mask) if counts],
                [ids[place] for place, counts in enumerate(mask) if counts],
            ]
        ),
        abs=1e-4,
    )


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
