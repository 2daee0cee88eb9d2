"""Parameters and scales: given, missing, wrong, and what comes before what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ojak import recipe
from ojak.errors import UsageError

TEXT = """\
version: 1
name: small
parameters:
  rows: {what: "how many rows"}
  word: {what: "a word", default: hello}
scales:
  smoke: {magpie.rows: 3, split.test: 0.5}
  large: {magpie.rows: "${rows}", magpie.limit_tokens: 9}
stages:
  magpie:
    model: scripted
    rows: "${rows}"
    system: "Say ${word}, ${word}."
  split: {test: 0.25}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(*sets: str, text: str = TEXT) -> recipe.Recipe:
    Path("r.yaml").write_text(text, "utf-8")
    return recipe.load("r.yaml", sets=sets)


def settings(*sets: str, text: str = TEXT) -> dict[str, Any]:
    return load(*sets, text=text).resolved()["stages"]


def problems(sets: Sequence[str], text: str = TEXT) -> str:
    with pytest.raises(UsageError) as caught:
        load(*sets, text=text)
    return str(caught.value)


def test_a_parameter_stands_for_its_value_whole_or_within_a_text() -> None:
    found = settings("rows=7")["magpie"]
    assert found["rows"] == 7  # a number, as it was given
    assert found["system"] == "Say hello, hello."
    assert settings("rows=7", "word=bye")["magpie"]["system"] == "Say bye, bye."


def test_a_value_that_looks_like_a_parameter_is_only_text() -> None:
    assert settings("rows=7", "word=${rows}")["magpie"]["system"] == "Say ${rows}, ${rows}."


def test_a_missing_parameter_is_named_with_what_it_is_and_nothing_else_is_said() -> None:
    found = problems([])
    assert "r.yaml:4:3: the recipe needs --set rows=VALUE: how many rows" in found
    assert found.count("\n") == 1
    explicit = TEXT.replace('"how many rows"', '"how many rows", default: null')
    assert "the recipe needs --set rows=VALUE" in problems([], explicit)


def test_an_unknown_parameter_has_its_place_and_advice() -> None:
    found = problems(["rows=7"], TEXT.replace("${word}, ${word}", "${wrod}"))
    assert "r.yaml:13:5: there is no parameter 'wrod'; did you mean 'word'?" in found


def test_without_parameters_a_text_is_left_as_it_is() -> None:
    text = "version: 1\nname: x\nstages:\n  magpie: {model: scripted, rows: 1, system: 'a ${b}'}\n"
    assert settings(text=text)["magpie"]["system"] == "a ${b}"


@pytest.mark.parametrize("name", ["scale", "magpie", "name", "A", "a-b", "a.b", '""'])
def test_names_that_cannot_be_told_apart_from_others_are_refused(name: str) -> None:
    text = TEXT.replace("  word: {", f"  {name}: {{").replace("Say ${word}, ${word}.", "x")
    assert "cannot be the name of a parameter" in problems(["rows=7"], text)


def test_a_wrong_value_of_a_parameter_is_told_at_the_setting() -> None:
    assert "r.yaml:12:5: magpie.rows cannot be 'many'" in problems(["rows=many"])


def test_a_scale_is_put_in_and_names_the_folder() -> None:
    found = load("rows=7", "scale=smoke")
    assert found.out == Path("runs/small-smoke")
    stages = found.resolved()["stages"]
    assert (stages["magpie"]["rows"], stages["split"]["test"]) == (3, 0.5)
    assert load("rows=7").out == Path("runs/small")


def test_other_overrides_come_after_the_scale_wherever_they_stand() -> None:
    assert settings("magpie.rows=5", "scale=smoke", "rows=7")["magpie"]["rows"] == 5


def test_a_scale_may_hold_parameters() -> None:
    found = settings("rows=7", "scale=large")["magpie"]
    assert (found["rows"], found["limit_tokens"]) == (7, 9)


@pytest.mark.parametrize(
    ("sets", "old", "new", "match"),
    [
        (["scale=smok"], "", "", "--set scale=smok: the recipe has no such scale\n  fix: did you mean 'smoke'?"),
        (["scale=smoke"], "magpie.rows: 3", "magpi.rows: 3", "r.yaml:7:11 (scale smoke): the recipe has no"),
        (["scale=smoke"], "magpie.rows: 3", "magpie.row: 3", "r.yaml:7:11 (scale smoke): there is no setting"),
        (["scale=smoke"], "magpie.rows: 3", "magpie.rows: no", "r.yaml:7:11 (scale smoke): magpie.rows cannot"),
        (["scale=smoke"], "magpie.rows: 3", "magpie..rows: 3", "is no name of a setting"),
        (["scale=smoke"], "{magpie.rows: 3, split.test: 0.5}", "3", "scales.smoke cannot be 3"),
        ([], "{what: \"a word\", default: hello}", "{default: hello}", "parameters.word.what is missing"),
    ],
)  # fmt: skip
def test_wrong_scales_and_parameters(sets: list[str], old: str, new: str, match: str) -> None:
    assert match in problems(["rows=7", *sets], TEXT.replace(old, new))


def test_what_is_not_there_yet_within_a_stage_is_begun() -> None:
    text = "version: 1\nname: x\nstages:\n  train: {model: m, data: [.], lr: 1.0e-4}\n"
    found = settings("train.lora.r=4", "train.arms.a.optimizer.name=muon", text=text)["train"]
    assert found["lora"]["r"] == 4
    assert found["arms"] == {"a": {"optimizer": {"name": "muon"}}}
