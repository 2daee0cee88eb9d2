"""Several training runs that are to be compared: arms, which differ in settings, times seeds.

Each run is a folder of its own, as `train` leaves it, so that any of them is resumed, evaluated and exported like one
that was begun alone:

    OUT/<arm>/seed-<n>/     model/ or adapter/, checkpoints/, metrics.jsonl, manifest.json
    OUT/manifest.json       which runs there are, and their results; written last

One arm with one seed that nobody named is a plain run in OUT itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, computed_field, field_validator, model_validator

from ojak._progress import Listener, Progress, silent
from ojak._settings import dotted, explain, problems, wrong_value
from ojak.artifact import Artifact, Input, publish
from ojak.errors import InputRefused, UsageError, VerificationFailed
from ojak.train.config import BLOCKS, TrainConfig
from ojak.train.finished import check_same, check_sizes, read_manifest
from ojak.train.sources import parse_source, sha256_by_source

ARM = re.compile(r"(?!(?:base|data|rejected)\Z)[a-z0-9][a-z0-9_.-]{0,39}")
ONLY = "tuned"  # the name of an arm that nobody named
OWN = ("arms", "seeds", "data_sha256", "out", "resume", "accept_license")
OF_SEED = "{seed}"  # stands for the run's seed in the name of its model: to go on from runs of the same seeds
REFERENCE = "@"  # begins a source that is the result of an earlier stage

Locate = Callable[[str], str]


class ArmsConfig(TrainConfig):
    """Settings of one or several runs: those of `TrainConfig`, and

    arms: for each its name, and what it sets otherwise than the rest says. seeds: each arm is trained with each of them
    (none: with `seed`). data, val_data: sources as in `TrainConfig`, or `@STAGE[:SPLIT][:WEIGHT]`, the result of an
    earlier stage of the recipe; without data, the newest rows. The same in `evaluate.more`. A model whose path holds
    `{seed}` is another one for each seed, such as what an earlier recipe trained with it.
    """

    data: tuple[str, ...] = ()
    arms: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice")
        return seeds

    @model_validator(mode="after")
    def _arms_are_sound(self) -> ArmsConfig:
        wrong = [name for name in self.arms if not ARM.fullmatch(name)]
        if wrong:
            raise ValueError(
                f"{wrong[0][:80]!r} cannot be the name of an arm (a to z, 0 to 9, '.', '_' and '-')"
            )
        for name, changes in self.arms.items():
            taken = sorted({*OWN, "seed"} & (changes or {}).keys())
            if taken:
                raise ValueError(f"the arm {name!r} cannot set {taken[0]!r}, which is that of all arms")
            _made(self, name, {"data": ("-",), "out": self.out})
        for path in self.paths:
            with wrong_value():
                parse_source(path)
        return self

    @property
    def sources(self) -> list[str]:
        """Every source that one of the runs reads; an empty one is the newest rows."""
        found: list[str] = []
        for changes in self.arms.values() or [{}]:
            here = {"data": self.data, "val_data": self.val_data, **(changes or {})}
            more = _merged(self.evaluate.model_dump(), (changes or {}).get("evaluate") or {})["more"]
            found += [*(here["data"] or ("",)), *filter(None, [here["val_data"], *more.values()])]
        return list(dict.fromkeys(found))

    @property
    def paths(self) -> list[str]:
        """The sources that are paths."""
        return [text for text in self.sources if text and not text.startswith(REFERENCE)]

    @computed_field
    @property
    def data_sha256(self) -> dict[str, str | None]:
        """A hash of what each source that is a path holds, so that a changed file is a changed setting."""
        return sha256_by_source(self.paths)


def _made(config: ArmsConfig, arm: str, more: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run of an arm. Raises ValueError that names the arm and what is wrong with it."""
    given = config.model_dump(exclude_unset=True, exclude=set(OWN))
    values = {**_merged(given, config.arms.get(arm) or {}), **more}
    for name in set(BLOCKS) - {values.get("objective")}:
        values.pop(name, None)  # what the stage says of an objective holds for the arms that have it
    wrong = list(problems(TrainConfig, values))
    if wrong:
        lines = [explain(item, f"arms.{arm}.{dotted(item['loc'])}", fields) for item, fields in wrong]
        raise ValueError("; ".join(lines))
    return TrainConfig(**values)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says; settings within settings are merged in the same way."""
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            merged[name] = _merged(inner, value)
        else:
            merged[name] = value
    return merged


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One run: its arm, its seed, and its settings, which name its folder."""

    arm: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def is_plain(config: ArmsConfig) -> bool:
    """Whether it is one run in the folder itself."""
    return not config.arms and not config.seeds


def arm_runs(config: ArmsConfig, locate: Locate, accept_license: tuple[str, ...] = ()) -> list[ArmRun]:
    """The runs in the order in which they are made: all arms with the first seed, then all with the next.

    `locate` gives the path for a source that is none ("" for the newest rows); it raises UsageError for what it does
    not know.
    """
    runs: list[ArmRun] = []
    for seed in config.seeds or (config.seed,):
        for arm, changes in (config.arms or {ONLY: {}}).items():
            here = {"data": config.data, "val_data": config.val_data, **(changes or {})}
            more: dict[str, Any] = {
                "data": tuple(map(locate, here["data"] or ("",))),
                "val_data": locate(here["val_data"]) if here["val_data"] else None,
                "seed": seed,
                "out": config.out if is_plain(config) else config.out / arm / f"seed-{seed}",
                "accept_license": accept_license,
            }
            try:
                runs.append(ArmRun(arm, seed, _located(_made(config, arm, more), locate)))
            except ValueError as error:
                raise UsageError(str(error)) from error
    return runs


def _located(config: TrainConfig, locate: Locate) -> TrainConfig:
    """The settings of a run with the paths of its further held-out rows, and its model that of its own seed."""
    more = {name: locate(text) for name, text in config.evaluate.more.items()}
    changes = {
        "evaluate": config.evaluate.model_copy(update={"more": more}),
        "model": config.model.replace(OF_SEED, str(config.seed)),
    }
    return config.model_copy(update=changes)


def check_runs(runs: Sequence[ArmRun]) -> None:
    """Raise ResumeRefused where the folder of one of the runs holds a finished one of other settings or data.

    What a run that is not finished would be refused for, it says itself when its turn comes.
    """
    for run in runs:
        manifest = read_manifest(run.config.out)
        if manifest is not None:
            check_same(run.config, manifest)


def train_arms(
    runs: Sequence[ArmRun], *, notify: Callable[[str], None] = silent, progress: Listener | None = None
) -> list[dict[str, Any]]:
    """Make the runs that are not finished: the result of each, in their order. Raises what `train` does."""
    from ojak.model.memory import forget_peak
    from ojak.train.run import train

    results: list[dict[str, Any]] = []
    for number, run in enumerate(runs, 1):
        if len(runs) > 1:
            notify(f"{run.name} ({number} of {len(runs)})")
        forget_peak()  # so that the memory of this run is told, not that of the largest before it
        shown = _Shown(run.name if len(runs) > 1 else "training", progress)
        results.append(train(run.config, notify=notify, progress=shown).to_dict())
    return results


class _Shown:
    """Tells a listener how far a run is."""

    def __init__(self, name: str, listener: Listener | None) -> None:
        self.name, self.listener = name, listener

    def __call__(self, figures: Mapping[str, Any]) -> None:
        if self.listener is None or "loss" not in figures:
            return
        step, left, each = figures["step"], figures.get("eta_s") or 0.0, figures.get("steps")
        state = Progress(
            rows_total=each or step, rows_done=step, eta_s=left, unit="steps", reads=True,
            phase=f"{self.name}: loss {figures['loss']:.3f}, {figures.get('tokens_per_s', 0):,.0f} tok/s",
        )  # fmt: skip
        self.listener.update(state)


def publish_runs(
    config: ArmsConfig, runs: Sequence[ArmRun], results: Sequence[Mapping[str, Any]], inputs: Sequence[Input]
) -> Artifact:
    """Write `config.out/manifest.json` about finished runs, unless it says the same already."""
    told = [
        {
            "arm": run.arm,
            "seed": run.seed,
            "folder": run.config.out.relative_to(config.out).as_posix(),
            "result": {name: value for name, value in result.items() if name != "out"},
        }
        for run, result in zip(runs, results, strict=True)
    ]
    settings = config.model_dump(mode="json", exclude={"out", "resume", "accept_license"})
    try:
        there = Artifact.open(config.out)
        if (there.manifest["config"], there.stats) == (settings, {"runs": told}):
            return there
    except (InputRefused, VerificationFailed):
        pass
    return publish(
        config.out,
        kind="train",
        records=[],
        config=settings,
        inputs=inputs,
        stats={"runs": told},
        replace=True,
    )


def check_trained(out: Path) -> None:
    """Raise VerificationFailed where a run in `out` is damaged or missing, as far as sizes tell."""
    for folder in trained_folders(out).values():
        manifest = read_manifest(folder)
        if manifest is None:
            raise VerificationFailed(f"{folder} holds no finished run", why=f"{out} says that it does")
        check_sizes(folder, manifest)


def trained_folders(out: Path) -> dict[tuple[str, int], Path]:
    """The finished runs in `out`, as its manifest has them: (arm, seed) -> folder.

    Raises VerificationFailed where it is damaged, InputRefused where there is none.
    """
    manifest = read_manifest(out)
    if manifest is not None and manifest.get("kind") == "training":
        seed = manifest.get("config", {}).get("seed", 0)
        return {(ONLY, int(seed)): out}
    return dict(_listed(Artifact.open(out)))


def _listed(artifact: Artifact) -> Iterator[tuple[tuple[str, int], Path]]:
    runs = artifact.stats.get("runs")
    for run in runs if isinstance(runs, list) else []:
        arm, seed = run.get("arm"), run.get("seed")
        if not (isinstance(arm, str) and ARM.fullmatch(arm) and type(seed) is int):
            raise VerificationFailed(
                f"{artifact.path / 'manifest.json'} is damaged", why="a run without a name"
            )
        yield (arm, seed), artifact.path / arm / f"seed-{seed}"
