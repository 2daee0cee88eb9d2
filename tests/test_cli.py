"""The command line: what goes to stdout and what to stderr, exit codes, hidden characters, signals."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, get_args, get_type_hints

import pytest
from typer.testing import CliRunner, Result

from ojak import formats
from ojak.artifact import Artifact, publish, verify
from ojak.cli import checks, curate, data, describe, judge, work
from ojak.cli.app import app
from ojak.engines.open import EngineName
from ojak.model import hub
from ojak.records import Conversation, Message, Preference, Rejected

COMMAND = [sys.executable, "-m", "ojak"]
FIELDS = ("rows", "accepted", "rejected", "failed", "completion_tokens", "seconds", "tokens_per_s", "out")
HOSTILE = "a\x1b[31mred\x1b]0;owned\x07 \u202eevil\u202c \x9b5m [bold]x[/bold] \r\x00\u200b end"


pytestmark = pytest.mark.usefixtures("folder")


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def magpie(*more: str, rows: int = 12, out: str = "d") -> Result:
    return ojak("synthesize", "magpie", "--model", "scripted", "--rows", str(rows), "--out", out, *more)


def pairs(out: str = "d", text: str = "hello") -> Artifact:
    turns = [Message(role="user", content=text), Message(role="assistant", content=text)]
    bad = Rejected("bad\x1b[2J", "too\x1b_short", "magpie", text)
    return publish(
        Path(out),
        kind="magpie",
        records=[Conversation(f"id-{i}", turns) for i in range(3)],
        rejected=[bad],
        config={},
    )


# ------------------------------------------------------------------------------------------------------ first steps


def test_bare_shows_a_quick_start() -> None:
    result = ojak()
    assert result.exit_code == 0
    assert 8 <= len(result.stdout.splitlines()) <= 14
    assert "ojak run recipes/quickstart.yaml" in result.stdout


def test_help_begins_with_examples_and_lists_verbs_in_flow_order() -> None:
    shown = ojak("--help").stdout
    assert shown.index("ojak run recipes/quickstart.yaml") < shown.index("--version")
    verbs = [
        "models",
        "tokenizer",
        "synthesize",
        "judge",
        "curate",
        "explain",
        "pairs",
        "train",
        "verify",
        "show",
        "export-data",
        "run",
        "report",
        "push",
        "serve",
        "chat",
        "export",
        "doctor",
    ]
    places = [shown.index(f"│ {verb} ") for verb in verbs]
    assert places == sorted(places)


def test_version() -> None:
    import ojak as package

    assert ojak("--version").stdout == f"ojak {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("show",),
        ("show", "d", "--nonsense"),
        ("export-data", "d", "--format", "csv", "--out", "x"),
        ("synthesize", "magpie", "--rows", "3", "--out", "d"),
        ("synthesize", "magpie", "--model", "m", "--rows", "0", "--out", "d"),
        ("synthesize", "magpie", "--model", "m", "--rows", "x", "--out", "d"),
        ("synthesize", "magpie", "--model", "m", "--rows", "1", "--out", "d", "--resume", "maybe"),
        ("synthesize", "magpie", "--model", "m", "--rows", "1", "--out", "d", "--grid", "warm"),
        ("synthesize", "magpie", "--model", "m", "--rows", "1", "--out", "d", "--limit-minutes", "-1"),
        ("models", "info", "nobody"),
        ("models", "pull", "nobody"),
        ("models", "pull", "gemma-3-270m"),
        ("run", "none.yaml"),
        ("synthesize", "magpie", "--model", "scripted", "--rows", "1", "--out", ""),
        ("run", "r.yaml", "--out", ""),
        ("run", ""),
        ("report", "d", "--out", ""),
        ("verify", ""),
        ("export-data", "d", "--format", "alpaca", "--out", ""),
    ],
)
def test_usage_errors_are_2_and_say_nothing_on_stdout(arguments: tuple[str, ...]) -> None:
    result = ojak(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip()


def test_an_empty_folder_s_name_is_not_the_current_folder(folder: Path) -> None:
    result = magpie(out="")
    assert (result.exit_code, list(folder.iterdir())) == (2, [])
    assert "an empty path" in result.stderr
    assert magpie(out=".").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("synthesize magpie --model nobody --rows 4 --out a/b/d", 2),
        ("synthesize magpie --model m.gguf --rows 4 --out a/b/d", 9),
        ("synthesize magpie --model smollm2-135m-instruct --rows 4 --out a/b/d", 5),
        ("synthesize magpie --model scripted --rows 4 --out a/b/d --resume always", 4),
        ("synthesize magpie --model scripted --rows 4 --out a/b/d --system @cooking", 2),
        ("synthesize magpie --model scripted --rows 4 --out a/b/d --grid 0.7:0", 2),
    ],
)
def test_a_refused_command_leaves_nothing(arguments: str, code: int) -> None:
    Path("m.gguf").write_bytes(b"GGUF\x03\x00")
    result = ojak(*arguments.split())
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert not Path("a").exists()


def test_a_wrong_flag_is_named() -> None:
    assert "--limit-minutes cannot be -1.0" in magpie("--limit-minutes", "-1").stderr
    assert "give a preset (default" in magpie("--grid", "warm").stderr


# ------------------------------------------------------------------------------------------------------ synthesis


def test_json_is_one_object_and_the_artifact_verifies() -> None:
    result = magpie("--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(FIELDS) <= found.keys()
    made = verify("d")
    assert found["rows"] == 12 == found["accepted"] + sum(found["rejected"].values()) + found["failed"]
    assert (found["accepted"], found["out"]) == (made.counts["accepted"], "d")
    assert "12/12 rows" in result.stderr


def test_without_json_stdout_is_the_folder() -> None:
    result = magpie()
    assert result.stdout == "d\n"
    assert "pairs from 12 rows" in result.stderr


def test_every_flag_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    facts = {
        "accepted": 1,
        "rows": 1,
        "completion_tokens": 1,
        "seconds": 1,
        "tokens_per_s": 1,
        "rejected": {},
    }
    monkeypatch.setattr(work, "run_magpie", lambda config: seen.append(config) or work.Result(facts))
    flags = (
        "--seed 5 --system @math --language de --grid air --max-instruction-tokens 7 --max-response-tokens 8 "
        "--limit-tokens 9 --limit-minutes 1.5 --resume always --accept-license gemma --accept-license other"
    )
    assert magpie(*flags.split()).exit_code == 0
    assert magpie().exit_code == 0
    given, plain = (config.model_dump() for config in seen)
    assert (given["seed"], given["system"], given["language"], given["grid"]) == (5, "@math", "de", "air")
    assert (given["max_instruction_tokens"], given["max_response_tokens"]) == (7, 8)
    assert (given["limit_tokens"], given["limit_minutes"], given["resume"]) == (9, 1.5, "always")
    assert given["accept_license"] == ("gemma", "other")
    assert (plain["max_instruction_tokens"], plain["max_response_tokens"], plain["resume"]) == (
        256,
        512,
        "if_possible",
    )
    assert (plain["seed"], plain["limit_tokens"], plain["limit_minutes"]) == (0, None, None)


def test_a_budget_ends_with_3_and_still_prints() -> None:
    result = magpie("--json", "--limit-tokens", "300", rows=40)
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["stopped"] == "limit_tokens"
    assert 0 < found["rows"] < 40
    assert "run the same command again" in result.stderr
    assert magpie("--json", rows=40).exit_code == 0
    assert verify("d").counts["rows"] == 40


def test_resume() -> None:
    assert magpie("--resume", "always").exit_code == 4
    assert magpie().exit_code == 0
    assert magpie("--seed", "1").exit_code == 4
    assert magpie("--resume", "never").exit_code == 2
    assert magpie("--resume", "always", rows=20).exit_code == 0
    assert verify("d").counts["rows"] == 20


@dataclass
class FakePlan:
    def to_dict(self) -> dict[str, int]:
        return {"rows": 3}

    def lines(self) -> list[str]:
        return ["3 rows", "9 tokens\x1b[2J"]


def test_dry_run_prints_the_plan_and_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "run_plan", lambda _config: FakePlan())
    assert magpie("--dry-run").stdout == "3 rows\n9 tokens\N{SYMBOL FOR ESCAPE}[2J\n"
    assert json.loads(magpie("--dry-run", "--json").stdout) == {"rows": 3}
    assert list(folder.iterdir()) == []


def test_dry_run_of_the_real_plan(folder: Path) -> None:
    result = magpie("--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == 12
    assert magpie("--dry-run").stdout.strip()
    assert not Path("d").exists()


# ------------------------------------------------------------------------------------------------------ artifacts


def test_verify() -> None:
    pairs()
    result = ojak("verify", "d")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "4 rows = 3 kept + 1 rejected + 0 failed" in result.stdout
    assert json.loads(ojak("verify", "d", "--json").stdout)["accepted"] == 3


def test_verify_tells_of_a_stopped_run() -> None:
    magpie("--limit-tokens", "300", rows=40)
    result = ojak("verify", "d")
    found = json.loads(ojak("verify", "d", "--json").stdout)
    assert result.exit_code == 0
    assert (found["stopped"], found["pending"]) == ("limit_tokens", 40 - found["rows"])
    told = f"{found['pending']} rows are pending; go on with `ojak synthesize magpie --out d`"
    assert told in result.stdout.splitlines()[1]
    assert "the data are whole as far as they go" in result.stdout
    assert magpie(rows=40).exit_code == 0
    assert len(ojak("verify", "d").stdout.splitlines()) == 1
    assert json.loads(ojak("verify", "d", "--json").stdout)["stopped"] is None
    Path("r.yaml").write_text(RECIPE, "utf-8")
    assert ojak("run", "r.yaml", "--set", "magpie.rows=40", "--set", "magpie.limit_tokens=300").exit_code == 3
    assert "go on with `ojak run`" in ojak("verify", "runs/small/magpie").stdout


def test_verify_fails_with_7_on_any_change_and_9_on_nothing() -> None:
    pairs()
    path = next(Path("d/data").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    result = ojak("verify", "d")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "has changed" in result.stderr
    assert ojak("verify", "nowhere").exit_code == 9


@pytest.mark.parametrize("arguments", [(), ("--rejected",)])
def test_show_hides_nothing_and_lets_nothing_act(arguments: tuple[str, ...]) -> None:
    pairs(text=HOSTILE)
    shown = ojak("show", "d", *arguments).stdout
    assert not {
        char for char in shown if ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u202e\u200b"
    } - {"\n"}
    assert "\N{SYMBOL FOR ESCAPE}[31mred" in shown
    assert "[bold]x[/bold]" in shown
    assert "U+202E" in shown


INVISIBLE = (
    "\u115f\u1160\u3164\uffa0\u200c\u200d\u2060\u180e\u00ad\u061c\u2028\u2029\ufeff\ue000\U000f0000\U000e0041\ufff9"
    "\u0378\ufdd0\U0001fffe\U0010ffff\u034f\u17b4\u180b\ufe00\U000e0100\u2800\x85\x0b\x0c"
)


def test_show_lets_nothing_be_invisible() -> None:
    pairs(text=" ".join(INVISIBLE))
    shown = ojak("show", "d").stdout
    assert not set(INVISIBLE) & set(shown)
    for char in INVISIBLE:
        assert (chr(0x2400 + ord(char)) if ord(char) < 32 else f"U+{ord(char):04X}") in shown


def test_show_leaves_what_can_be_seen() -> None:
    honest = "na\u00efve \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u2764\ufe0f \u3000\u00a0\tx \u0939\u093f"
    pairs(text=honest)
    assert honest in ojak("show", "d").stdout


def test_show_rows() -> None:
    pairs()
    assert ojak("show", "d", "--rows", "2").stdout.count("── ") == 2
    assert ojak("show", "d", "--rows", "0").stdout.count("── ") == 3
    assert "rejected: too" in ojak("show", "d", "--rejected").stdout
    assert [row["id"] for row in json.loads(ojak("show", "d", "--json").stdout)["rows"]] == [
        "id-0",
        "id-1",
        "id-2",
    ]
    assert ojak("show", "d", "--rows", "-1").exit_code == 2


def test_show_uses_a_pager_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydoc

    from ojak.cli import terminal

    paged: list[str] = []
    monkeypatch.setattr(pydoc, "pager", paged.append)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    terminal.write_pages(iter(["a", "b"]))
    assert paged == ["a\nb\n"]


def test_show_preferences() -> None:
    turns = [Message(role="user", content="question")]
    record = Preference(
        "p", turns, [Message(role="assistant", content="good")], [Message(role="assistant", content="bad")]
    )
    publish(Path("d"), kind="test", records=[record], config={})
    shown = ojak("show", "d").stdout
    assert [shown.index(word) for word in ("question", "good", "bad")] == sorted(
        shown.index(word) for word in ("question", "good", "bad")
    )


@pytest.mark.parametrize("verb", [curate.curate, judge.calibrate])
def test_engines_are_those_of_the_library(verb: Any) -> None:
    """The command line has a list of its own, so that `ojak --help` loads no engine."""
    assert get_args(get_type_hints(verb)["engine"]) == get_args(EngineName)


def test_formats_are_those_of_the_library() -> None:
    hints = get_type_hints(data.export_data)
    assert get_args(hints["fmt"]) == formats.FORMATS


@pytest.mark.parametrize("fmt", formats.FORMATS)
def test_export(fmt: str) -> None:
    pairs()
    result = ojak("export-data", "d", "--format", fmt, "--out", "x")
    assert (result.exit_code, result.stdout) == (0, "x\n")
    assert len(list(formats.load("x"))) == 3
    again = ojak("export-data", "d", "--format", fmt, "--out", "x")
    assert (again.exit_code, again.stdout) == (2, "")
    found = json.loads(ojak("export-data", "d", "--format", fmt, "--out", "y", "--json").stdout)
    assert (found["rows"], found["out"], found["skipped"]) == (3, "y", {})


@pytest.mark.parametrize("out", ["/dev/null/x", "/proc/x", "file/x", "n" * 300])
def test_a_place_where_nothing_can_be_written(out: str) -> None:
    pairs()
    Path("file").touch()
    results = [
        ojak("export-data", "d", "--format", "alpaca", "--out", out),
        ojak("export-data", "d", "--format", "parquet", "--out", out),
        ojak("report", "d", "--out", out),
        magpie(out=out),
    ]
    for result in results:
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"cannot write {out[:3]}" in result.stderr.replace(f"{Path.cwd()}/", "")
        assert "choose another place" in result.stderr
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["d", "file"]


def test_a_target_that_is_there_says_what_can_be_done() -> None:
    pairs()
    assert ojak("report", "d", "--out", "page").exit_code == 0
    assert "or pass --overwrite" in ojak("report", "d", "--out", "page").stderr
    words = ["export-data", "d", "--format", "alpaca", "--out", "x"]
    assert ojak(*words).exit_code == 0
    result = ojak(*words)
    assert result.stderr.endswith("fix: choose another name, or move it away\n")


def test_export_says_what_is_left_out() -> None:
    turns = [Message(role=role, content="x") for role in ("user", "assistant", "user", "assistant")]
    publish(Path("d"), kind="test", records=[Conversation("1", turns)], config={})
    result = ojak("export-data", "d", "--format", "alpaca", "--out", "x")
    assert "1 left out: more_than_one_turn" in result.stderr


def test_report() -> None:
    magpie()
    result = ojak("report", "d", "--out", "page")
    assert (result.exit_code, result.stdout) == (0, "page/index.html\n")
    assert Path("page/index.html").is_file()
    assert ojak("report", "d", "--out", "page").exit_code == 2
    assert json.loads(ojak("report", "d", "--out", "page", "--overwrite", "--json").stdout) == {
        "page": "page/index.html"
    }
    assert ojak("report", "nowhere", "--out", "other").exit_code == 9


# ------------------------------------------------------------------------------------------------------ recipes

RECIPE = "version: 1\nname: small\nstages:\n  magpie: {model: scripted, rows: 12}\n  split: {test: 0.25}\n  report:\n"


def test_run_and_run_again() -> None:
    Path("r.yaml").write_text(RECIPE, "utf-8")
    dry = ojak("run", "r.yaml", "--dry-run")
    assert dry.stdout.splitlines()[0] == "magpie: it has not run yet"
    assert not Path("runs").exists()
    result = ojak("run", "r.yaml")
    assert (result.exit_code, result.stdout) == (0, "runs/small/report/index.html\n"), result.stderr
    again = ojak("run", "r.yaml", "--json")
    found = json.loads(again.stdout)
    assert [stage["state"] for stage in found["stages"]] == ["up to date"] * 3
    assert found["report"] == "runs/small/report/index.html"
    assert found["stages"][0]["facts"]["rows"] == 12
    assert "magpie: up to date" in again.stderr
    changed = ojak("run", "r.yaml", "--set", "split.seed=4")
    assert (changed.exit_code, changed.stdout) == (2, "")
    assert "seed changed: 0 -> 4" in changed.stderr
    dry = ojak("run", "r.yaml", "--set", "split.seed=4", "--dry-run")
    assert "(needs --overwrite)" in dry.stdout
    assert (dry.exit_code, dry.stderr) == (changed.exit_code, changed.stderr)
    assert ojak("run", "r.yaml", "--set", "split.seed=4", "--dry-run", "--overwrite").exit_code == 0
    assert ojak("run", "r.yaml", "--set", "split.seed=4", "--overwrite").exit_code == 0


@pytest.mark.parametrize("setting", ["magpie.seed=5", "magpie.rows=11"])
def test_a_dry_run_ends_as_the_run_would(setting: str) -> None:
    Path("r.yaml").write_text(RECIPE, "utf-8")
    assert ojak("run", "r.yaml").exit_code == 0
    dry = ojak("run", "r.yaml", "--set", setting, "--dry-run", "--json")
    real = ojak("run", "r.yaml", "--set", setting)
    assert (dry.exit_code, dry.stderr) == (real.exit_code, real.stderr)
    assert dry.exit_code == 4
    assert json.loads(dry.stdout)["stages"][0]["needs_overwrite"] is True
    assert ojak("run", "r.yaml", "--set", setting, "--overwrite").exit_code == 0


def test_run_in_another_folder() -> None:
    Path("r.yaml").write_text(RECIPE, "utf-8")
    assert ojak("run", "r.yaml", "--out", "here").stdout == "here/report/index.html\n"
    assert verify("here/split")


def test_a_budget_ends_a_recipe_at_its_stage() -> None:
    Path("r.yaml").write_text(RECIPE, "utf-8")
    sets = ("--set", "magpie.rows=40", "--set", "magpie.limit_tokens=500")
    result = ojak("run", "r.yaml", *sets)
    assert (result.exit_code, result.stdout) == (3, "runs/small\n")
    assert "magpie stopped at limit_tokens" in result.stderr
    assert "not run after it: split, report" in result.stderr
    assert "run the same command again to go on" in result.stderr
    assert not Path("runs/small/split").exists()
    again = ojak("run", "r.yaml", *sets, "--json")
    (stage,) = json.loads(again.stdout)["stages"]
    assert (again.exit_code, stage["state"], stage["stopped"]) == (3, "stopped", "limit_tokens")
    assert ojak("run", "r.yaml", "--set", "magpie.rows=40").exit_code == 0


def test_a_budget_too_small_for_a_single_row_is_told_as_such() -> None:
    Path("r.yaml").write_text(RECIPE, "utf-8")
    assert ojak("run", "r.yaml", "--set", "magpie.limit_tokens=1").exit_code == 3


def test_consent_reaches_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        work, "run_recipe", lambda *given: seen.append(given) or work.RecipeResult("x", Path("o"), [])
    )
    assert (
        ojak("run", "r", "--accept-license", "a", "--accept-license", "b", "--set", "x.y=1").stdout == "o\n"
    )
    assert seen == [(Path("r"), None, ["x.y=1"], ("a", "b"), False)]


# ------------------------------------------------------------------------------------------------------ models


def test_models_list() -> None:
    assert "gemma-3-270m" in ojak("models", "list").stdout
    models = json.loads(ojak("models", "list", "--json").stdout)["models"]
    assert {"smollm2-135m-instruct", "gemma-3-270m"} <= {model["name"] for model in models}


def test_info_shows_what_is_known_without_consent() -> None:
    found = json.loads(ojak("models", "info", "gemma-3-270m", "--json").stdout)
    assert (found["license"], found["license_accepted"], found["path"]) == ("gemma", False, None)
    assert found["magpie"]["usable"] is None
    assert "base model" in ojak("models", "info", "gemma-3-270m").stdout


@pytest.mark.parametrize("accepted", [True, False])
def test_info_opens_weights_only_with_consent(accepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"name": "g", "license": "gemma", "license_accepted": accepted, "path": "/g.gguf"}
    opened: list[Path] = []
    monkeypatch.setattr(hub, "info", lambda _name: known)
    monkeypatch.setattr(describe, "_read", lambda path: opened.append(path) or source(None))
    found = json.loads(ojak("models", "info", "g", "--json").stdout)
    assert opened == [Path("/g.gguf")] * accepted
    assert found["magpie"]["usable"] is (False if accepted else None)
    assert ("--accept-license gemma" in found["magpie"]["why"]) is not accepted


class FakeTokenizer:
    bos_id, eos_id, bos_token, eos_token, adds_bos = None, 2, None, "<|im_end|>", False
    special_tokens: ClassVar[dict[str, int]] = {"<|im_start|>": 1, "<|im_end|>": 2}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [3] * len(text)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def source(template: str | None) -> Any:
    return SimpleNamespace(
        config={"model_type": "llama", "hidden_size": 8, "auto_map": {"x": "y"}},
        quantization="Q4_1",
        sha256="0" * 64,
        stop_ids=(2,),
        chat_template=template,
        tokenizer=FakeTokenizer(),
    )


def test_info_of_an_instruct_model(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("m.gguf").write_bytes(b"")
    monkeypatch.setattr(describe, "_read", lambda _path: source(CHATML))
    found = json.loads(ojak("models", "info", "m.gguf", "--json").stdout)
    assert found["chat"]["pre_query"] == "<|im_start|>user\n"
    assert found["chat"]["post_query"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert found["chat"]["stop_ids"] == [1, 2]
    assert found["magpie"] == {"usable": True, "why": None}
    assert found["config"] == {"model_type": "llama", "hidden_size": 8}
    assert found["quantization"] == "Q4_1"
    assert '"<|im_start|>user\\n"' in ojak("models", "info", "m.gguf").stdout


def test_info_of_a_base_model_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("m.gguf").write_bytes(b"")
    monkeypatch.setattr(describe, "_read", lambda _path: source(None))
    result = ojak("models", "info", "m.gguf", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["magpie"]["usable"] is False
    assert "no chat template" in found["magpie"]["why"]
    assert found["config"]["hidden_size"] == 8


def test_info_of_a_broken_file() -> None:
    Path("m.gguf").write_bytes(b"GGUF\x03\x00")
    found = json.loads(ojak("models", "info", "m.gguf", "--json").stdout)
    assert found["magpie"]["usable"] is False


@pytest.mark.real
def test_info_of_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OJAK_HOME")
    monkeypatch.delenv("OJAK_OFFLINE")
    assert ojak("models", "pull", "smollm2-135m-instruct").exit_code == 0
    found = json.loads(ojak("models", "info", "smollm2-135m-instruct", "--json").stdout)
    assert found["chat"]["pre_query"].endswith("<|im_end|>\n<|im_start|>user\n")
    assert found["chat"]["post_query"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert found["chat"]["stop_tokens"]
    assert (found["license"], found["quantization"]) == ("apache-2.0", "Q4_1")


# ------------------------------------------------------------------------------------------------------ the doctor


def test_doctor() -> None:
    result = ojak("doctor", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (0, True)
    names = [check["name"] for check in found["checks"]]
    assert names == ["python", "torch", "gpu", "memory", "disk", "writing", "cache", "models", "templates"]
    assert list(Path.cwd().iterdir()) == []


def test_doctor_says_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> checks.Check:
        raise RuntimeError("no torch\x1b")

    monkeypatch.setattr(checks, "torch_build", broken)
    result = ojak("doctor")
    assert result.exit_code == 1
    assert "failed  torch      RuntimeError: no torch\N{SYMBOL FOR ESCAPE}" in result.stdout
    assert "to be mended: torch" in result.stderr
    assert json.loads(ojak("doctor", "--json").stdout)["ok"] is False


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/x", "/proc/nowhere"])
def test_a_cache_that_cannot_be_used(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_HOME", home)
    result = ojak("doctor")
    assert result.exit_code == 1
    assert f"failed  cache      {home} cannot be used" in result.stdout
    pulled = ojak("models", "pull", "smollm2-135m-instruct")
    assert (pulled.exit_code, pulled.stdout) == (2, "")
    assert f"the cache {home} cannot be used" in pulled.stderr
    assert "set OJAK_HOME" in pulled.stderr


def test_doctor_asks_the_network_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def index() -> checks.Check:
        asked.append("asked")
        return checks.Check("index", checks.OK, "it answers")

    monkeypatch.setattr(checks, "index", index)
    ojak("doctor")
    assert asked == []
    assert "it answers" in ojak("doctor", "--network").stdout
