"""The one table of stages: what a recipe can be made of. The command line, recipes and the docs read it.

A stage is a function from a folder of records to a folder of records. It gets a `Job` and leaves its result,
with the manifest (or the page) written last, in `job.out`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ojak._progress import Listener, silent
from ojak._settings import Settings
from ojak.errors import InputRefused

if TYPE_CHECKING:
    from ojak.artifact import Artifact
    from ojak.synthesize.config import MagpieConfig, PersonasConfig


@dataclass(frozen=True, slots=True)
class Job:
    """One stage of one run. `inputs`: the result folders of the stages that it reads, by name.

    `notify` is told in a line what a person may want to know, `progress` how far the work is.
    """

    settings: Settings
    out: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)
    accept_license: tuple[str, ...] = ()
    notify: Callable[[str], None] = silent
    progress: Listener | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says of its result: facts for `--json`, and the budget that stopped it early, if one did."""

    facts: dict[str, Any]
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the table.

    needs, uses: the stages whose results it must have, and those it takes where the recipe has them.
    result: the file whose presence says that the stage has finished. settings: gives the model of its
    settings; `own` of its fields are set by the run, never by a recipe, and `inherits` field -> (stage,
    field) is its default.
    code: the files and folders of this package that shape its result. resumes: it goes on with what a folder
    holds; `check` raises what it would raise for what is there, and writes nothing.
    stable: run again with the same settings, it leaves a sound result as it is, unless one of `shaped_by`, of the
    stages that it reads, has changed its own. limits: those of its fields that only say when to stop early.
    """

    name: str
    what: str
    settings: Callable[[], type[Settings]]
    run: Callable[[Job], Outcome]
    code: tuple[str, ...]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    writes: str = "records"
    result: str = "manifest.json"
    own: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    inherits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    resumes: bool = False
    check: Callable[[Job], None] | None = None
    stable: bool = False
    shaped_by: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Every stage whose result it can take."""
        return self.needs + self.uses

    def fields(self) -> list[str]:
        """The names that a recipe may set."""
        return [name for name in self.settings().model_fields if name not in self.own]


class PullSettings(Settings):
    """`model`: a known name, a name on the hub, or a path."""

    model: str = Field(min_length=1)


class ReportSettings(Settings):
    """The page has no settings."""


def _magpie_settings() -> type[Settings]:
    from ojak.synthesize.config import MagpieConfig

    return MagpieConfig


def _personas_settings() -> type[Settings]:
    from ojak.synthesize.config import PersonasConfig

    return PersonasConfig


def _curate_settings() -> type[Settings]:
    from ojak.curate.config import CurateConfig

    return CurateConfig


def _pairs_settings() -> type[Settings]:
    from ojak.curate.pairs import PairsConfig

    return PairsConfig


def _split_settings() -> type[Settings]:
    from ojak.curate.split import SplitConfig

    return SplitConfig


def pull(job: Job) -> Outcome:
    """Fetch a model into the cache; the result is an artifact without rows that says which model it is."""
    from ojak.artifact import publish
    from ojak.model import hub
    from ojak.model.files import cached_sha256

    assert isinstance(job.settings, PullSettings)
    name = job.settings.model
    path = hub.find(name, accept_license=job.accept_license, notify=job.notify)
    digest = cached_sha256(path) if path.is_file() else _folder_sha256(path)
    facts: dict[str, Any] = {"name": path.name if os.path.exists(name) else name, "sha256": digest}
    facts |= _license(name)
    config = {"model": facts["name"]}
    there = _there(job.out)
    if there is None or (there.manifest["config"], there.stats) != (config, {"model": facts}):
        publish(job.out, kind="pull", records=[], config=config, stats={"model": facts})
    return Outcome(facts)


def _license(name: str) -> dict[str, str]:
    from ojak.model.known import KNOWN

    known = KNOWN.get(name)
    return {"license": known.license, "license_url": known.license_url} if known else {}


def _folder_sha256(folder: Path) -> str:
    """One hash over the names and the hashes of the files directly in a model's folder."""
    from ojak.model.files import cached_sha256

    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name}\0{cached_sha256(path)}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _there(out: Path) -> Artifact | None:
    from ojak.artifact import Artifact

    try:
        return Artifact.open(out)
    except InputRefused:
        return None


def personas(job: Job) -> Outcome:
    """Personas made out of texts."""
    from ojak.synthesize.personas import synthesize_personas
    from ojak.synthesize.run import summary

    artifact = synthesize_personas(_personas_config(job), progress=job.progress, notify=job.notify)
    return Outcome(summary(artifact), artifact.stats.get("stopped"))


def _check_personas(job: Job) -> None:
    from ojak.synthesize.folder import check_resumable

    check_resumable(_personas_config(job))


def _personas_config(job: Job) -> PersonasConfig:
    from ojak.synthesize.config import PersonasConfig

    assert isinstance(job.settings, PersonasConfig)
    return job.settings.model_copy(update={"out": job.out, "accept_license": job.accept_license})


def magpie(job: Job) -> Outcome:
    """Instructions and responses sampled from an aligned model."""
    from ojak.synthesize.run import summary, synthesize_magpie

    artifact = synthesize_magpie(_magpie_config(job), progress=job.progress)
    return Outcome(summary(artifact), artifact.stats.get("stopped"))


def _check_magpie(job: Job) -> None:
    from ojak.synthesize.folder import check_resumable

    made = job.inputs.get("personas")
    if made is None or _there(made):  # what they shape can only be told once they are there
        check_resumable(_magpie_config(job))


def _magpie_config(job: Job) -> MagpieConfig:
    from ojak.synthesize.config import MagpieConfig

    values = {**job.settings.model_dump(), "out": job.out, "accept_license": job.accept_license}
    if values["personas"] is None:
        values["personas"] = job.inputs.get("personas")
    return MagpieConfig(**values)


def curate(job: Job) -> Outcome:
    """The rows of the stage before that a filter recipe keeps."""
    from ojak.curate.config import CurateConfig
    from ojak.curate.run import curate_data, summary

    assert isinstance(job.settings, CurateConfig)
    artifact = curate_data(
        job.inputs["magpie"],
        job.out,
        job.settings,
        accept_license=job.accept_license,
        notify=job.notify,
        progress=job.progress,
    )
    return Outcome(summary(artifact))


def pairs(job: Job) -> Outcome:
    """Preference pairs of the rows of the stage before (curated ones, where the recipe curates)."""
    from ojak.curate.pairs import PairsConfig, make_pairs, summary

    assert isinstance(job.settings, PairsConfig)
    config = job.settings.model_copy(update={"accept_license": job.accept_license})
    source = job.inputs.get("curate", job.inputs["magpie"])
    return Outcome(summary(make_pairs(source, job.out, config, notify=job.notify, progress=job.progress)))


def split(job: Job) -> Outcome:
    """The rows of the stage before (curated ones, where the recipe curates) as a train and a test split."""
    from ojak.curate.split import SplitConfig
    from ojak.curate.split import split as split_artifact

    assert isinstance(job.settings, SplitConfig)
    source = job.inputs.get("curate", job.inputs["magpie"])
    return Outcome(dict(split_artifact(source, job.out, job.settings).splits))


def report(job: Job) -> Outcome:
    """A page about the stages before."""
    from ojak.report import write_report

    return Outcome({"page": str(write_report(list(job.inputs.values()), job.out))})


# What decides, row by row, whether a text repeats an earlier one.
SIMILARITY = ("similarity/text.py", "similarity/rows.py", "_grams.py")
SYNTHESIS = ("synthesize", "engines", "model", "rules", *SIMILARITY, "chat.py")

STAGES: tuple[Stage, ...] = (
    Stage(
        name="pull",
        what="fetch a model and check its hash",
        writes="the model's name, hash and licence",
        settings=lambda: PullSettings,
        run=pull,
        code=("model/known.py",),
        stable=True,
    ),
    Stage(
        name="personas",
        what="make personas out of texts",
        uses=("pull",),
        writes="documents, one persona each, and rejected ones with reasons",
        settings=_personas_settings,
        run=personas,
        code=SYNTHESIS,
        own=("out", "resume", "accept_license", "retry_failed"),
        limits=("limit_tokens", "limit_minutes"),
        inherits={"model": ("pull", "model")},
        resumes=True,
        check=_check_personas,
        stable=True,
    ),
    Stage(
        name="magpie",
        what="sample instructions and responses from an aligned model",
        uses=("pull", "personas"),
        writes="conversations, and rejected rows with reasons",
        settings=_magpie_settings,
        run=magpie,
        code=SYNTHESIS,
        own=("out", "resume", "accept_license", "retry_failed"),
        limits=("limit_tokens", "limit_minutes"),
        inherits={"model": ("pull", "model")},
        resumes=True,
        check=_check_magpie,
        stable=True,
        shaped_by=("personas",),
    ),
    Stage(
        name="curate",
        what="keep the rows that pass a filter recipe",
        needs=("magpie",),
        uses=("pull",),
        writes="conversations with tags and scores, and dropped rows with the first reason",
        settings=_curate_settings,
        run=curate,
        code=("curate", "rules", "judge", "similarity", "_grams.py", "_recipe_yaml.py"),
        inherits={"model": ("pull", "model")},
    ),
    Stage(
        name="split",
        what="divide the rows into train and test",
        needs=("magpie",),
        uses=("curate",),
        writes="conversations in the splits train and test",
        settings=_split_settings,
        run=split,
        code=("curate/split.py",),
    ),
    Stage(
        name="pairs",
        what="make preference pairs of the answers to one instruction",
        needs=("magpie",),
        uses=("pull", "curate"),
        writes="preferences, and instructions that gave none with the reason",
        settings=_pairs_settings,
        run=pairs,
        code=(
            "curate/answers.py",
            "curate/pairs.py",
            "judge",
            "similarity/text.py",
            "model/score.py",
            "chat.py",
        ),
        own=("accept_license",),
        inherits={"model": ("pull", "model")},
    ),
    Stage(
        name="report",
        what="write one HTML page about the run",
        needs=("magpie",),
        uses=("pull", "personas", "curate", "split", "pairs"),
        writes="index.html",
        settings=lambda: ReportSettings,
        run=report,
        code=("report",),
        result="index.html",
    ),
)
BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}
