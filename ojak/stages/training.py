"""The stages that make models of rows and say what came of it: train, evaluate, report."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak._settings import Settings, meant
from ojak.errors import UsageError
from ojak.stages.base import Job, Outcome
from ojak.stages.merging import merged_run
from ojak.stages.pretraining import hashed, located, stages_named

if TYPE_CHECKING:
    from ojak.evaluate.comparison import Trained
    from ojak.evaluate.config import CompareConfig
    from ojak.train.arms import ArmRun, ArmsConfig

# Stages whose result is rows that a model can learn or be measured on.
ROWS = ("magpie", "curate", "rows", "split", "lift", "pretrain-mix", "grid")
PAIRS = "pairs"  # preferences, which are read where they are named
OF_ARM = "@train/"  # begins the name of a model that an arm before has made
NAMED = re.compile(r"@(?P<stage>[a-z-]+)(?::(?P<split>[a-z][a-z0-9_]*))?(?P<weight>:[0-9][0-9./]*)?")


class ReportSettings(Settings):
    """The page has no settings."""


def arms_settings() -> type[Settings]:
    from ojak.train.arms import ArmsConfig

    return ArmsConfig


def compare_settings() -> type[Settings]:
    from ojak.evaluate.config import CompareConfig

    return CompareConfig


# ------------------------------------------------------------------------------------------------- which rows are read


def stage_of(source: str, before: Sequence[str]) -> str | None:
    """The stage that a source names: `@STAGE...` by name, "" the last one with rows; None for a path.

    Raises UsageError for a stage that is not before this one, or has no rows.
    """
    having = [name for name in before if name in ROWS]
    if not source:
        if not having:
            raise UsageError("there are no rows to read", fix=f"set data, or put {', '.join(ROWS)} before it")
        return having[-1]
    if not source.startswith("@"):
        return None
    found = NAMED.fullmatch(source)
    having += [name for name in before if name == PAIRS]
    if found is None or found["stage"] not in having:
        name = found["stage"] if found else source
        raise UsageError(f"{source[:80]!r} names no stage with rows before this one", fix=meant(name, having))
    return found["stage"]


def path_of(source: str, inputs: Mapping[str, Path], split: str) -> str:
    """The path, with its split, for a source that names a stage; a path as it is."""
    place, named, weight = place_of(source, inputs)
    if place is None:
        return source
    taken = named or split
    return f"{place}{f'@{taken}' if taken else ''}{weight or ''}"


def place_of(source: str, inputs: Mapping[str, Path]) -> tuple[Path | None, str | None, str | None]:
    """The folder, split and weight of a source that names a stage, those of the latter two that it has; of a path no
    folder. Raises as `stage_of` does."""
    stage = stage_of(source, list(inputs))
    if stage is None:
        return None, None, None
    found = NAMED.fullmatch(source)
    return (inputs[stage], found["split"], found["weight"]) if found else (inputs[stage], None, None)


def picks_of_train(settings: Settings, before: Sequence[str]) -> list[str]:
    """The stage that fetched the model, and those whose rows the runs read."""
    from ojak.train.arms import ArmsConfig

    assert isinstance(settings, ArmsConfig)
    named = {stage_of(source, before) for source in settings.sources}
    named |= stages_named(settings.model, settings.evaluate.probe, *_models_of_arms(settings))
    return [name for name in before if name in {"pull", *named}]


def _models_of_arms(settings: ArmsConfig) -> list[str]:
    """The teacher of the runs, and what single arms have in the place of it and of the model."""
    blocks = [settings.model_dump(exclude_unset=True), *(changes or {} for changes in settings.arms.values())]
    found = [block.get("model") for block in blocks[1:]]
    found += [(block.get("distil") or {}).get("teacher") for block in blocks]
    return [text for text in found if isinstance(text, str)]


def picks_of_evaluate(settings: Settings, before: Sequence[str]) -> list[str]:
    """The training, and the stage whose rows are measured on."""
    from ojak.evaluate.config import CompareConfig

    assert isinstance(settings, CompareConfig)
    named = stage_of(settings.data or "", before) if settings.data or _needs_rows(settings) else None
    return [name for name in before if name in {"train", "merge", named, *stages_named(settings.probe)}]


def _needs_rows(settings: CompareConfig) -> bool:
    return bool({"likelihood", "answers"} & set(settings.measures))


def picks_of_report(_settings: Settings, before: Sequence[str]) -> Sequence[str]:
    """Everything before it."""
    if not before:
        raise UsageError("there is nothing to report on", fix="put it after the stages that it is about")
    return before


def files_of_evaluate(settings: Settings) -> dict[str, str | None]:
    from ojak.evaluate.config import CompareConfig

    assert isinstance(settings, CompareConfig)
    return hashed(settings.probe)


# ------------------------------------------------------------------------------------------------------ the stages


def train(job: Job) -> Outcome:
    """A model trained on the rows of a stage before, or several in arms and seeds."""
    from ojak.train.arms import is_plain, publish_runs, train_arms

    config, runs = _runs(job)
    results = train_arms(runs, notify=job.notify, progress=job.progress)
    first = runs[0].config
    talks = {"chat": str(first.out)} if first.reads != "pretrain" and first.style != "plain" else {}
    if is_plain(config):
        return Outcome({**results[0], **talks})
    publish_runs(config, runs, results, list(job.inputs.values()))
    told = [{"arm": run.arm, "seed": run.seed, **result} for run, result in zip(runs, results, strict=True)]
    return Outcome({"runs": told, **talks})


def check_train(job: Job) -> None:
    from ojak.train.arms import check_runs

    if all((folder / "manifest.json").is_file() for folder in job.inputs.values()):
        check_runs(_runs(job)[1])


def sound_train(folder: Path) -> None:
    from ojak.train.arms import check_trained

    check_trained(folder)


def _runs(job: Job) -> tuple[ArmsConfig, list[ArmRun]]:
    from ojak.train.arms import ArmsConfig, arm_runs

    assert isinstance(job.settings, ArmsConfig)
    measured = job.settings.evaluate
    probe = measured.probe and located(measured.probe, job.inputs)
    places: dict[str, Any] = {
        "model": located(job.settings.model, job.inputs),
        "evaluate": measured.model_copy(update={"probe": probe}),
        "arms": {
            name: _placed(changes or {}, job.settings, job) for name, changes in job.settings.arms.items()
        },
    }
    if job.settings.distil:
        teacher = located(job.settings.distil.teacher, job.inputs)
        places["distil"] = job.settings.distil.model_copy(update={"teacher": teacher})
    config = job.settings.model_copy(update={"out": job.out, **places})
    return config, arm_runs(config, lambda source: path_of(source, job.inputs, ""), job.accept_license)


def _placed(changes: Mapping[str, Any], config: ArmsConfig, job: Job) -> dict[str, Any]:
    """What an arm sets, its model and its teacher where they lie."""
    found = dict(changes)
    if isinstance(found.get("model"), str):
        found["model"] = located(found["model"], job.inputs)
    if isinstance(found.get("distil"), Mapping) and "teacher" in found["distil"]:
        found["distil"] = {**found["distil"], "teacher": _teacher(found["distil"]["teacher"], config, job)}
    return found


def _teacher(name: str, config: ArmsConfig, job: Job) -> str:
    """The teacher's path: what the first seed of an arm before made, where it is `@train/ARM`."""
    from ojak.train.finished import MODEL

    arm = name.removeprefix(OF_ARM)
    if name == arm or arm not in config.arms:
        return located(name, job.inputs)
    return str(job.out / arm / f"seed-{(*config.seeds, config.seed)[0]}" / MODEL)


def evaluate(job: Job) -> Outcome:
    """The trained models and the base model measured on the same rows, and compared."""
    from ojak.evaluate.comparison import compare_models

    config, runs = _measured(job)
    artifact = compare_models(
        config, runs, job.out, accept_license=job.accept_license, inputs=_artifacts(job),
        notify=job.notify, progress=job.progress,
    )  # fmt: skip
    return Outcome({name: artifact.stats[name] for name in ("against", "arms", "differences")})


def check_evaluate(job: Job) -> None:
    from ojak.evaluate.comparison import check_measured, measured_models

    if all((folder / "manifest.json").is_file() for folder in job.inputs.values()):
        config, runs = _measured(job)
        check_measured(measured_models(config, runs), job.out)


def sound_evaluate(folder: Path) -> None:
    from ojak.evaluate.comparison import check_comparison

    check_comparison(folder)


def _measured(job: Job) -> tuple[CompareConfig, list[Trained]]:
    from ojak.evaluate.comparison import Trained
    from ojak.evaluate.config import CompareConfig
    from ojak.train.arms import trained_folders

    assert isinstance(job.settings, CompareConfig)
    config = job.settings
    if config.probe:
        config = config.model_copy(update={"probe": located(config.probe, job.inputs)})
    rows = {name: folder for name, folder in job.inputs.items() if name in ROWS}
    if rows:
        path, _, split = path_of(config.data or "", rows, "test").rpartition("@")
        config = config.model_copy(update={"data": path, "split": config.split or split})
    folders = trained_folders(job.inputs["train"])
    runs = [Trained.read(arm, seed, folder) for (arm, seed), folder in folders.items()]
    return config, runs + merged_run(job.inputs)


def _artifacts(job: Job) -> list[Any]:
    """The inputs for a manifest, a training run's among them, which is no artifact."""
    from ojak._files import sha256_file

    return [
        {"path": os.path.relpath(folder, job.out), "manifest_sha256": sha256_file(folder / "manifest.json")}
        for folder in job.inputs.values()
    ]


def report(job: Job) -> Outcome:
    """A page about the stages before."""
    from ojak.report import write_report

    return Outcome({"page": str(write_report(list(job.inputs.values()), job.out))})
