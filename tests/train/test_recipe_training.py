"""Recipes that train: rows, arms and seeds, evaluation, comparison; resumed, killed, changed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from typer.testing import CliRunner

from ojak import _recipe_run, recipe
from ojak.artifact import Artifact, verify
from ojak.cli.app import app
from ojak.errors import ResumeRefused, Stopped, TargetExists, UsageError, VerificationFailed
from ojak.evaluate.comparison import figures_of
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.run import evaluate_model
from ojak.model.load import load_model
from ojak.records import Conversation

STAGES = ("rows", "train", "evaluate")
ARMS = """\
version: 1
name: small
parameters:
  data: {what: "rows"}
stages:
  rows: {data: ["${data}"], test: 4, validation: 3, seed: null}
  train:
    model: model
    val_data: "@rows:validation"
    style: alpaca
    max_tokens: 4000
    batch: 4
    max_len: 400
    lr: 1.0e-2
    dtype: float32
    peak_flops: 1.0e+12
    seeds: [0, 1]
    arms:
      whole: {}
      lora: {lora: {r: 2}}
  evaluate: {measures: [likelihood, answers], max_tokens: 6, dtype: float32}
"""
ONE = ARMS[: ARMS.index("    seeds:")] + ARMS[ARMS.index("  evaluate:") :]


TRAINED = ARMS[: ARMS.index("  evaluate:")]
ALONE = ONE[: ONE.index("  evaluate:")]


def settle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OJAK_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    return folder


def begin(folder: Path) -> None:
    """A tiny base model and rows."""
    tiny.model(scale=0.1).save(folder / "model")
    tiny_run.data(folder, 24)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a tiny base model and rows."""
    begin(tmp_path)
    return settle(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which ARMS has been run with a report, once for all tests; and what was said."""
    folder = tmp_path_factory.mktemp("made")
    begin(folder)
    with pytest.MonkeyPatch.context() as patch:
        settle(folder, patch)
        done, said = run(ARMS + "  report:\n")
    assert list(done) == [*STAGES, "report"] and all(done.values())
    return folder, said


@pytest.fixture
def finished(made: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, its report left out."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs/small/report")
    return settle(tmp_path, monkeypatch)


def load(text: str = ARMS, *sets: str) -> recipe.Recipe:
    Path("r.yaml").write_text(text, "utf-8")
    return recipe.load("r.yaml", sets=["data=rows.json", *sets])


def run(text: str = ARMS, *sets: str, **options: Any) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    said: list[str] = []
    done = _recipe_run.run(load(text, *sets), notify=said.append, **options)
    return {item.name: item.reasons for item in done}, said


def stats(name: str) -> dict[str, Any]:
    return Artifact.open(Path("runs/small") / name).stats


def test_arms_and_seeds_are_trained_measured_and_compared(
    made: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = made
    settle(folder, monkeypatch)
    assert Artifact.open("runs/small/rows").splits == {"train": 17, "test": 4, "validation": 3}
    runs = stats("train")["runs"]
    names = [("whole", 0), ("lora", 0), ("whole", 1), ("lora", 1)]
    assert [(each["arm"], each["seed"]) for each in runs] == names
    assert [each["folder"] for each in runs] == [f"{arm}/seed-{seed}" for arm, seed in names]
    for each in runs:
        of = Path("runs/small/train", each["folder"])
        manifest = json.loads((of / "manifest.json").read_text("utf-8"))
        assert manifest["config"]["seed"] == each["seed"]
        assert manifest["result"] == each["result"]
        assert (of / ("adapter" if each["arm"] == "lora" else "model")).is_dir()
        assert each["result"]["val_loss"] is not None
    assert "### Response:" in (
        load_model("runs/small/train/lora/seed-1", dtype="float32").chat_template or ""
    )
    found = stats("evaluate")
    assert found["against"] == "whole" and found["seeds"] == [0, 1]
    assert found["arms"].keys() == {"base", "whole", "lora"}
    assert found["differences"].keys() == {"base", "lora"}
    assert {"bits_per_byte", "reference_logprob", "chrf", "stopped", "val_loss"} <= set(found["metrics"])
    tuned = found["arms"]["whole"]["reference_logprob"]
    assert tuned["over"] == "seeds and rows" and len(tuned["values"]) == 2
    assert tuned["mean"] > found["arms"]["base"]["reference_logprob"]["mean"]
    assert "val_loss" not in found["differences"]["base"]
    for names in found["folders"].values():
        assert all(verify(Path("runs/small/evaluate", name)).kind == "evaluate" for name in names)
    assert verify("runs/small/evaluate").kind == "comparison"
    assert "<html" in Path("runs/small/report/index.html").read_text("utf-8")
    assert any("lora, seed 1 (4 of 4)" in line for line in said)
    again, said = run(ARMS + "  report:\n")
    assert not any(again.values())
    assert "train: up to date" in said


def test_a_comparison_is_that_of_its_parts(finished: Path) -> None:
    found = stats("evaluate")
    for arm, names in found["folders"].items():
        parts = [Artifact.open(Path("runs/small/evaluate", name)) for name in names]
        bits = [part.stats["bits_per_byte"] for part in parts]
        assert found["arms"][arm]["bits_per_byte"]["values"] == pytest.approx(bits)
        stopped = [part.stats["answers"]["stopped"][0] for part in parts]
        assert found["arms"][arm]["stopped"]["values"] == pytest.approx(stopped)
        losses = [-part.stats["loss"] for part in parts]
        assert found["arms"][arm]["reference_logprob"]["values"] == pytest.approx(losses)
    whole, lora = (found["arms"][arm]["chrf"]["values"] for arm in ("whole", "lora"))
    value = found["differences"]["lora"]["chrf"]["value"]
    assert value == pytest.approx(sum(b - a for a, b in zip(whole, lora, strict=True)) / 2)


def test_a_single_run_lies_in_the_stage_s_folder_and_the_base_is_what_it_is_compared_with(
    folder: Path,
) -> None:
    done, _ = run(ONE)
    assert list(done) == list(STAGES)
    manifest = json.loads(Path("runs/small/train/manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "training"
    assert Path("runs/small/train/model/model.safetensors").is_file()
    found = stats("evaluate")
    assert (found["against"], found["arms"].keys()) == ("base", {"base", "tuned"})
    assert found["folders"] == {"base": ["base"], "tuned": ["tuned-seed-0"]}
    assert found["arms"]["tuned"]["bits_per_byte"]["over"] == "rows"
    assert found["arms"]["tuned"]["seconds"]["low"] is None
    assert not any(run(ONE)[0].values())
    weights = Path("runs/small/train/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    steps = {step.chosen.stage.name: step for step in _recipe_run.plan(load(ONE))}
    assert "its result is damaged" in steps["train"].reasons[0]


def test_an_input_stands_where_the_style_has_it_when_a_model_is_asked(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with an input are asked and scored as they were learnt, not with the input inside the instruction."""
    from ojak.engines.native import NativeEngine

    asked: list[str] = []
    generate = NativeEngine.generate

    def noted(self: Any, requests: Any, *, longest: int) -> Any:
        listed = list(requests)
        asked.extend(request.prompt for request in listed)
        return generate(self, iter(listed), longest=longest)

    monkeypatch.setattr(NativeEngine, "generate", noted)
    base = EvaluateConfig(
        model="model", template_of="runs/small/train/whole/seed-0", data="runs/small/rows", split="test",
        measures=("answers",), max_tokens=2, dtype="float32",
    )  # fmt: skip
    evaluate_model(base)
    rows = [row for row in Artifact.open("runs/small/rows").records("test") if isinstance(row, Conversation)]
    given = [row.meta["alpaca_input"] for row in rows if row.meta.get("alpaca_input")]
    assert given and len(asked) == len(rows)
    for each in given:
        assert sum(f"### Input:\n{each}\n\n### Response:\n" in text for text in asked) == 1


def test_finished_runs_are_not_made_again_when_a_seed_comes_in(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("runs/small/train").rglob("*.safetensors")}
    measured = Path("runs/small/evaluate/base/manifest.json").stat().st_mtime_ns
    reasons, said = run(ARMS, "train.seeds=[0, 1, 2]")
    assert reasons["train"] == ("seeds changed: [0, 1] -> [0, 1, 2]",)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(stats("train")["runs"]) == 6
    assert Path("runs/small/evaluate/base/manifest.json").stat().st_mtime_ns == measured
    assert "base: measured before" in said
    assert stats("evaluate")["seeds"] == [0, 1, 2]


def test_other_settings_and_other_rows_are_refused_before_any_work(finished: Path) -> None:
    trained = Path("runs/small/train/manifest.json").read_bytes()
    with pytest.raises(ResumeRefused, match="other settings") as caught:
        run(ARMS, "train.lr=0.5")
    assert "--overwrite" in caught.value.fix
    with pytest.raises(TargetExists, match="other settings"):
        run(ARMS, "evaluate.max_tokens=5")
    tiny_run.data(finished, 23)
    with pytest.raises(TargetExists):
        run()
    assert Path("runs/small/train/manifest.json").read_bytes() == trained
    assert _recipe_run.plan(load())[0].is_blocked


def test_a_run_on_rows_that_were_replaced_is_not_taken_for_that_of_the_new_ones(finished: Path) -> None:
    tiny_run.data(finished, 23)
    shutil.rmtree("runs/small/rows")
    with pytest.raises(ResumeRefused, match="has changed since"):
        run(TRAINED)
    assert Artifact.open("runs/small/rows").splits["train"] == 16
    reasons, said = run(TRAINED, "train.seeds=[1]", "train.max_tokens=300", overwrite=True)
    assert reasons["train"] and any(".aside/train-1" in line for line in said)
    assert Path("runs/small/.aside/train-1/lora/seed-0/manifest.json").is_file()


def test_rows_that_were_made_again_and_are_the_same_train_nothing_anew(finished: Path) -> None:
    weights = Path("runs/small/train/whole/seed-0/model/model.safetensors")
    before = weights.stat().st_mtime_ns
    trained = Path("runs/small/train/manifest.json").read_bytes()
    shutil.rmtree("runs/small/rows")
    reasons, _ = run(TRAINED)
    assert reasons == {"rows": ("it has not run yet",), "train": ("rows has a new result",)}
    assert weights.stat().st_mtime_ns == before
    assert Path("runs/small/train/manifest.json").read_bytes() == trained
    assert not any(run(TRAINED)[0].values())


def test_killed_in_its_second_run_the_recipe_ends_with_the_same_weights(
    made: tuple[Path, list[str]], folder: Path
) -> None:
    text = TRAINED.replace("arms:", "checkpoint: {every_steps: 1}\n    arms:").replace("[0, 1]", "[0]")
    child = os.fork()
    if not child:
        try:
            _recipe_run.run(load(text), progress=_Kill("lora, seed 0", 2))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not Path("runs/small/train/manifest.json").exists()
    first = Path("runs/small/train/whole/seed-0/model/model.safetensors")
    before = first.stat().st_mtime_ns
    reasons, said = run(text)
    assert reasons["train"] == ("it was interrupted",)
    assert first.stat().st_mtime_ns == before
    assert any("going on from step-" in line for line in said)
    for path in (first, Path("runs/small/train/lora/seed-0/adapter/adapter_model.safetensors")):
        assert path.read_bytes() == (made[0] / path).read_bytes(), path


class _Kill:
    """A listener that kills the process, or sends it a signal, at a step of a run."""

    def __init__(self, name: str, step: int, number: int = signal.SIGKILL) -> None:
        self.name, self.step, self.number = name, step, number

    def update(self, state: Any) -> None:
        if state.phase.startswith(self.name) and state.rows_done == self.step:
            os.kill(os.getpid(), self.number)


def test_a_signal_stops_after_the_step_and_the_next_run_goes_on(folder: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        run(ALONE, progress=_Kill("training", 2, signal.SIGTERM))
    assert stopped.value.exit_code == 143
    reasons, said = run(ALONE)
    assert reasons["train"] == ("it was interrupted",)
    assert any("going on from step-0000002" in line for line in said)


def test_an_evaluation_that_was_interrupted_measures_the_rest(finished: Path) -> None:
    from ojak.evaluate import comparison

    shutil.rmtree("runs/small/evaluate")
    sets = ("evaluate.base=false", "evaluate.measures=[likelihood]")
    measure, measured = comparison.evaluate_model, []

    def failing(config: Any, out: Path, **options: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(out.name)
        return measure(config, out, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(comparison, "evaluate_model", failing)
        run(ARMS, *sets)
    assert measured == ["whole-seed-0", "lora-seed-0"]
    _, said = run(ARMS, *sets)
    assert [line for line in said if line.endswith("measured before")] == [
        "whole-seed-0: measured before",
        "lora-seed-0: measured before",
    ]
    assert stats("evaluate")["against"] == "whole"


def test_what_is_kept_of_each_row_is_what_the_figures_are_made_of(finished: Path) -> None:
    kept = Path("runs/small/evaluate/base/likelihood.json")
    found = json.loads(kept.read_text("utf-8"))
    loss = Artifact.open(kept.parent).stats["loss"]
    assert math.fsum(found["nats"]) / sum(found["tokens"]) == pytest.approx(loss)
    kept.write_text(json.dumps(found | {"nats": [0.0] * len(found["nats"])}), "utf-8")
    with pytest.raises(VerificationFailed, match="has changed"):
        figures_of(kept.parent)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("@rows:validation", "@split:test", "'@split:test' names no stage with rows before this one"),
        ("@rows:validation", "@rwos", "did you mean 'rows'"),
        ("@rows:validation", "nowhere.json", "train: there is nothing at 'nowhere.json'"),
        ("whole: {}", "data: {}", "'data' cannot be the name of an arm"),
        ("whole: {}", "whole: {seed: 4}", "the arm 'whole' cannot set 'seed'"),
        ("whole: {}", "whole: {lr: fast}", "arms.whole.lr cannot be 'fast'"),
        ("whole: {}", "whole: {rl: 1}", "there is no setting 'arms.whole.rl'"),
        ("r: 2", "r: 0", "arms.lora.lora.r cannot be 0"),
        ("[0, 1]", "[0, 0]", "a seed stands there twice"),
        ("    model: model\n", "", "train.model is missing"),
    ],
)
def test_what_a_recipe_cannot_say(folder: Path, old: str, new: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        load(ARMS.replace(old, new))


def test_training_without_rows_before_it_is_refused(folder: Path) -> None:
    text = "version: 1\nname: x\nparameters: {data: {what: x}}\nstages:\n  train: {model: model}\n"
    with pytest.raises(UsageError, match="there are no rows to read"):
        load(text)
    assert load(text.replace("model}", "model, data: [rows.json]}")).chosen[0].reads == ()


def test_an_arm_may_have_rows_of_its_own_and_equal_numbers_of_them(folder: Path) -> None:
    few = tiny_run.rows(9)
    (folder / "few.json").write_text(json.dumps(few), "utf-8")
    text = ARMS.replace("whole: {}", "few: {data: [few.json]}").replace("seeds: [0, 1]", "max_rows: 8")
    run(text[: text.index("  evaluate:")].replace("max_tokens: 4000", "max_tokens: 300"))
    rows = {}
    for arm in ("few", "lora"):
        manifest = json.loads(Path(f"runs/small/train/{arm}/seed-0/manifest.json").read_text("utf-8"))
        rows[arm] = manifest["rows"]["rows"], manifest["config"]["data"]
    assert rows == {"few": (8, ["few.json"]), "lora": (8, ["runs/small/rows"])}


def test_the_command_says_how_to_talk_to_what_it_made(folder: Path) -> None:
    (folder / "r.yaml").write_text(ALONE, "utf-8")
    result = CliRunner().invoke(app, ["run", "r.yaml", "--set", "data=rows.json"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "runs/small\n"
    assert result.stderr.splitlines()[-1] == "talk to what was trained: ojak chat runs/small/train"
    assert "steps" in result.stderr and "tok/s" in result.stderr
    talk = ["chat", "runs/small/train", "--prompt", "Say 3.", "--max-tokens", "4", "--json"]
    told = CliRunner().invoke(app, talk)
    assert told.exit_code == 0, told.stderr
