"""The stage of ablations: a grid of models from nothing. `train`, `evaluate` and `report` do the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ojak._settings import Settings
from ojak.errors import UsageError
from ojak.stages.base import Job, Outcome
from ojak.stages.pretraining import hashed, located, stages_named


def grid_settings() -> type[Settings]:
    from ojak.train.grid import GridConfig

    return GridConfig


def picks_of_grid(settings: Settings, before: Sequence[str]) -> list[str]:
    """The stages whose texts it names; the corpus where it names nothing."""
    from ojak.train.grid import GridConfig

    assert isinstance(settings, GridConfig)
    named = stages_named(*settings.data) if settings.data else {"corpus"}
    if not settings.data and "corpus" not in before:
        raise UsageError("there are no texts to read", fix="set data, or put corpus before it")
    return [name for name in before if name in named]


def files_of_grid(settings: Settings) -> dict[str, str | None]:
    from ojak.train.grid import GridConfig

    assert isinstance(settings, GridConfig)
    return hashed(*settings.data)


def lends_of_grid(values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """What follows from a grid for the training of its arms, and for their evaluation."""
    from ojak.train.grid import BASE, VALIDATION, GridConfig

    rows = f"@grid:{VALIDATION}"
    if stage == "evaluate":
        return {"data": rows, "base": False}
    if stage != "train":
        return {}
    try:
        config = GridConfig(**values)
    except UsageError:  # which is told of the grid itself
        return {}
    return {
        "objective": "pretrain",
        "model": f"@grid/{BASE}",
        "data": ["@grid:train"],
        "val_data": rows,
        "max_tokens": config.tokens,
        "max_len": config.max_len,
        "arms": config.arms(),
    }


def grid(job: Job) -> Outcome:
    """Texts for all arms, and for each a model that has learnt nothing."""
    from ojak.train.grid import GridConfig, make_grid

    assert isinstance(job.settings, GridConfig)
    data = [located(text, job.inputs) for text in job.settings.data] or [str(job.inputs["corpus"])]
    return Outcome(dict(make_grid(data, job.out, job.settings, notify=job.notify).stats))
