"""The stages before a distillation: a student made of its teacher, and what the teacher predicts, kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ojak._settings import Settings
from ojak.stages.base import Job, Outcome
from ojak.stages.pretraining import hashed

if TYPE_CHECKING:
    from ojak.model.source import Source

MODEL = "model"  # the folder of the small model within the stage's result


class ShrinkSettings(Settings):
    """model: what to take layers out of. layers, intermediate: how many stay, and how wide (none: as they are). data:
    rows that tell which layers stay, a path or `@STAGE[:SPLIT]` (none: evenly spread ones).
    """

    model: str = Field(min_length=1)
    layers: int | None = Field(default=None, ge=1)
    intermediate: int | None = Field(default=None, ge=1)
    data: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _of_layers(self) -> Self:
        if self.data is not None and self.layers is None:
            raise ValueError("data tells which layers stay: give layers, how many")
        from ojak.stages.training import NAMED

        named = NAMED.fullmatch(self.data) if self.data else None
        if named and named["weight"]:
            raise ValueError("rows that choose layers have no weight: leave out what follows the split")
        return self


def cache_settings() -> type[Settings]:
    from ojak.train.distil_config import CacheStageConfig

    return CacheStageConfig


def picks_of_teacher(settings: Settings, before: Sequence[str]) -> list[str]:
    """The stage that fetched the teacher, and those whose rows it reads."""
    from ojak.stages.training import stage_of

    named = {stage_of(source, before) for source in _sources(settings)}
    return [name for name in before if name in {"pull", *named}]


def picks_of_shrink(settings: Settings, before: Sequence[str]) -> list[str]:
    """The stage that fetched the model, and the one whose rows tell which layers stay."""
    from ojak.stages.training import stage_of

    assert isinstance(settings, ShrinkSettings)
    named = stage_of(settings.data, before) if settings.data else None
    return [name for name in before if name in {"pull", named}]


def files_of_shrink(settings: Settings) -> Mapping[str, str | None]:
    assert isinstance(settings, ShrinkSettings)
    return hashed(settings.data)


def files_of_teacher(settings: Settings) -> Mapping[str, str | None]:
    return hashed(*_sources(settings))


def _sources(settings: Settings) -> tuple[str, ...]:
    """The rows that the teacher reads; an empty one is the newest."""
    from ojak.train.distil_config import CacheStageConfig

    assert isinstance(settings, CacheStageConfig)
    return settings.data or ("",)


def shrink(job: Job) -> Outcome:
    """A smaller model of a model's own layers."""
    from ojak._files import remove
    from ojak.artifact import publish
    from ojak.model.shrink import shrink_model

    assert isinstance(job.settings, ShrinkSettings)
    config = job.settings
    if not (job.out / "manifest.json").exists():
        remove(job.out / MODEL)  # of a run that was killed
    made = shrink_model(
        config.model, job.out / MODEL, layers=config.layers, intermediate=config.intermediate,
        choose=_choose(job, config), accept_license=job.accept_license, notify=job.notify,
    )  # fmt: skip
    stats: dict[str, Any] = {**made.to_dict(), "out": MODEL}
    publish(job.out, kind="shrink", records=[], config=config.model_dump(mode="json"), stats=stats)
    return Outcome({**stats, "out": made.out})


def _choose(job: Job, config: ShrinkSettings) -> Callable[[Source], Sequence[int]] | None:
    """What says which layers stay, if rows do."""
    from ojak.evaluate.depth import least_missed
    from ojak.stages.training import place_of

    if config.data is None or config.layers is None:
        return None
    place, split, _ = place_of(config.data, job.inputs)
    data = place or Path(config.data)
    return partial(least_missed, layers=config.layers, data=data, split=split, notify=job.notify)


def teacher(job: Job) -> Outcome:
    """What a teacher predicts at every learnt token of some rows."""
    from ojak.stages.training import path_of
    from ojak.train.distil_config import DistilCacheConfig
    from ojak.train.distil_make import cache_teacher

    values = job.settings.model_dump(exclude_unset=True)
    data = tuple(path_of(source, job.inputs, "") for source in _sources(job.settings))
    config = DistilCacheConfig(
        **values | {"data": data, "out": job.out, "accept_license": job.accept_license}
    )
    return Outcome(cache_teacher(config, notify=job.notify, progress=job.progress).to_dict())


def sound_shrink(folder: Path) -> None:
    """Raise VerificationFailed where the small model is damaged, as far as its weights' header tells."""
    from ojak.errors import InputRefused, VerificationFailed
    from ojak.model import checkpoint
    from ojak.stages.base import open_result

    open_result(folder)
    try:
        checkpoint.read(folder / MODEL)
    except InputRefused as error:
        raise VerificationFailed(error.what, why=error.why) from error
