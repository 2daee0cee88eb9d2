"""The commands for several turns, several answers, personas and pairs: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ojak.artifact import verify
from ojak.cli.app import app

pytestmark = pytest.mark.usefixtures("folder")


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def magpie(out: str, *more: str) -> Result:
    return ojak("synthesize", "magpie", "--model", "scripted", "--rows", "12", "--out", out, *more)


def test_flags_of_several_turns_and_answers_arrive() -> None:
    flags = "--turns 3 --responses 4 --response-temperature 0.5 --max-total-tokens 900 --json"
    result = magpie("d", *flags.split())
    assert result.exit_code == 0, result.stderr
    told, config = json.loads(result.stdout), verify("d").manifest["config"]
    assert (config["turns"], config["responses"]) == (3, 4)
    assert (config["response_temperature"], config["max_total_tokens"]) == (0.5, 900)
    assert sum(told["turns"].values()) == told["accepted"]


def test_personas_then_magpie_then_pairs() -> None:
    Path("texts.txt").write_text("\n\n".join(f"Text {n}. " + "x" * 1500 for n in range(3)), "utf-8")
    made = ojak(
        "synthesize", "personas", "--model", "scripted", "--source", "texts.txt", "--out", "p", "--json"
    )
    assert (made.exit_code, "no personas came out of 3 rows" in made.stderr) == (3, True)
    facts = json.loads(made.stdout)
    # The engine without a model knows of no label: every row has its reason.
    assert facts["rejected"] == {"persona_label_missing": 3}
    Path("people.txt").write_text("A nurse on night shifts.\nA tram driver.\n", "utf-8")
    assert magpie("d", "--personas", "people.txt", "--responses", "3").exit_code == 0
    result = ojak("pairs", "d", "--out", "pairs", "--by", "likelihood", "--margin", "0.01", "--json")
    assert result.exit_code == 3, result.stderr  # it finds every text equally likely
    counts = json.loads(result.stdout)
    assert (
        counts["rows"]
        == verify("d").counts["accepted"]
        == counts["accepted"] + sum(counts["rejected"].values())
    )
    assert (counts["out"], counts["by"], counts["failed"], verify("pairs").kind) == (
        "pairs", "likelihood", 0, "pairs",
    )  # fmt: skip
    spoken = ojak("pairs", "d", "--out", "pairs2", "--by", "response_chars", "--rejected", "quantile")
    assert (spoken.exit_code, spoken.stdout) == (3, "pairs2\n")  # answers of one length make no pair
    assert "instructions" in spoken.stderr


def test_pairs_by_the_judge_ask_for_its_calibration() -> None:
    assert magpie("d", "--responses", "3").exit_code == 0
    words = "pairs d --out p --by judge_score --engine scripted --model any --json"
    refused = ojak(*words.split())
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "has not been calibrated" in refused.stderr.replace("\n", " ")
    assert not Path("p").exists()
    trusted = ojak(*words.split(), "--trust-anyway")
    assert trusted.exit_code == 3, trusted.stderr  # it grades all alike: no pairs
    counts = json.loads(trusted.stdout)
    assert counts["rows"] == counts["accepted"] + sum(counts["rejected"].values()) > 0
    assert (verify("p").stats["engine"]["engine"], counts["by"]) == ("scripted", "judge_score")
    assert ojak(*words.split(), "--trust-anyway").exit_code == 2  # nothing is overwritten


def test_pairs_that_are_none_end_with_3() -> None:
    assert magpie("d", "--responses", "3").exit_code == 0
    result = ojak("pairs", "d", "--out", "p", "--by", "response_chars", "--margin", "1e9", "--json")
    assert (result.exit_code, json.loads(result.stdout)["accepted"]) == (3, 0)
    said = " ".join(result.stderr.split())
    assert "no pairs came out of" in said and "why: rejected:" in said and "--rejected" in said
    assert verify("p").counts["accepted"] == 0


def personas(words: str) -> Result:
    return ojak("synthesize", "personas", *words.split())


PERSONAS = "--model scripted --source texts.txt --out p"


def test_a_plan_of_personas_writes_nothing(tmp_path: Path) -> None:
    Path("texts.txt").write_text("\n\n".join(f"Text {n}. " + "x" * 1500 for n in range(3)), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    flags = "--rounds 2 --relatives 2 --max-tokens 10 --dry-run"
    told = personas(f"{PERSONAS} {flags} --json")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert (found["verdict"], found["rows"], found["at_most"], found["rows_to_do"]) == ("start", 21, True, 21)
    assert found["persona_tokens"] == 210
    spoken = personas(f"{PERSONAS} {flags}").stdout
    assert "at most 21: 0 begun" in spoken
    assert "about 210 of personas" in spoken
    assert sorted(tmp_path.rglob("*")) == before
    assert personas(PERSONAS).exit_code == 3  # the engine without a model knows of no label: none is kept
    assert json.loads(personas(f"{PERSONAS} --dry-run --json").stdout)["verdict"] == "finished"
    other = json.loads(personas(f"{PERSONAS} --seed 1 --dry-run --json").stdout)
    assert (other["verdict"], "seed: 0 -> 1" in other["why"]) == ("refused", True)


def test_personas_take_the_engines_of_magpie() -> None:
    Path("texts.txt").write_text("A text of some words about bees and trams.", "utf-8")
    done = personas("--model any --engine scripted --source texts.txt --out p --json")
    assert done.exit_code == 3, done.stderr
    assert verify("p").stats["engine"]["engine"] == "scripted"
    gone = personas("--engine endpoint --model m --source texts.txt --out q")
    assert (gone.exit_code, "--url" in gone.stderr) == (2, True)
    wrong = personas(f"{PERSONAS} --url ftp://me:canary@host")
    assert (wrong.exit_code, "--url is refused" in wrong.stderr, "canary" in wrong.stderr) == (2, True, False)
    served = "--engine endpoint --url http://127.0.0.1:1 --model m"
    planned = personas(f"{served} --source texts.txt --out q --dry-run --json")
    assert json.loads(planned.stdout)["verdict"] == "start"  # a server is not asked before the run


def test_a_budget_of_personas_ends_with_3() -> None:
    Path("texts.txt").write_text("\n\n".join(f"Text {n}. " + "x" * 1500 for n in range(9)), "utf-8")
    words = "synthesize personas --model scripted --source texts.txt --out p --limit-tokens 20"
    result = ojak(*words.split())
    assert result.exit_code == 3
    assert "0 personas" in result.stderr
    told = ojak("verify", "p").stdout
    assert "ojak synthesize personas --out p" in told


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("synthesize magpie --model scripted --rows 2 --out d --turns 21", 2, "--turns cannot be 21"),
        (
            "synthesize magpie --model scripted --rows 2 --out d --personas none.txt",
            2,
            "--personas cannot be",
        ),
        ("synthesize personas --model scripted --source none --out d", 2, "--source cannot be"),
        ("synthesize personas --model scripted --source . --out d --rounds 7", 2, "--rounds cannot be 7"),
        ("pairs none --out p", 9, "none"),
        ("pairs plain --out p", 9, "--responses 5"),
        ("pairs many --out p --quantile 2", 2, "--quantile cannot be 2"),
        ("pairs many --out p --by nonsense", 2, "nonsense"),
        ("pairs many --out many --by response_chars", 2, "many"),
        ("pairs many --out p --engine endpoint --model m", 2, "--url http://HOST:PORT"),
        ("pairs many --out p --url ftp://me@host", 2, "--url is refused"),
        ("pairs many --out p --url http://127.0.0.1:1 --model m", 2, "settings of an endpoint"),
    ],
)
def test_refusals_name_what_is_wrong(arguments: str, code: int, said: str) -> None:
    magpie("plain")
    magpie("many", "--responses", "2")
    result = ojak(*arguments.split())
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr.replace("\n", " ")
