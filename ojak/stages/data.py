"""The stages that make and choose rows: each a function from folders of records to a folder of records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ojak._settings import Settings
from ojak.errors import InputRefused, UsageError
from ojak.stages.base import Job, Outcome

if TYPE_CHECKING:
    from ojak.artifact import Artifact
    from ojak.synthesize.config import MagpieConfig, PersonasConfig


class PullSettings(Settings):
    """`model`: a known name, a name on the hub, or a path."""

    model: str = Field(min_length=1)


def magpie_settings() -> type[Settings]:
    from ojak.synthesize.config import MagpieConfig

    return MagpieConfig


def personas_settings() -> type[Settings]:
    from ojak.synthesize.config import PersonasConfig

    return PersonasConfig


def curate_settings() -> type[Settings]:
    from ojak.curate.config import CurateConfig

    return CurateConfig


def pairs_settings() -> type[Settings]:
    from ojak.curate.pairs import PairsConfig

    return PairsConfig


def lift_settings() -> type[Settings]:
    from ojak.augment.lift import LiftConfig

    return LiftConfig


def split_settings() -> type[Settings]:
    from ojak.curate.split import SplitConfig

    return SplitConfig


def rows_settings() -> type[Settings]:
    from ojak.curate.gather import RowsConfig

    return RowsConfig


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


def check_personas(job: Job) -> None:
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


def check_magpie(job: Job) -> None:
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


def lift(job: Job) -> Outcome:
    """The rows of the stage before with length limits."""
    from ojak.augment.lift import LiftConfig, lift_data

    assert isinstance(job.settings, LiftConfig)
    (source,) = job.inputs.values()
    return Outcome(lift_data(source, job.out, job.settings).stats)


def picks_of_lift(_settings: Settings, before: Sequence[str]) -> Sequence[str]:
    """The last stage with rows."""
    if not before:
        raise UsageError("there are no rows to put limits into", fix="put a stage with rows before it")
    return before[-1:]


def split(job: Job) -> Outcome:
    """The rows of the stage before (curated ones, where the recipe curates) as a train and a test split."""
    from ojak.curate.split import SplitConfig
    from ojak.curate.split import split as split_artifact

    assert isinstance(job.settings, SplitConfig)
    source = job.inputs.get("curate", job.inputs["magpie"])
    return Outcome(dict(split_artifact(source, job.out, job.settings).splits))


def rows(job: Job) -> Outcome:
    """Rows of files of any format, in splits."""
    from ojak.curate.gather import RowsConfig, gather

    assert isinstance(job.settings, RowsConfig)
    return Outcome(dict(gather(job.out, job.settings, notify=job.notify).splits))
