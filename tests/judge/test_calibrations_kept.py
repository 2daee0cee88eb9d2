"""Calibrations in the cache, and `ojak judge calibrate`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ojak.cli.app import app
from ojak.judge import kept, load_calibration
from ojak.judge.kept import Calibration, calibration_path, is_usable, keep_calibration

IDENTITY = {"engine": "native", "model": "m", "model_sha256": "a" * 64, "dtype": "float32"}


def some(identity: dict[str, str] = IDENTITY) -> Calibration:
    return Calibration(
        identity=dict(identity),
        code=kept.judge_code(),
        source="bundled",
        rows=60,
        seed=0,
        auroc={"shuffled": (0.8, 0.7, 0.9)},
        overall=(0.75, 0.65, 0.85),
        usable=True,
    )


def test_it_is_found_again_by_the_model_s_hash(folder: Path) -> None:
    assert load_calibration(IDENTITY) is None
    path = keep_calibration(some())
    assert path.parent == folder / "home" / "calibration"
    found = load_calibration({**IDENTITY, "model": "another name", "dtype": "bfloat16"})
    assert found is not None
    assert (found.usable, found.auroc) == (True, {"shuffled": (0.8, 0.7, 0.9)})
    assert math.isnan(found.length_bias[0])
    assert load_calibration({**IDENTITY, "model_sha256": "b" * 64}) is None
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_it_holds_for_one_state_of_the_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_calibration(some())
    monkeypatch.setattr(kept, "judge_code", lambda: "changed")
    assert load_calibration(IDENTITY) is None


def test_it_holds_for_one_way_of_asking(folder: Path) -> None:
    """Curation asks with the questions' own number of reason tokens: what another one gave says nothing of it."""
    keep_calibration(some(), reason_tokens=0)
    assert load_calibration(IDENTITY) is None
    keep_calibration(some())
    assert load_calibration(IDENTITY) is not None
    assert len({calibration_path(IDENTITY, reason_tokens) for reason_tokens in (None, 0, 8)}) == 3


def test_a_model_without_a_hash_is_known_by_all_else(folder: Path) -> None:
    served = {"engine": "endpoint", "model": "m", "url": "http://127.0.0.1:1"}
    keep_calibration(some(served))
    assert load_calibration(served) is not None
    assert load_calibration({**served, "model": "n"}) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"overall": 3}', "{" * 5000, '{"usable": true}'])
def test_a_damaged_file_is_none(folder: Path, text: str) -> None:
    path = calibration_path(IDENTITY)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert load_calibration(IDENTITY) is None


@pytest.mark.parametrize(
    ("estimate", "usable"),
    [
        ((0.70, 0.61, 0.8), True),
        ((0.69, 0.65, 0.8), False),
        ((0.80, 0.60, 0.9), False),
        ((math.nan, math.nan, math.nan), False),
    ],
)
def test_what_may_filter(estimate: tuple[float, float, float], usable: bool) -> None:
    assert is_usable(estimate) is usable


def test_the_command(folder: Path) -> None:
    result = CliRunner().invoke(app, ["judge", "calibrate", "--model", "scripted", "--rows", "12", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["rows"] == 12
    assert facts["usable"] is False
    assert all(len(estimate) == 3 for estimate in facts["auroc"].values())
    assert facts["correlation"] == {}
    assert Path(facts["path"]).is_file()
    shown = CliRunner().invoke(app, ["judge", "calibrate", "--model", "scripted", "--rows", "12"])
    assert "may tag, but not filter" in shown.stdout
    assert "instruction_gain" in shown.stdout.replace("\n", "")


def test_the_user_s_own_rows(folder: Path) -> None:
    rows = [
        {"instruction": f"Say {i} words\x1b[31m", "input": "", "output": f"{'word ' * i}"}
        for i in range(1, 15)
    ]
    (folder / "own.json").write_text(json.dumps(rows))
    arguments = ["judge", "calibrate", "--model", "scripted", "--json", "--data", str(folder / "own.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["source"] == "own.json", "a folder's name would go out with the manifest"
    (folder / "own.json").write_text(json.dumps(rows[:3]))
    assert CliRunner().invoke(app, arguments).exit_code == 9
    assert CliRunner().invoke(app, [*arguments[:-1], "missing.json"]).exit_code == 9
