"""A merge at several weights, each measured on data: which of them is best at one thing, or the best bargain of two.

OUT/points.json      what was measured so far; a sweep that was stopped goes on from it
OUT/index.html       the table and the picture
OUT/manifest.json    kind "merge-sweep": all figures; written last
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import Field, model_validator

from ojak._code import version
from ojak._files import TargetLock, disk_errors, remove, target_exists, write_atomic
from ojak._progress import Listener, silent
from ojak._settings import Settings
from ojak.errors import ResumeRefused, UsageError
from ojak.merge.config import ON_TASK_VECTORS, SCALED, MergeConfig
from ojak.model.checkpoint import read_object

KIND, MANIFEST, POINTS, POINT = "merge-sweep", "manifest.json", "points.json", ".point"
PAGE, MODEL = "index.html", "config.json"
# The grid of WARP (arXiv 2406.16768, section 5) for eta, and one that is even on both sides between two models.
GRID, BETWEEN = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)
ONE_WEIGHT = {"liti": "eta", "ema": "mu"}
Figures = dict[str, Any]


class SweepConfig(Settings):
    """A merge whose weight is taken from a grid, and what measures each model that comes of it.

    merge: all but the weight that is swept; `out` becomes the folder of the sweep. data: one or two sets of rows,
    PATH or PATH@SPLIT; perplexity is measured on each. points: the grid. limit: at most so many rows of each set.
    """

    merge: MergeConfig
    data: tuple[str, ...] = Field(min_length=1, max_length=2)
    points: tuple[float, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _has_a_grid(self) -> Self:
        _refuse_overruled(self.merge)
        points = self.points or (BETWEEN if swept(self.merge) == "weight" else GRID)
        object.__setattr__(
            self, "points", tuple(sorted({float(f"{value:g}") for value in points}))
        )  # the settings are frozen once they are made
        for value in self.points:
            at(self.merge, value)
        return self

    @property
    def key(self) -> str:
        """A hash of all that shapes the figures: settings, and the content of the data."""
        from ojak.train.sources import contents_sha256

        shown = self.model_dump(mode="json")
        for name in ("out", "overwrite", "accept_license"):
            shown["merge"].pop(name)
        return hashlib.sha256(json.dumps([shown, contents_sha256(self.data)]).encode()).hexdigest()


def swept(config: MergeConfig) -> str:
    """What the grid sets: liti's eta, ema's mu, the weight of the second of two models, or the scale."""
    if config.method in ONE_WEIGHT:
        return ONE_WEIGHT[config.method]
    if config.method in ("linear", "slerp") and len(config.models) == 2:
        return "weight"
    if config.method in SCALED:
        return "scale"
    raise UsageError("a sweep of linear goes between two models", fix="name two, or sweep another method")


def _refuse_overruled(config: MergeConfig) -> None:
    """Raises UsageError for a value that the grid sets itself: it would be passed over in silence."""
    name = swept(config)
    if (name == "weight" and config.weights) or (name == "scale" and config.scale != 1):
        raise UsageError(
            f"a sweep of {config.method} sets the {name} itself", fix="name points of its grid: --at"
        )


def at(config: MergeConfig, value: float) -> MergeConfig:
    """The merge at one point of the grid."""
    changed: dict[str, Any] = {"scale": value} if swept(config) == "scale" else {"weights": (value,)}
    if swept(config) == "weight":
        changed = {"weights": (1 - value, value)}
    return MergeConfig(**{**config.model_dump(), **changed})


def single_models(config: MergeConfig, points: Sequence[float]) -> list[str]:
    """The inputs that no point of the grid is: they are measured as they are, to be held against the merges."""
    ends = {"eta": (config.base, config.models[0]), "weight": (config.models[0], config.models[-1])}
    start, end = ends.get(swept(config), (config.base if config.method in ON_TASK_VECTORS else None, None))
    if swept(config) == "weight" and config.scale != 1:  # the ends of a scaled arc are no models
        start = end = None
    covered = {start if 0 in points else None, end if 1 in points else None}
    named = [*config.models, *([config.base] if config.base else [])]
    return [name for name in dict.fromkeys(named) if name not in covered]


@dataclass
class Measured:
    """What is known so far: figures of each data set, by the point as text or the name of a single model."""

    key: str
    points: dict[str, list[Figures]] = field(default_factory=dict)
    singles: dict[str, list[Figures]] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)  # the hashes of what was merged

    def keep(self, config: SweepConfig) -> None:
        content = {"key": self.key, "points": self.points, "singles": self.singles, "models": self.models}
        write_atomic(config.merge.out / POINTS, json.dumps(content, indent=1).encode())


def sweep_merges(
    config: SweepConfig, *, notify: Callable[[str], None] = silent, progress: Listener | None = None
) -> dict[str, Any]:
    """Merges at every point of the grid, measures each merge and the single models, writes table and picture.

    A model is removed when it was measured. What was measured is not measured again, whatever stops the work. Raises
    what `merge_models` and `evaluate_model` do, TargetExists for a finished sweep, ResumeRefused for another that is
    not.
    """
    from ojak.report.sweep import write_sweep

    out = config.merge.out
    with TargetLock(out), disk_errors(out):
        known = _known(config)
        _measure(config, known, notify, progress)
        found = _found(config, known)
        remove(out / MANIFEST)  # of a sweep that is replaced, now that all of the new one is known
        write_sweep(found, out / PAGE)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(out / MANIFEST, text.encode())
        remove(out / POINTS)
    return {**found["result"], "out": str(out), "page": str(out / PAGE)}


def _known(config: SweepConfig) -> Measured:
    """What an earlier run of the same sweep measured. A finished one that is to be replaced stays as long as it can."""
    out, key = config.merge.out, config.key
    _check_target(config)
    there = read_object(out / POINTS)
    if (out / PAGE).exists() and not there and not (out / MANIFEST).exists():
        raise target_exists(out / PAGE, why="no sweep made it, so it is not ours to replace")
    if there and there.get("key") != key and not config.merge.overwrite:
        raise ResumeRefused(
            f"{out} holds a sweep with other settings or data that was not finished",
            fix="choose another --out, or pass --overwrite",
        )
    if there.get("key") != key:
        return Measured(key)
    return Measured(key, there["points"], there["singles"], there["models"])


def _check_target(config: SweepConfig) -> None:
    """Raises TargetExists for a folder that holds a model or another result, or a finished sweep that is to stay."""
    out = config.merge.out
    if (out / MODEL).exists():
        raise target_exists(out / MODEL, why="a model lies there, of which a sweep is no part")
    finished = read_object(out / MANIFEST)
    if finished and finished.get("kind") != KIND:
        raise target_exists(out, why="it holds something else than a sweep")
    if finished and not config.merge.overwrite:
        raise target_exists(out, why="it holds a finished sweep; --overwrite replaces it")


def _measure(
    config: SweepConfig, known: Measured, notify: Callable[[str], None], progress: Listener | None
) -> None:
    """Whatever is not measured yet, kept after each model."""
    from ojak.merge.run import merge_models

    point = config.merge.out / POINT
    for number, value in enumerate(config.points, 1):
        if f"{value:g}" in known.points:
            continue
        notify(f"{swept(config.merge)} {value:g} ({number} of {len(config.points)})")
        here = at(config.merge, value).model_copy(update={"out": point, "overwrite": True})
        try:
            merged = merge_models(here, notify=notify, progress=progress)
            hashes = [model["sha256"] for model in (*merged.models, *([merged.base] if merged.base else []))]
            if known.models not in ([], hashes):
                raise ResumeRefused(
                    "the models have changed since the sweep was begun",
                    fix=f"remove {config.merge.out / POINTS}, or choose another --out",
                )
            known.models = hashes
            known.points[f"{value:g}"] = _figures(config, str(point), notify, progress)
        finally:
            remove(point)
        known.keep(config)
    for name in single_models(config.merge, config.points):
        if name not in known.singles:
            known.singles[name] = _figures(config, name, notify, progress)
            known.keep(config)


def _figures(
    config: SweepConfig, model: str, notify: Callable[[str], None], progress: Listener | None
) -> list[Figures]:
    """Perplexity and bits per byte of a model on each data set, [value, low, high] (95 %)."""
    from ojak.evaluate.config import EvaluateConfig
    from ojak.evaluate.run import evaluate_model
    from ojak.train.sources import parse_source, split_of

    found: list[Figures] = []
    for text in config.data:
        source = parse_source(text)
        asked = EvaluateConfig(
            model=model, data=str(source.path), split=split_of(source, "validation"), limit=config.limit,
            seed=config.seed, accept_license=config.merge.accept_license,
        )  # fmt: skip
        result = evaluate_model(asked, notify=notify, progress=progress)
        figures = {
            name: [result[name], *result[f"{name}_interval"]] for name in ("perplexity", "bits_per_byte")
        }
        found.append({**figures, "rows": result["rows"], "tokens": result["tokens"]})
    return found


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse and somewhere better; less is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def _found(config: SweepConfig, known: Measured) -> dict[str, Any]:
    """The manifest: every point with its figures, which are on the front, and which single models they beat."""
    values = {name: [each["perplexity"][0] for each in known.points[name]] for name in known.points}
    front = [name for name in values if not any(dominates(other, values[name]) for other in values.values())]
    points = [
        {"value": value, "front": f"{value:g}" in front, "figures": known.points[f"{value:g}"]}
        for value in config.points
    ]
    singles = [
        {"name": _shown(name), "figures": figures, "beaten": _beaten(figures, values.values())}
        for name, figures in known.singles.items()
    ]
    best = [min(config.points, key=lambda value: values[f"{value:g}"][i]) for i in range(len(config.data))]
    result = {"swept": swept(config.merge), "points": points, "singles": singles, "best": best}
    return {
        "schema_version": 1,
        "kind": KIND,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ojak_version": version(),
        "method": config.merge.method,
        "models": [_shown(name) for name in config.merge.models],
        "base": _shown(config.merge.base) if config.merge.base else None,
        "models_sha256": known.models,
        "data": [_shown(text) for text in config.data],
        "key": known.key,
        "result": result,
    }


def _beaten(figures: Sequence[Mapping[str, Any]], merges: Any) -> bool:
    own = [each["perplexity"][0] for each in figures]
    return any(dominates(merge, own) for merge in merges)


def _shown(name: str) -> str:
    """A name as it is, of a path its last two parts: runs of a training are told apart by their parents."""
    parts = [part for part in name.rstrip("/").split("/") if part]
    return "/".join(parts[-2:])
