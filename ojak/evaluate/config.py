"""The settings of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, computed_field, field_validator

from ojak._files import sha256_file
from ojak._settings import Settings

Measure = Literal["likelihood", "answers", "instructions"]


class MeasureConfig(Settings):
    """What is measured, whatever the model.

    data: rows (any format of `ojak.formats`, or an artifact); None for the built-in instructions alone. split: of an
    artifact. limit: at most so many rows, taken evenly. measures: "likelihood" (perplexity and bits per byte of the
    rows), "answers" (what the model writes, against the rows' own answers), "instructions" (built-in requests whose
    answers rules can check). judge: a model that grades answers from 0 to 100, as far as its calibration allows
    (`trust_anyway`). probe: a file of facts, asked for without the text that states them (`ojak.judge.facts`). harness:
    tasks of lm-evaluation-harness, from the YAML files in the folder `harness_tasks`. With a probe or a harness
    `measures` may be empty. checks: how many built-in instructions. seed: of everything drawn; decoding is greedy.
    """

    data: str | None = Field(default=None, min_length=1)
    split: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    measures: tuple[Measure, ...] = ("likelihood",)
    judge: str | None = Field(default=None, min_length=1)
    trust_anyway: bool = False
    max_tokens: int = Field(default=256, ge=1)
    checks: int = Field(default=200, ge=1)
    probe: str | None = Field(default=None, min_length=1)
    harness: tuple[str, ...] = ()
    harness_tasks: str | None = Field(default=None, min_length=1)
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] | None = None
    accept_license: tuple[str, ...] = ()


class EvaluateConfig(MeasureConfig):
    """What is measured of a model.

    against: a second model, measured on the same rows; differences are this model's minus that one's. template_of: a
    model whose chat template (and what ends its answers) one without a template is asked with, as a base model next to
    what was trained from it.
    """

    model: str = Field(min_length=1)
    against: str | None = Field(default=None, min_length=1)
    template_of: str | None = Field(default=None, min_length=1)


class CompareConfig(MeasureConfig):
    """What is measured of every run of a training. data: as above, or the result of an earlier stage of the recipe,
    `@STAGE[:SPLIT]`; without it, the test split of the newest rows. base: measure the untrained model, too.
    """

    base: bool = True

    @field_validator("data")
    @classmethod
    def _is_there(cls, data: str | None) -> str | None:
        if data and not data.startswith("@") and not Path(data).exists():
            raise ValueError("there is nothing at this path")
        return data

    @computed_field
    @property
    def data_sha256(self) -> str | None:
        """A hash of what a path holds, so that a changed file is a changed setting."""
        if not self.data or self.data.startswith("@"):
            return None
        path = Path(self.data)
        path = path / "manifest.json" if path.is_dir() else path
        return sha256_file(path) if path.is_file() else None
