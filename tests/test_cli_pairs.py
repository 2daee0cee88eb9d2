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
    assert made.exit_code == 0, made.stderr
    facts = json.loads(made.stdout)
    # The engine without a model knows of no label: every row has its reason.
    assert facts["rejected"] == {"persona_label_missing": 3}
    Path("people.txt").write_text("A nurse on night shifts.\nA tram driver.\n", "utf-8")
    assert magpie("d", "--personas", "people.txt", "--responses", "3").exit_code == 0
    result = ojak("pairs", "d", "--out", "pairs", "--by", "likelihood", "--margin", "0.01", "--json")
    assert result.exit_code == 0, result.stderr
    counts = json.loads(result.stdout)
    assert (
        counts["rows"]
        == verify("d").counts["accepted"]
        == counts["accepted"] + sum(counts["rejected"].values())
    )
    assert (counts["out"], verify("pairs").kind) == ("pairs", "pairs")
    spoken = ojak("pairs", "d", "--out", "pairs2", "--by", "response_chars", "--rejected", "quantile")
    assert (spoken.exit_code, spoken.stdout) == (0, "pairs2\n")
    assert "instructions" in spoken.stderr


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
    ],
)
def test_refusals_name_what_is_wrong(arguments: str, code: int, said: str) -> None:
    magpie("plain")
    magpie("many", "--responses", "2")
    result = ojak(*arguments.split())
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr.replace("\n", " ")
