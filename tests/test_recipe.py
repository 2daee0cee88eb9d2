"""Recipes: read with places and advice in every message, overridden, and carried out only as far as needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ojak import _code, _recipe_run, _recipe_yaml, recipe, stages
from ojak.artifact import Artifact, TargetLock, verify
from ojak.errors import (
    Locked,
    OjakError,
    ResumeRefused,
    Stopped,
    TargetExists,
    UsageError,
    VerificationFailed,
)

SMALL = """\
version: 1
name: small
stages:
  magpie:
    model: scripted
    rows: 12
  split: {test: 0.25}
  report:
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the recipe SMALL in `r.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(SMALL, "utf-8")
    return tmp_path


def load(text: str, sets: Sequence[str] = ()) -> recipe.Recipe:
    Path("r.yaml").write_text(text, "utf-8")
    return recipe.load("r.yaml", sets=sets)


def problems(text: str, *sets: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(text, sets)
    return [line.strip() for line in str(caught.value).splitlines()]


# ------------------------------------------------------------------------------------------------------ reading


def test_defaults_are_filled_in(folder: Path) -> None:
    found = recipe.load("r.yaml")
    assert found.out == Path("runs/small")
    assert [item.folder for item in found.chosen] == [
        found.out / name for name in ("magpie", "split", "report")
    ]
    resolved = found.resolved()["stages"]
    assert resolved["split"] == {"test": 0.25, "seed": 0}
    assert resolved["magpie"]["max_response_tokens"] == 512
    assert not {"out", "resume", "accept_license"} & resolved["magpie"].keys()


def test_out_is_the_folder_of_the_run(folder: Path) -> None:
    assert recipe.load("r.yaml", out="here").chosen[0].folder == Path("here/magpie")


def test_magpie_takes_the_model_of_pull(folder: Path) -> None:
    text = SMALL.replace("    model: scripted\n", "").replace("stages:", "stages:\n  pull: {model: m}")
    assert load(text).resolved()["stages"]["magpie"]["model"] == "m"
    assert load(text, ["pull.model=other"]).resolved()["stages"]["magpie"]["model"] == "other"
    assert load(text, ["magpie.model=own"]).resolved()["stages"]["magpie"]["model"] == "own"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rows: 12", "rows: many", "r.yaml:6:5: magpie.rows cannot be 'many': Input should be a valid integer"),
        ("rows: 12", "rows: 0", "r.yaml:6:5: magpie.rows cannot be 0: Input should be greater than or equal to 1"),
        ("rows: 12", "row: 12", "r.yaml:6:5: there is no setting 'magpie.row'; did you mean 'rows'?"),
        ("    rows: 12\n", "", "r.yaml:4:3: magpie.rows is missing"),
        ("{test: 0.25}", "{test: x}", "r.yaml:7:11: split.test cannot be 'x'"),
        ("  split", "  splitt", "r.yaml:7:3: there is no stage 'splitt'; did you mean 'split'? there are: pull, texts, corpus"),
        ("version: 1", "version: 2", "r.yaml:1:1: version cannot be 2: Input should be 1"),
        ("version: 1\n", "", "r.yaml:1:1: version is missing"),
        ("name: small", "nmae: small", "r.yaml:2:1: there is no setting 'nmae'; did you mean 'name'?"),
        ("  report:", "  report: {title: x}", "r.yaml:8:12: there is no setting 'report.title'; it has none"),
        ("  report:", "  report: 3", "r.yaml:8:3: report cannot be 3"),
        ("rows: 12", "rows: 12\n    language: no", "r.yaml:7:5: magpie.language cannot be 'no': the language 'no' is not known"),
        ("rows: 12", "rows: 12\n    grid: warm", "r.yaml:7:5: magpie.grid cannot be 'warm': the grid 'warm' cannot be read"),
        ("rows: 12", "rows: 12\n    ban_first: [a, 3]", "r.yaml:7:20: magpie.ban_first[1] cannot be 3"),
        ("rows: 12", "rows: 12\n    response_top_p: 2", "r.yaml:7:5: magpie.response_top_p cannot be 2: Input should be less than or"),
    ],
)  # fmt: skip
def test_messages_have_place_value_and_advice(folder: Path, old: str, new: str, line: str) -> None:
    assert any(found.startswith(line) for found in problems(SMALL.replace(old, new)))


def test_all_problems_are_listed_at_once(folder: Path) -> None:
    text = SMALL.replace("rows: 12", "rows: no").replace("0.25", "-1").replace("  report:", "  repotr:")
    found = problems(text)
    assert found[0] == "the recipe r.yaml cannot be used:"
    assert len(found) == 4


@pytest.mark.parametrize(
    ("stages_text", "match"),
    [
        ("  split: {}\n", "split reads the result of magpie, which must come before it"),
        ("  report:\n  magpie: {model: scripted, rows: 1}\n", "report comes before magpie; put it after"),
        ("  report:\n", "report: there is nothing to report on"),
        ("  evaluate: {}\n", "evaluate reads the result of train, which must come before it"),
        (
            "  magpie: {model: scripted, rows: 1}\n  pull: {model: m}\n",
            "magpie comes before pull; put it after",
        ),
    ],
)
def test_a_stage_comes_after_what_it_reads(folder: Path, stages_text: str, match: str) -> None:
    assert any(match in line for line in problems(f"version: 1\nname: x\nstages:\n{stages_text}"))


@pytest.mark.parametrize("text", ["[]", "3", "text", "stages: {}"])
def test_what_is_no_recipe(folder: Path, text: str) -> None:
    assert problems(text)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("magpie.rows=7", 7),
        ("stages.magpie.rows=7", 7),
        ("magpie.seed=-7", -7),
        ("magpie.grid=1.0:0.9,1.2:1.0", "1.0:0.9,1.2:1.0"),
        ("magpie.system=no", "no"),
        ("magpie.system=", None),
        ("magpie.system=Reply: in rhyme", "Reply: in rhyme"),
        ("magpie.system={curly", "{curly"),
        ("magpie.system=a=b", "a=b"),
        ("magpie.limit_minutes=null", None),
        ("magpie.ban_first=[a, b]", ["a", "b"]),
    ],
)
def test_set(folder: Path, setting: str, value: Any) -> None:
    name = setting.partition("=")[0].rpartition(".")[2]
    assert load(SMALL, [setting]).resolved()["stages"]["magpie"][name] == value


def test_set_reaches_a_stage_without_settings(folder: Path) -> None:
    text = SMALL.replace("{test: 0.25}", "")
    assert load(text, ["split.test=0.5"]).resolved()["stages"]["split"]["test"] == 0.5


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("magpie.rows", "not of the form"),
        ("=3", "not of the form"),
        ("magpie..rows=3", "not of the form"),
        ("magpi.rows=3", "did you mean 'magpie'"),
        ("pull.model=m", "the recipe has no 'stages.pull'"),
        ("magpie.rows.x=3", "holds no settings"),
        ("magpie.rwos=3", "--set 'magpie.rwos=3': there is no setting 'magpie.rwos'; did you mean 'rows'"),
        ("magpie.rows=few", "--set 'magpie.rows=few': magpie.rows cannot be 'few'"),
        ("name=../x", "--set 'name=../x': name cannot be"),
        ("magpie.language=no", "--set 'magpie.language=no': magpie.language cannot be 'no'"),
    ],
)
def test_wrong_set(folder: Path, setting: str, match: str) -> None:
    assert any(match in line for line in problems(SMALL, setting))


# ------------------------------------------------------------------------------------------------------ running


def run(*sets: str, **options: Any) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Runs `r.yaml`; why each stage ran (empty: it was up to date), and what was said."""
    said: list[str] = []
    done = _recipe_run.run(recipe.load("r.yaml", sets=sets), notify=said.append, **options)
    return {item.name: item.reasons for item in done}, said


def planned(*sets: str) -> dict[str, tuple[str, ...]]:
    return {
        step.chosen.stage.name: step.reasons for step in _recipe_run.plan(recipe.load("r.yaml", sets=sets))
    }


ALL_NEW = dict.fromkeys(("magpie", "split", "report"), ("it has not run yet",))
NOTHING: dict[str, tuple[str, ...]] = dict.fromkeys(("magpie", "split", "report"), ())


def test_the_first_run_makes_all_and_the_second_nothing(folder: Path) -> None:
    assert planned() == ALL_NEW
    assert run()[0] == ALL_NEW
    assert verify("runs/small/magpie").kind == "magpie"
    made = verify("runs/small/split")
    assert made.counts["rows"] == Artifact.open("runs/small/magpie").counts["accepted"]
    assert "<html" in Path("runs/small/report/index.html").read_text("utf-8")
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name[0] != "."}
    assert planned() == NOTHING
    reasons, said = run()
    assert reasons == NOTHING
    assert said == ["magpie: up to date", "split: up to date", "report: up to date"]
    after = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name[0] != "."}
    changed = {str(path) for path in after if after[path] != before.get(path)}
    assert changed <= {"runs/small", "runs/small/recipe.json"}


def test_the_resolved_recipe_is_kept(folder: Path) -> None:
    run("magpie.rows=6")
    kept = json.loads(Path("runs/small/recipe.json").read_text("utf-8"))
    assert kept == recipe.load("r.yaml", sets=["magpie.rows=6"]).resolved()


def test_a_changed_setting_is_refused_before_any_work(folder: Path) -> None:
    run()
    before = Artifact.open("runs/small/magpie")
    with pytest.raises(TargetExists) as caught:
        run("magpie.rows=20")
    assert "runs/small/split, runs/small/report would have to be made anew" in str(caught.value)
    assert "split: magpie runs first" in str(caught.value)
    assert Artifact.open("runs/small/magpie") == before
    assert run()[0] == NOTHING


def test_overwrite_moves_aside_and_magpie_goes_on(folder: Path) -> None:
    run()
    old = verify("runs/small/split")
    reasons, said = run("magpie.rows=20", overwrite=True)
    assert reasons["magpie"] == ("rows changed: 12 -> 20",)
    assert reasons["split"] == ("magpie has a new result",)
    assert reasons["report"] == ("magpie has a new result", "split has a new result")
    assert "split: the earlier result is now runs/small/.aside/split-1" in said
    assert verify("runs/small/.aside/split-1").manifest == old.manifest
    assert Artifact.open("runs/small/magpie").counts["rows"] == 20
    assert not Path("runs/small/.aside/magpie-1").exists()
    assert run("magpie.rows=20")[0] == NOTHING


def test_only_what_depends_on_the_change_runs(folder: Path) -> None:
    run()
    reasons, _ = run("split.seed=1", overwrite=True)
    assert reasons == {
        "magpie": (),
        "split": ("seed changed: 0 -> 1",),
        "report": ("split has a new result",),
    }


def test_settings_that_cannot_be_resumed(folder: Path) -> None:
    run()
    shutil.rmtree("runs/small/split")
    shutil.rmtree("runs/small/report")
    with pytest.raises(ResumeRefused, match="seed: 0 -> 5") as caught:
        run("magpie.seed=5")
    assert "--overwrite" in caught.value.fix
    _, said = run("magpie.seed=5", overwrite=True)
    assert "magpie: the earlier result is now runs/small/.aside/magpie-1" in said
    assert verify("runs/small/.aside/magpie-1").manifest["config"]["seed"] == 0
    assert verify("runs/small/magpie").manifest["config"]["seed"] == 5


def test_a_refusal_comes_before_any_work(folder: Path) -> None:
    run()
    before = {path: path.stat().st_mtime_ns for path in Path("runs/small/magpie").rglob("*")}
    step = _recipe_run.plan(recipe.load("r.yaml", sets=["magpie.seed=5"]))[0]
    assert step.is_blocked
    assert isinstance(step.refusal, ResumeRefused)
    with pytest.raises(ResumeRefused, match="seed: 0 -> 5"):
        run("magpie.seed=5")
    after = {path: path.stat().st_mtime_ns for path in Path("runs/small/magpie").rglob("*")}
    assert after == before
    assert not _recipe_run.plan(recipe.load("r.yaml", sets=["magpie.rows=20"]))[0].is_blocked


def test_a_killed_run_is_not_continued_with_other_settings(folder: Path) -> None:
    run()
    for name in ("manifest.json", "README.md"):
        Path("runs/small/magpie", name).unlink()
    shutil.rmtree("runs/small/magpie/data")
    assert not _recipe_run.plan(recipe.load("r.yaml"))[0].is_blocked
    assert _recipe_run.plan(recipe.load("r.yaml", sets=["magpie.seed=5"]))[0].is_blocked


def test_a_limit_that_was_not_reached_changes_nothing(folder: Path) -> None:
    run()
    assert planned("magpie.limit_tokens=100000") == NOTHING


def test_a_budget_stops_the_recipe_and_running_it_again_goes_on(folder: Path) -> None:
    sets = ("magpie.rows=40", "magpie.limit_tokens=450")
    loaded = recipe.load("r.yaml", sets=sets)
    done = _recipe_run.run(loaded)
    assert [(item.name, item.stopped) for item in done] == [("magpie", "limit_tokens")]
    assert not Path("runs/small/split").exists()
    begun = Artifact.open("runs/small/magpie").counts["rows"]
    assert planned(*sets) == ALL_NEW | {"magpie": ("it stopped at limit_tokens",)}
    while done[-1].stopped:
        done = _recipe_run.run(loaded)
        assert done[0].reasons == ("it stopped at limit_tokens",)
    assert begun < Artifact.open("runs/small/magpie").counts["rows"] == 40
    assert [item.name for item in done] == ["magpie", "split", "report"]
    assert planned(*sets) == planned("magpie.rows=40") == NOTHING


def test_a_stopped_stage_drags_along_what_was_made_of_its_rows(folder: Path) -> None:
    run()
    _recipe_run.run(recipe.load("r.yaml", sets=["magpie.rows=40", "magpie.limit_tokens=450"]), overwrite=True)
    assert planned("magpie.rows=40")["split"] == ("magpie has a new result",)


def test_an_interrupted_stage_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt:
        updates = 0

        def update(self, _state: Any) -> None:
            self.updates += 1
            if self.updates == 5:
                raise KeyboardInterrupt

    listener = Interrupt()
    with pytest.raises((Stopped, KeyboardInterrupt)):
        _interrupted(listener)
    assert planned()["magpie"] == ("it was interrupted",)
    sent = _count_requests(monkeypatch)
    assert run()[0]["magpie"] == ("it was interrupted",)
    assert 0 < sent[0] < 24 - 4
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    whole = recipe.load("r.yaml", out="whole")
    _recipe_run.run(whole)
    assert list(Artifact.open("whole/magpie").records()) == list(Artifact.open("runs/small/magpie").records())


def _interrupted(listener: Any) -> None:
    import os
    import signal

    class Kill:
        def update(self, state: Any) -> None:
            try:
                listener.update(state)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGINT)

    _recipe_run.run(recipe.load("r.yaml"), progress=Kill())


def _count_requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from ojak.engines.scripted import ScriptedEngine

    sent = [0]
    complete = ScriptedEngine._complete

    def counted(self: Any, request: Any) -> Any:
        sent[0] += 1
        return complete(self, request)

    monkeypatch.setattr(ScriptedEngine, "_complete", counted)
    return sent


def test_a_failed_stage_is_begun_again(folder: Path) -> None:
    with pytest.raises(OjakError, match="cannot be taken"):
        run("split.test=99")
    assert planned() == {"magpie": (), "split": ("it was interrupted",), "report": ("it has not run yet",)}
    assert run()[0]["split"] == ("it was interrupted",)


def test_changed_code_is_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    sha256 = _code.code_sha256
    split_code = stages.BY_NAME["split"].code
    monkeypatch.setattr(_recipe_run, "code_sha256", lambda code: "0" if code == split_code else sha256(code))
    assert planned() == {"magpie": (), "split": ("its code changed",), "report": ("split runs first",)}


def test_stable_stages_do_not_drag_others_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    sha256 = _code.code_sha256
    magpie_code = stages.BY_NAME["magpie"].code
    monkeypatch.setattr(_recipe_run, "code_sha256", lambda code: "0" if code == magpie_code else sha256(code))
    assert planned() == {"magpie": ("its code changed",), "split": (), "report": ()}
    assert run()[0] == planned() | {"magpie": ("its code changed",)}
    assert planned() == NOTHING


def test_another_version_is_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ojak

    run()
    before = ojak.__version__
    monkeypatch.setattr(ojak, "__version__", "9.9")
    assert planned()["split"] == (f"ojak changed: {before} -> 9.9",)


def test_a_result_changed_by_hand_is_a_reason(folder: Path) -> None:
    run()
    data = next(Path("runs/small/split/data").glob("train-*"))
    data.write_bytes(data.read_bytes() + b"x")
    assert "its result is damaged" in planned()["split"][0]
    with pytest.raises(TargetExists):
        run()
    run(overwrite=True)
    verify("runs/small/split")
    page = Path("runs/small/report/index.html")
    page.write_text("other", "utf-8")
    assert planned()["report"] == ("its index.html was changed after it was made",)


def test_a_damaged_run_is_told_and_made_anew_on_demand(folder: Path) -> None:
    run()
    data = next(Path("runs/small/magpie/data").glob("train-*"))
    data.write_bytes(data.read_bytes()[:-5])
    shutil.rmtree("runs/small/split")
    shutil.rmtree("runs/small/report")
    with pytest.raises(VerificationFailed):
        run()
    run(overwrite=True)
    verify("runs/small/magpie")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b"[" * 10_000, b'{"complete": 1, "inputs": 3}']
)
def test_a_damaged_record(folder: Path, content: bytes) -> None:
    run()
    Path("runs/small/split/stage.json").write_bytes(content)
    assert planned()["split"]
    with pytest.raises(TargetExists):
        run()
    run(overwrite=True)
    assert planned() == NOTHING


def test_a_result_of_somebody_else_is_not_replaced(folder: Path) -> None:
    run()
    shutil.copytree("runs/small/split", "other/split")
    Path("other/split/stage.json").unlink()
    before = Artifact.open("other/split")
    with pytest.raises(TargetExists, match="that no recipe made"):
        _recipe_run.run(recipe.load("r.yaml", out="other"))
    assert Artifact.open("other/split") == before
    assert not Path("other/magpie").exists()


def test_a_second_process_is_refused(folder: Path) -> None:
    import threading

    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with TargetLock(Path("runs/small")):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        with pytest.raises(Locked):
            run()
    finally:
        release.set()
        thread.join()


RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quickstart", ["pull", "magpie", "curate", "split", "train", "evaluate", "report"]),
        ("preferences", ["pull", "magpie", "curate", "pairs", "report"]),
    ],
)
def test_the_recipes_are_sound(name: str, expected: list[str]) -> None:
    path = RECIPES / f"{name}.yaml"
    found = recipe.load(path)
    assert found.name == name
    assert [item.stage.name for item in found.chosen] == expected
    settings = found.resolved()["stages"]
    models = {settings[stage]["model"] for stage in expected if "model" in settings[stage]}
    assert models == {"smollm2-135m-instruct"}
    assert path.read_text("utf-8").startswith("# ")


def test_chapter_7_needs_its_data_and_has_a_small_variant(tmp_path: Path) -> None:
    path = RECIPES / "chapter7.yaml"
    with pytest.raises(UsageError, match=r"needs --set data=VALUE: the path of instruction-data\.json"):
        recipe.load(path)
    (tmp_path / "rows.json").write_text("[]", "utf-8")
    whole, small = (
        recipe.load(path, sets=[f"data={tmp_path / 'rows.json'}", *sets]).resolved()["stages"]
        for sets in ((), ("scale=small",))
    )
    assert list(whole) == ["pull", "rows", "train", "evaluate", "report"]
    assert whole["train"]["model"] == whole["pull"]["model"] == "gemma-3-270m"
    assert list(whole["train"]["arms"]) == ["alpaca", "phi-3", "masked", "lora"]
    assert (whole["train"]["seeds"], whole["train"]["max_tokens"]) == ([0, 1, 2], 100_000)
    assert small["train"]["max_tokens"] < 10_000 and small["train"]["seeds"] == [0]


def test_a_base_model_learns_from_our_own_rows() -> None:
    found = recipe.load(RECIPES / "base-to-chat.yaml")
    names = [item.stage.name for item in found.chosen]
    assert names == ["magpie", "curate", "split", "train", "evaluate", "report"]
    settings = found.resolved()["stages"]
    assert (settings["magpie"]["model"], settings["train"]["model"]) == (
        "smollm2-135m-instruct",
        "gemma-3-270m",
    )
    assert settings["train"]["lora"] is None


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.stem)
def test_every_scale_of_every_recipe_is_sound(path: Path, tmp_path: Path) -> None:
    head = _recipe_yaml.read(path).value
    assert head["name"] == path.stem and path.read_text("utf-8").startswith("# ")
    (tmp_path / "rows.json").write_text("[]", "utf-8")
    given = [f"{name}={tmp_path / 'rows.json'}" for name in head.get("parameters", {})]
    for scale in head.get("scales", {}):
        assert recipe.load(path, sets=[*given, f"scale={scale}"]).out.name == f"{path.stem}-{scale}"


# ------------------------------------------------------------------------------------------------- personas, pairs

PREFERENCES = """\
version: 1
name: voices
stages:
  personas: {model: scripted, source: texts.jsonl, rounds: 0}
  magpie: {model: scripted, rows: 12, responses: 3}
  pairs: {by: likelihood, engine: scripted}
  report:
"""


@pytest.fixture
def voices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe PREFERENCES with two texts, and an engine without a model that knows what a persona is."""
    from ojak.engines import scripted

    plain = scripted.scripted_text
    monkeypatch.setattr(
        scripted,
        "scripted_text",
        lambda request: f"{'Persona: So, ' * (request.tag[1] == 'persona')}{plain(request)}",
    )
    (folder / "r.yaml").write_text(PREFERENCES, "utf-8")
    (folder / "texts.jsonl").write_text('{"text": "Of bees."}\n{"text": "Of trams."}\n', "utf-8")
    return folder


def test_personas_and_pairs_run_in_a_recipe_and_are_left_alone_then(voices: Path) -> None:
    done, _ = run()
    assert list(done) == ["personas", "magpie", "pairs", "report"]
    assert all(done.values())
    made = verify("runs/voices/pairs")
    assert made.counts["rows"] == verify("runs/voices/magpie").counts["accepted"] > 0
    assert not any(planned().values())
    assert not any(run()[0].values())


def test_other_personas_make_other_rows_and_that_is_told_before(voices: Path) -> None:
    run()
    before = Artifact.open("runs/voices/magpie")
    (voices / "texts.jsonl").write_text('{"text": "Of bees."}\n{"text": "Of salt."}\n', "utf-8")
    found = {step.chosen.stage.name: step for step in _recipe_run.plan(recipe.load("r.yaml"))}
    assert "source_sha256 changed" in found["personas"].reasons[0]
    assert found["magpie"].reasons == ("personas runs first",)
    assert found["pairs"].reasons == ("magpie runs first",)
    assert all(step.is_blocked for step in found.values())
    with pytest.raises(OjakError):
        run()
    assert Artifact.open("runs/voices/magpie") == before
    run(overwrite=True)
    assert verify("runs/voices/magpie").manifest_sha256 != before.manifest_sha256
    assert not any(planned().values())


def test_more_rounds_of_personas_grow_but_rows_are_made_anew(voices: Path) -> None:
    run()
    with pytest.raises(TargetExists, match="magpie"):
        run("personas.rounds=1")
    assert Artifact.open("runs/voices/personas").stats["rounds"] == {"0": 2}
    run("personas.rounds=1", overwrite=True)
    assert Artifact.open("runs/voices/personas").stats["rounds"].keys() == {"0", "1"}
    assert not any(planned("personas.rounds=1").values())


def test_pairs_that_were_interrupted_go_on(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ojak.curate import pairs
    from ojak.engines.scripted import ScriptedEngine

    monkeypatch.setattr(pairs, "BATCH", 3)
    shown: list[Any] = []

    def score(self: Any, texts: Any) -> Any:
        for text in texts:
            shown.append(text)
            if len(shown) == 14:
                raise KeyboardInterrupt
            yield (-1.0 - len(text.continuation) / 100,)

    monkeypatch.setattr(ScriptedEngine, "score", score)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert planned()["pairs"] == ("it was interrupted",)
    run()
    texts = shown[:9] + shown[14:]  # one shard of three rows with three answers was whole
    assert len({(text.prompt, text.continuation) for text in texts}) == len(texts)
    verify("runs/voices/pairs")
    assert not any(planned().values())


def test_a_recipe_s_address_has_no_password(folder: Path) -> None:
    text = PREFERENCES.replace("engine: scripted", "engine: endpoint, url: 'http://me:canary@127.0.0.1:1'")
    (folder / "texts.jsonl").write_text('{"text": "Of bees."}\n', "utf-8")
    curate = "  curate: {engine: endpoint, url: 'http://me:canary@127.0.0.1:1'}\n  pairs:"
    assert "canary" not in json.dumps(load(text.replace("  pairs:", curate)).resolved())


def test_missing_stages_are_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\nname: a\n")
    with pytest.raises(UsageError, match=r"r\.yaml:1:1: stages is missing"):
        recipe.load(tmp_path / "r.yaml")
