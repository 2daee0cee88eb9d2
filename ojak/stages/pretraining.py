"""The stages from raw text to data sets for pretraining: texts, corpus, augment, scratch, pretrain-mix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ojak._settings import Settings
from ojak.errors import InputRefused, UsageError
from ojak.stages.base import Job, Outcome

if TYPE_CHECKING:
    from ojak.train.mix_config import MixArmsConfig

# What names the results of these stages in settings that take a path: the stage, the file or folder in its result.
NAMED = {
    "@texts": ("texts", "texts.jsonl"),
    "@texts/facts": ("texts", "facts.jsonl"),
    "@texts/supervised": ("texts", "supervised.jsonl"),
    "@scratch": ("scratch", "model"),
    "@shrink": ("shrink", "model"),
    "@teacher": ("teacher", ""),
}
OF_GRID = re.compile(r"@grid/([a-z0-9][a-z0-9_.-]*)")  # the model of an arm


def texts_settings() -> type[Settings]:
    from ojak.corpus.shipped import ShippedConfig

    return ShippedConfig


def corpus_settings() -> type[Settings]:
    from ojak.corpus.config import CorpusConfig

    return CorpusConfig


def augment_settings() -> type[Settings]:
    from ojak.augment.config import AugmentSettings

    return AugmentSettings


def scratch_settings() -> type[Settings]:
    from ojak.train.scratch import ScratchConfig

    return ScratchConfig


def mix_settings() -> type[Settings]:
    from ojak.train.mix_config import MixArmsConfig

    return MixArmsConfig


def located(text: str, inputs: Mapping[str, Path]) -> str:
    """The path for a setting that names the result of a stage before (`NAMED`); a path, or the name of a model, as it
    is. Raises UsageError where there is no such stage."""
    name, colon, rest = text.partition(":")
    stage, file = _place_of(name)
    if not stage:
        return text
    if stage not in inputs:
        raise UsageError(f"{name} names no stage before this one", fix=f"put a stage {stage} before it")
    return f"{inputs[stage] / file}{colon}{rest}"


def stages_named(*settings: str | None) -> set[str]:
    """The stages whose results some settings name."""
    found = {_place_of(text.partition(":")[0])[0] for text in settings if text}
    return found - {""}


def _place_of(name: str) -> tuple[str, str]:
    """(stage, file in its result) that a name stands for; ("", "") for a path or the name of a model."""
    of_grid = OF_GRID.fullmatch(name)
    return ("grid", f"models/{of_grid[1]}") if of_grid else NAMED.get(name, ("", ""))


# ------------------------------------------------------------------------------------------------ which files are read


def hashed(*settings: str | None) -> dict[str, str | None]:
    """A hash of what each path holds that settings name, None where there is nothing; no results of stages."""
    from ojak.train.sources import contents_sha256

    paths = [text for text in settings if text and not text.startswith("@")]
    return {path: found[0] if (found := contents_sha256([path])) else None for path in paths}


def files_of_corpus(settings: Settings) -> dict[str, str | None]:
    """A corpus is read from files of more formats than rows are."""
    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.inputs import survey

    assert isinstance(settings, CorpusConfig)
    found = hashed(settings.educational and str(settings.educational))
    for path in settings.paths:
        if str(path) not in NAMED:
            try:
                found[str(path)] = survey([path]).digests[0]
            except (InputRefused, UsageError):  # nothing to read, nothing there
                found[str(path)] = None
    return found


def files_of_augment(settings: Settings) -> dict[str, str | None]:
    from ojak.augment.config import AugmentSettings

    assert isinstance(settings, AugmentSettings)
    return hashed(*(str(path) for path in (settings.data, settings.templates) if path))


def files_of_mix(settings: Settings) -> dict[str, str | None]:
    from ojak.train.mix_config import MixArmsConfig

    assert isinstance(settings, MixArmsConfig)
    arms = settings.configs().values()
    return hashed(*(text for arm in arms for text in (arm.mix_data, arm.replay, arm.data)))


# ---------------------------------------------------------------------------------------------------------- the stages


def texts(job: Job) -> Outcome:
    """The texts that come with every Python."""
    from ojak.corpus.shipped import ShippedConfig, write_shipped

    assert isinstance(job.settings, ShippedConfig)
    return Outcome(dict(write_shipped(job.out, job.settings).stats))


def corpus(job: Job) -> Outcome:
    """Clean documents out of raw files."""
    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.run import make_corpus, summary

    assert isinstance(job.settings, CorpusConfig)
    paths = tuple(Path(located(str(path), job.inputs)) for path in job.settings.paths)
    config = job.settings.model_copy(update={"paths": paths})
    return Outcome(summary(make_corpus(config, job.out, notify=job.notify, progress=job.progress)))


def augment(job: Job) -> Outcome:
    """The documents of the stage before, or of `data`, with questions and answers made from them."""
    from ojak.augment.config import AugmentSettings
    from ojak.augment.run import augment_data, summary

    assert isinstance(job.settings, AugmentSettings)
    artifact = augment_data(
        job.inputs.get("corpus") or job.settings.source(),
        job.out,
        job.settings.config(),
        accept_license=job.accept_license,
        notify=job.notify,
        progress=job.progress,
    )
    return Outcome(summary(artifact))


def scratch(job: Job) -> Outcome:
    """A tokenizer of the corpus and a configuration: a model that has learnt nothing."""
    from ojak.train.scratch import ScratchConfig, make_scratch

    assert isinstance(job.settings, ScratchConfig)
    return Outcome(dict(make_scratch(job.inputs["corpus"], job.out, job.settings, notify=job.notify).stats))


def pretrain_mix(job: Job) -> Outcome:
    """Data sets of the same tokens, one for each arm, as splits of one artifact."""
    from ojak.train.mix import make_arms

    config = _mix_config(job)
    source = job.inputs.get("augment") or job.inputs["corpus"]
    return Outcome(dict(make_arms(source, job.out, config.configs(), notify=job.notify).stats))


def _mix_config(job: Job) -> MixArmsConfig:
    """The settings with the paths of the stages that they name."""
    from ojak.train.mix_config import MixArmsConfig

    assert isinstance(job.settings, MixArmsConfig)
    named = ("tokenizer", "mix_data", "replay", "data")

    def known(values: Mapping[str, object]) -> dict[str, object]:
        paths = {
            name: located(str(values[name]), job.inputs) for name in named if values.get(name) is not None
        }
        return {**values, **paths}

    given = known(job.settings.model_dump(exclude_unset=True, exclude={"arms"}))
    arms = {name: known(changes or {}) for name, changes in job.settings.arms.items()}
    return MixArmsConfig(**given, arms=arms, accept_license=job.accept_license)  # type: ignore[arg-type]
