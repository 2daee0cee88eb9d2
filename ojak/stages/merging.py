"""The stage that makes one model of the runs of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak._settings import Settings
from ojak.errors import UsageError
from ojak.stages.base import Job, Outcome

if TYPE_CHECKING:
    from ojak.evaluate.comparison import Trained
    from ojak.merge.config import MergeConfig
    from ojak.merge.run import MergeResult

ARM = "merged"  # as which a comparison of the runs has it


def merge_settings() -> type[Settings]:
    from ojak.merge.config import StageConfig

    return StageConfig


def merge(job: Job) -> Outcome:
    """One model of the runs of the training before, from the model that they were trained from."""
    from ojak.merge.run import merge_models

    result: MergeResult = merge_models(_config(job), notify=job.notify, progress=job.progress)
    kept = ("method", "models", "base", "angles", "tensors", "parameters", "bytes", "seconds")
    told = result.to_dict()
    return Outcome({name: told[name] for name in kept})


def sound_merge(folder: Path) -> None:
    from ojak.merge.run import check_merge

    check_merge(folder)


def merged_run(inputs: Mapping[str, Path]) -> list[Trained]:
    """The merged model as one more run for a comparison, where there is a stage that made one."""
    from ojak.evaluate.comparison import Trained

    return [Trained.read(ARM, 0, inputs["merge"])] if "merge" in inputs else []


def _config(job: Job) -> MergeConfig:
    from ojak.merge.config import MergeConfig, StageConfig
    from ojak.train.arms import trained_folders
    from ojak.train.finished import read_manifest

    assert isinstance(job.settings, StageConfig)
    wanted = job.settings.arms
    runs = trained_folders(job.inputs["train"])
    there = {arm for arm, _ in runs}
    if unknown := set(wanted) - there:
        raise UsageError(
            f"no run has the arm {min(unknown)!r}", fix=f"merge.arms takes: {', '.join(sorted(there))}"
        )
    chosen = [folder for (arm, _), folder in runs.items() if not wanted or arm in wanted]
    how: dict[str, Any] = job.settings.model_dump(exclude={"arms"})
    trained = (read_manifest(chosen[0]) or {}).get("config", {})
    base = None if job.settings.method == "linear" else str(trained.get("model"))
    return MergeConfig(
        **how, models=tuple(map(str, chosen)), base=base, out=job.out, accept_license=job.accept_license
    )
