"""A row's story: its verdicts, and the folders that it came through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from stand_ins import curate, recipe_file, row, source
from typer.testing import CliRunner, Result

from ojak.artifact import publish
from ojak.cli.app import app
from ojak.curate.config import CurateConfig
from ojak.curate.explain import explain_row
from ojak.curate.run import curate_data
from ojak.curate.split import split
from ojak.errors import InputRefused, UsageError, VerificationFailed
from ojak.records import Rejected

RULES = (
    "[{no_refusal: }, {min_tag: {tag: difficulty, value: easy}}, {length: {of: response, min: 10}}, "
    "{no_duplicates: {kind: exact}}]"
)
ROWS = [
    row(0, "Tell me of the tides"),
    row(1, response="I can't help."),
    row(2, "tell me of the tides"),
    row(3, response="Short."),
]


def verdicts(step: dict[str, Any]) -> dict[str, str]:
    return {rule["rule"]: rule["verdict"] for rule in step["rules"]}


def test_a_kept_row(tmp_path: Path) -> None:
    curate(tmp_path, ROWS, RULES)
    found = explain_row(tmp_path / "out", ROWS[0].id)
    now, before = found["history"]
    assert found["messages"] == ROWS[0].messages
    assert (now["kind"], now["fate"], now["rank"]) == ("curate", "kept", 1)
    assert verdicts(now) == {
        "no_refusal": "passed", "min_difficulty": "not applied", "response_chars": "passed", "no_duplicates_exact": "passed",
    }  # fmt: skip
    assert now["rules"][1]["why"] == "no model was named for it (--model)"
    assert now["rules"][2] | {"asks": 0} == {
        "rule": "response_chars",
        "asks": 0,
        "value": 70,
        "verdict": "passed",
    }
    assert (before["kind"], before["fate"], Path(before["folder"]).name) == ("magpie", "kept", "in-out")


def test_dropped_rows(tmp_path: Path) -> None:
    curate(tmp_path, ROWS, RULES)
    told = [explain_row(tmp_path / "out", item.id)["history"][0] for item in ROWS[1:]]
    assert [step["reason"] for step in told] == ["no_refusal", "no_duplicates_exact", "response_chars"]
    assert verdicts(told[0]) == {
        "no_refusal": "dropped here", "min_difficulty": "not applied", "response_chars": "passed", "no_duplicates_exact": "not looked at",
    }  # fmt: skip
    assert verdicts(told[1])["no_duplicates_exact"] == "dropped here"
    assert told[1]["rules"][3]["value"] == {"row": 0, "id": ROWS[0].id}
    assert told[2]["scores"]["response_chars"] == 6
    assert explain_row(tmp_path / "in-out", ROWS[1].id)["history"][0]["fate"] == "kept"


def test_a_later_rule_that_would_drop_it_too(tmp_path: Path) -> None:
    curate(
        tmp_path, [row(0, response="I can't help.")], "[{no_refusal: }, {length: {of: response, min: 50}}]"
    )
    step = explain_row(tmp_path / "out", row(0).id)["history"][0]
    assert verdicts(step) == {"no_refusal": "dropped here", "response_chars": "would drop it, too"}


def test_missing_values_and_full_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    rows = [stand_ins.tagged(i, difficulty="easy", response="x" * (9 - i)) for i in range(6)] + [row(6)]
    rule = "[{tag_share: {tag: difficulty, groups: [{values: [easy], share: 0.5}]}}]"
    curate(tmp_path, rows, rule, "pick: {by: longest, number: 4}")
    steps = [explain_row(tmp_path / "out", rows[i].id)["history"][0] for i in (0, 3, 6)]
    assert [verdicts(step)["difficulty_share"] for step in steps] == [
        "passed",
        "dropped here",
        "dropped here",
    ]
    assert [step.get("reason") for step in steps] == [None, "difficulty_share", "difficulty_share_missing"]


def test_the_story_goes_through_every_folder(tmp_path: Path) -> None:
    made = source(tmp_path, ROWS + [row(i) for i in range(4, 8)], "magpie")
    curate_data(made, tmp_path / "curate", CurateConfig(recipe=recipe_file(tmp_path, "[{no_refusal: }]")))
    split(tmp_path / "curate", tmp_path / "split")
    history = explain_row(tmp_path / "split", ROWS[0].id)["history"]
    assert [(step["kind"], step["fate"]) for step in history] == [
        ("split", "kept"),
        ("curate", "kept"),
        ("magpie", "kept"),
    ]
    dropped = explain_row(tmp_path / "split", ROWS[1].id)["history"]
    assert [step["fate"] for step in dropped] == ["absent", "rejected", "kept"]
    shutil.move(tmp_path / "magpie", tmp_path / "elsewhere")
    assert [step["fate"] for step in explain_row(tmp_path / "split", ROWS[0].id)["history"]] == [
        "kept",
        "kept",
        "unknown",
    ]
    publish(tmp_path / "magpie", kind="magpie", records=ROWS[:1], config={})
    last = explain_row(tmp_path / "split", ROWS[0].id)["history"][-1]
    assert (last["fate"], last["why"]) == ("unknown", "it has been made anew since")


def test_a_row_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": item.messages}) + "\n" for item in ROWS), "utf-8")
    made = curate_data(path, tmp_path / "out", CurateConfig(recipe=recipe_file(tmp_path, "[]")))
    name = next(iter(made.records())).id
    assert [step["fate"] for step in explain_row(tmp_path / "out", name)["history"]] == ["kept", "kept"]
    path.write_text("{}\n", "utf-8")
    assert explain_row(tmp_path / "out", name)["history"][1]["why"] == "the file has changed since"
    path.unlink()
    assert explain_row(tmp_path / "out", name)["history"][1]["why"] == "the file is gone"


def test_rows_that_are_nowhere(tmp_path: Path) -> None:
    curate(tmp_path, ROWS, "[]")
    for name in ("none", "", "\ud800", "' or 1=1"):
        with pytest.raises(UsageError):
            explain_row(tmp_path / "out", name)
    with pytest.raises(InputRefused):
        explain_row(tmp_path / "nothing", "x")


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    artifact = curate(tmp_path, ROWS, "[]")
    (part,) = artifact.path.glob("data/*.parquet")
    part.write_bytes(part.read_bytes()[:-8] + b"8 bytes!")
    with pytest.raises(VerificationFailed, match="cannot be searched"):
        explain_row(tmp_path / "out", ROWS[0].id)


def test_folders_that_name_each_other_end(tmp_path: Path) -> None:
    publish(
        tmp_path / "a",
        kind="x",
        records=[row(0)],
        config={},
        inputs=[{"path": "../b", "manifest_sha256": "0"}],
    )
    publish(tmp_path / "b", kind="x", records=[row(0)], config={}, inputs=[tmp_path / "a"])
    history = explain_row(tmp_path / "b", row(0).id)["history"]
    assert [step["fate"] for step in history] == ["kept", "kept", "unknown"]


# ---------------------------------------------------------------------------------------------------- the commands


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_curate_prints_its_numbers(tmp_path: Path) -> None:
    source(tmp_path, ROWS)
    recipe = recipe_file(tmp_path, "[{no_refusal: }]")
    result = ojak(
        "curate", str(tmp_path / "in"), "--recipe", recipe, "--out", str(tmp_path / "out"), "--json"
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert {name: facts[name] for name in ("rows_in", "kept", "rejected", "not_applied")} == {
        "rows_in": 4, "kept": 3, "rejected": {"no_refusal": 1}, "not_applied": {},
    }  # fmt: skip
    again = ojak("curate", str(tmp_path / "in"), "--recipe", recipe, "--out", str(tmp_path / "out"))
    assert (again.exit_code, "exists already" in again.output) == (2, True)


def test_exit_3_if_something_was_not_applied_and_2_if_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.use_embedder(monkeypatch)
    source(tmp_path, ROWS)
    common = ("curate", str(tmp_path / "in"), "--recipe", "pro-300k-3", "--out", str(tmp_path / "out"))
    strict = ojak(*common, "--strict")
    assert (strict.exit_code, "cannot be applied" in strict.output) == (2, True)
    assert not (tmp_path / "out").exists()
    result = ojak(*common, "--json", "--keep", "2")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert facts["kept"] == 2 and "min_reward" in facts["not_applied"]
    assert facts["rows_in"] == facts["kept"] + sum(facts["rejected"].values())
    assert "no reward model was named" in result.stderr


def test_a_wrong_recipe_is_a_usage_error(tmp_path: Path) -> None:
    source(tmp_path, ROWS)
    result = ojak("curate", str(tmp_path / "in"), "--recipe", "air", "--out", str(tmp_path / "out"))
    assert (result.exit_code, "there is no recipe 'air'" in result.output) == (2, True)


def test_explain_prints_a_row_with_nothing_hidden(tmp_path: Path) -> None:
    evil = "a\x1b[31mred\u202e"
    rows = [row(0, evil, tags={evil: evil}), row(1, meta={"seed": 7})]
    turned = Rejected("bad", evil, evil, evil, meta={evil: evil})
    publish(tmp_path / "in", kind="magpie", records=rows, rejected=[turned], config={})
    curate_data(
        tmp_path / "in", tmp_path / "out", CurateConfig(recipe=recipe_file(tmp_path, "[{no_refusal: }]"))
    )
    for name in (rows[0].id, "bad"):
        result = ojak("explain", str(tmp_path / "out"), name)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output and "\u202e" not in result.output
    kept = ojak("explain", str(tmp_path / "out"), rows[1].id)
    assert kept.stdout.count("meta.seed: 7") == 1  # of both folders
    assert "passed" in kept.stdout and "no_refusal" in kept.stdout and "magpie" in kept.stdout
    assert (
        json.loads(ojak("explain", str(tmp_path / "out"), "bad", "--json").stdout)["history"][1]["reason"]
        == evil
    )
    assert ojak("explain", str(tmp_path / "out"), "none").exit_code == 2


RECIPE = """
version: 1
name: small
stages:
  magpie: {model: scripted, rows: 12}
  curate: {recipe: RULES}
  split: {test: 2}
"""


@pytest.mark.parametrize(
    ("rules", "code"), [("[{no_refusal: }]", 0), ("[{min_score: {score: reward, above: 0}}]", 3)]
)
def test_a_recipe_run_ends_with_exit_3_if_its_curation_left_rules_out(
    rules: str, code: int, tmp_path: Path
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace("RULES", recipe_file(tmp_path, rules)), "utf-8")
    stages: list[dict[str, Any]] = []
    for _ in range(2):  # the second time everything is up to date, and the answer the same
        result = ojak("run", str(path), "--out", str(tmp_path / "runs"), "--json")
        assert result.exit_code == code, result.output
        stages = json.loads(result.stdout)["stages"]
        assert [stage["name"] for stage in stages] == ["magpie", "curate", "split"]
    assert [stage["state"] for stage in stages] == ["up to date"] * 3
    before = explain_row(tmp_path / "runs/split", next(iter(split_ids(tmp_path / "runs/split"))))["history"]
    assert [step["kind"] for step in before] == ["split", "curate", "magpie"]


def split_ids(folder: Path) -> list[str]:
    from ojak.artifact import Artifact

    return [record.id for record in Artifact.open(folder).records()]
