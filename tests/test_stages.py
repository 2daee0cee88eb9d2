"""The table of stages is whole, and each function does what its row says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ojak import _code, stages
from ojak._code import PACKAGE, code_sha256
from ojak._progress import Progress
from ojak.artifact import Artifact, publish, verify
from ojak.curate.config import CurateConfig
from ojak.curate.pairs import PairsConfig
from ojak.curate.split import SplitConfig
from ojak.engines import scripted
from ojak.errors import TargetExists, UsageError
from ojak.model import hub
from ojak.model.request import Request
from ojak.records import Conversation, Message, to_row
from ojak.stages import BY_NAME, STAGES, Job, PullSettings, Stage
from ojak.synthesize.config import MagpieConfig, PersonasConfig


def each(stage: Stage) -> str:
    return stage.name


@pytest.mark.parametrize("stage", STAGES, ids=each)
def test_a_row_is_whole(stage: Stage) -> None:
    settings = stage.settings()
    assert issubclass(settings, BaseModel)
    assert settings.model_config.get("extra") == "forbid"
    assert set(stage.own) | set(stage.limits) | set(stage.inherits) <= set(settings.model_fields)
    assert set(stage.shaped_by) <= set(stage.reads)
    assert set(stage.fields()) == set(settings.model_fields) - set(stage.own)
    assert stage.what and stage.writes and (stage.run.__doc__ or "").strip()
    assert all((PACKAGE / name).exists() for name in stage.code)


def test_stages_read_only_earlier_ones() -> None:
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for stage in STAGES:
        earlier = names[: names.index(stage.name)]
        assert set(stage.reads) <= set(earlier)
        assert {other for other, _ in stage.inherits.values()} <= set(stage.uses)
    assert {name: BY_NAME[name] for name in names} == dict(BY_NAME)


def test_the_digest_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part/a.py").write_text("1", "utf-8")
    (tmp_path / "one.py").write_text("1", "utf-8")
    monkeypatch.setattr(_code, "PACKAGE", tmp_path)

    def digest() -> str:
        code_sha256.cache_clear()
        return code_sha256(("part", "one.py"))

    found = [digest()]
    (tmp_path / "part/notes.txt").write_text("not code", "utf-8")
    (tmp_path / "other.py").write_text("not of the stage", "utf-8")
    assert digest() == found[0]
    for path in ("part/a.py", "one.py", "part/b.css"):
        (tmp_path / path).write_text("2", "utf-8")
        found.append(digest())
    (tmp_path / "part/a.py").rename(tmp_path / "part/c.py")
    found.append(digest())
    assert len(set(found)) == len(found)
    code_sha256.cache_clear()


def pull_job(out: Path, name: str) -> Job:
    return Job(PullSettings(model=name), out, accept_license=("gemma",))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the weights of every model; `hub.find` gives it, and notes what it was asked."""
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")

    def find(name: str, *, accept_license: Any = (), notify: Any = None, offline: Any = None) -> Path:
        notify(f"{name} {accept_license}")
        return path

    monkeypatch.setattr(hub, "find", find)
    return path


def test_pull_says_which_model_without_a_path(tmp_path: Path, weights: Path) -> None:
    outcome = stages.pull(pull_job(tmp_path / "pull", "smollm2-135m-instruct"))
    artifact = verify(tmp_path / "pull")
    facts = artifact.stats["model"]
    assert facts == outcome.facts
    assert (facts["name"], facts["license"]) == ("smollm2-135m-instruct", "apache-2.0")
    assert facts["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert str(tmp_path) not in (tmp_path / "pull/manifest.json").read_text("utf-8")


def test_pull_of_a_path_keeps_its_name_only(tmp_path: Path, weights: Path) -> None:
    assert stages.pull(pull_job(tmp_path / "pull", str(weights))).facts["name"] == "weights.gguf"
    assert str(tmp_path) not in (tmp_path / "pull/manifest.json").read_text("utf-8")


def test_pull_of_a_folder_hashes_its_files(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    monkeypatch.setattr(hub, "find", lambda name, **_: folder)
    first = stages.pull(pull_job(tmp_path / "a", "m")).facts["sha256"]
    (folder / "config.json").write_text("{1}", "utf-8")
    assert stages.pull(pull_job(tmp_path / "b", "m")).facts["sha256"] != first


def test_pull_passes_consent_and_talk_on(tmp_path: Path, weights: Path) -> None:
    said: list[str] = []
    stages.pull(Job(PullSettings(model="m"), tmp_path / "pull", accept_license=("x",), notify=said.append))
    assert said == ["m ('x',)"]


def test_pull_again_leaves_its_result(tmp_path: Path, weights: Path) -> None:
    stages.pull(pull_job(tmp_path / "pull", "m"))
    before = Artifact.open(tmp_path / "pull")
    stages.pull(pull_job(tmp_path / "pull", "m"))
    assert Artifact.open(tmp_path / "pull") == before
    weights.write_bytes(b"other weights")
    with pytest.raises(TargetExists):
        stages.pull(pull_job(tmp_path / "pull", "m"))


def test_pull_needs_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OJAK_ACCEPT_LICENSES", raising=False)
    with pytest.raises(UsageError, match="terms that you have to accept"):
        stages.pull(Job(PullSettings(model="gemma-3-270m"), tmp_path / "pull"))
    assert not (tmp_path / "pull").exists()


def test_split_and_report_read_magpie(tmp_path: Path) -> None:
    turns = [Message(role="user", content="Why?"), Message(role="assistant", content="Because.")]
    rows = [Conversation(str(row), turns) for row in range(10)]
    source = publish(tmp_path / "magpie", kind="magpie", records=rows, config={})
    job = Job(BY_NAME["split"].settings()(), tmp_path / "split", {"magpie": source.path})
    assert stages.split(job).facts == {"train": 9, "test": 1}
    inputs = {"magpie": source.path, "split": tmp_path / "split"}
    outcome = stages.report(Job(BY_NAME["report"].settings()(), tmp_path / "report", inputs))
    assert Path(outcome.facts["page"]) == tmp_path / "report/index.html"
    assert (tmp_path / "report/index.html").is_file()


ALONE = "version: 1\nname: alone\nrules: [{no_refusal: }, {min_score: {score: reward, above: 0}}]\n"


def test_curate_comes_between(tmp_path: Path) -> None:
    turns = [Message(role="user", content="Why?"), Message(role="assistant", content="Because.")]
    refusal = [turns[0], Message(role="assistant", content="I can't help with that.")]
    rows = [Conversation(str(row), refusal if row % 4 == 0 else turns) for row in range(20)]
    source = publish(tmp_path / "magpie", kind="magpie", records=rows, config={})
    (tmp_path / "alone.yaml").write_text(ALONE, "utf-8")
    settings = CurateConfig(recipe=str(tmp_path / "alone.yaml"))
    outcome = stages.curate(Job(settings, tmp_path / "curate", {"magpie": source.path}))
    assert (outcome.facts["rows_in"], outcome.facts["kept"], outcome.stopped) == (20, 15, None)
    assert set(outcome.facts["not_applied"]) == {"min_reward"}
    inputs = {"magpie": source.path, "curate": tmp_path / "curate"}
    job = Job(SplitConfig(test=5), tmp_path / "split", inputs)
    assert stages.split(job).facts == {"train": 10, "test": 5}
    outcome = stages.report(
        Job(BY_NAME["report"].settings()(), tmp_path / "report", {**inputs, "split": job.out})
    )
    assert Path(outcome.facts["page"]).is_file()


def test_a_changed_filter_recipe_is_a_changed_setting(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(ALONE, "utf-8")
    before = CurateConfig(recipe=str(path)).model_dump()
    path.write_text(ALONE.replace("above: 0", "above: 1"), "utf-8")
    after = CurateConfig(recipe=str(path)).model_dump()
    assert {name for name in before if before[name] != after[name]} == {"recipe_sha256"}
    with pytest.raises(UsageError, match="there is no recipe 'nonsense'"):
        CurateConfig(recipe="nonsense")


# ------------------------------------------------------------------------------------------------- personas and pairs


def people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the engine without a model know what a persona's answer begins with."""
    plain = scripted.scripted_text

    def answer(request: Request) -> str:
        text = plain(request)
        return f"Persona: Somebody. {text}" if request.tag[1] == "persona" else text

    monkeypatch.setattr(scripted, "scripted_text", answer)


def test_personas_speak_in_the_rows_of_magpie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people(monkeypatch)
    (tmp_path / "texts.jsonl").write_text('{"text": "Of bees."}\n{"text": "Of trams."}\n', "utf-8")
    out = tmp_path / "personas"
    settings = PersonasConfig(model="scripted", out=out, source=tmp_path / "texts.jsonl", rounds=0)
    outcome = stages.personas(Job(settings, out))
    assert (outcome.facts["accepted"], outcome.stopped) == (2, None)
    job = Job(MagpieConfig(model="scripted", out=tmp_path / "m", rows=8), tmp_path / "m", {"personas": out})
    stages.magpie(job)
    spoken = {record.meta["persona"] for record in Artifact.open(tmp_path / "m").records()}
    assert spoken <= {to_row(record)["text"] for record in Artifact.open(out).records()}
    assert spoken
    own = tmp_path / "own.txt"
    own.write_text("A nurse on night shifts.\n", "utf-8")
    named = MagpieConfig(model="scripted", out=tmp_path / "n", rows=8, personas=own)
    stages.magpie(Job(named, tmp_path / "n", {"personas": out}))
    spoken = {record.meta["persona"] for record in Artifact.open(tmp_path / "n").records()}
    assert spoken == {"A nurse on night shifts."}


def test_pairs_of_the_rows_that_curation_kept(tmp_path: Path) -> None:
    config = MagpieConfig(model="scripted", out=tmp_path / "magpie", rows=24, responses=3)
    stages.magpie(Job(config, config.out))
    (tmp_path / "short.yaml").write_text(
        "version: 1\nname: short\nrules: []\npick: {by: longest, number: 3}\n", "utf-8"
    )
    inputs = {"magpie": config.out}
    stages.curate(Job(CurateConfig(recipe=str(tmp_path / "short.yaml")), tmp_path / "curate", inputs))
    kept = {record.id for record in Artifact.open(tmp_path / "curate").records()}
    assert len(kept) == 3
    told: list[Progress] = []

    class Listener:
        def update(self, state: Progress) -> None:
            told.append(state)

    settings = PairsConfig(by="likelihood", model="scripted")
    inputs["curate"] = tmp_path / "curate"
    outcome = stages.pairs(Job(settings, tmp_path / "pairs", inputs, progress=Listener()))
    made = verify(tmp_path / "pairs")
    assert outcome.facts["rows"] == made.counts["rows"] == 3
    assert {each.id for each in (*made.records(), *made.rejected())} == kept
    assert told
    page = stages.report(
        Job(BY_NAME["report"].settings()(), tmp_path / "report", {**inputs, "pairs": made.path})
    )
    assert made.manifest_sha256[:12] in Path(page.facts["page"]).read_text("utf-8")
    del inputs["curate"]
    assert stages.pairs(Job(settings, tmp_path / "all", inputs)).facts["rows"] > 3
