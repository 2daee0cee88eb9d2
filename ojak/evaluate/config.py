"""The settings of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ojak._settings import Settings

Measure = Literal["likelihood", "answers", "instructions"]


class EvaluateConfig(Settings):
    """What is measured of a model.

    data: rows (any format of `ojak.formats`, or an artifact); None for the built-in instructions alone. split: of an
    artifact. limit: at most so many rows, taken evenly. measures: "likelihood" (perplexity and bits per byte of the
    rows), "answers" (what the model writes, against the rows' own answers), "instructions" (built-in requests whose
    answers rules can check). against: a second model, measured on the same rows; differences are this model's minus
    that one's. judge: a model that grades answers from 0 to 100, as far as its calibration allows (`trust_anyway`).
    checks: how many built-in instructions. seed: of everything drawn; decoding itself is greedy.
    """

    model: str = Field(min_length=1)
    data: str | None = Field(default=None, min_length=1)
    split: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    measures: tuple[Measure, ...] = ("likelihood",)
    against: str | None = Field(default=None, min_length=1)
    judge: str | None = Field(default=None, min_length=1)
    trust_anyway: bool = False
    max_tokens: int = Field(default=256, ge=1)
    checks: int = Field(default=200, ge=1)
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] | None = None
    accept_license: tuple[str, ...] = ()
