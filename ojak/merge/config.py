"""The settings of a merge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ojak._settings import Settings

Method = Literal["linear", "slerp", "task", "ties", "dare", "ema", "liti"]
Dtype = Literal["float32", "bfloat16", "float16"]
ON_TASK_VECTORS = ("slerp", "task", "ties", "dare", "liti")  # what a model has learnt since its base
SCALED = ("slerp", "task", "ties", "dare")
OF_ONE = {"angle": "slerp", "density": "ties", "drop": "dare"}  # settings that other methods would pass over
ROUNDING = 1e-9  # of a sum of weights, relative to theirs
FEWEST = {"linear": 2, "slerp": 2}


def _cancels(weights: tuple[float, ...]) -> bool:
    """Whether the sum is 0 but for rounding: what 0.1 + 0.2 - 0.3 divides would be 1e16 times too large."""
    return abs(math.fsum(weights)) <= ROUNDING * math.fsum(map(abs, weights))


class HowConfig(Settings):
    """How models become one, whichever they are.

    method: what is done with them (docs/merge.md has the formulas). weights: one a model, all alike where there are
    none; liti takes its eta, ema its mu. scale: of the merged task vector, which is added to the base. angle: what
    slerp measures one angle of. density: the share of a task vector that ties keeps. drop: the share that dare sets to
    0 at random, by `seed`. dtype: what is written; None for what the first model is stored as.
    """

    method: Method
    weights: tuple[float, ...] | None = None
    scale: float = Field(default=1.0, allow_inf_nan=False)
    angle: Literal["layer", "tensor"] = "layer"
    density: float = Field(default=0.2, gt=0, le=1)
    drop: float = Field(default=0.5, ge=0, lt=1)
    seed: int = 0
    dtype: Dtype | None = None

    @field_validator("weights")
    @classmethod
    def _are_numbers(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and not (weights and all(map(math.isfinite, weights))):
            raise ValueError("weights are finite numbers")
        return weights

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method in ("liti", "ema") and len(self.weights or ()) != 1:
            name = {"liti": "eta, the model's share", "ema": "mu, the share of each later model"}[self.method]
            raise ValueError(f"{self.method} takes one weight: {name}")
        if self.method == "ema" and self.weights and not 0 <= self.weights[0] <= 1:
            raise ValueError("the weight of ema lies between 0 and 1")
        if self.method in ("linear", "ties") and self.weights and _cancels(self.weights):
            raise ValueError(f"{self.method} divides by the sum of the weights, which is 0")
        if self.method == "slerp" and self.weights and (min(self.weights) < 0 or sum(self.weights) == 0):
            raise ValueError("the weights of slerp are shares of an arc: none below 0, and not all 0")
        if self.scale != 1 and self.method not in SCALED:
            raise ValueError(f"{self.method} has no scale: it belongs to {', '.join(SCALED)}")
        for name, method in OF_ONE.items():
            if self.method != method and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{self.method} has no {name}: it belongs to {method}")
        return self


class StageConfig(HowConfig):
    """The merge of the runs of a training. arms: those that are merged, with all their seeds; none for all."""

    arms: tuple[str, ...] = ()


class MergeConfig(HowConfig):
    """A merge of `models` (names, files, folders, those of training runs and of adapters) into the folder `out`.

    base: the model that all of them come from; needed by what works on task vectors, and where an ema begins, if given.
    overwrite: replace an earlier merge.
    """

    models: tuple[str, ...] = Field(min_length=1)
    out: Path
    base: str | None = Field(default=None, min_length=1)
    overwrite: bool = False
    accept_license: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.base is None and self.method in ON_TASK_VECTORS:
            raise ValueError(f"{self.method} works on what was learnt since a base: give base")
        fewest = FEWEST.get(self.method, 2 if self.method == "ema" and self.base is None else 1)
        if len(self.models) < fewest:
            raise ValueError(f"{self.method} takes at least {fewest} models")
        if self.method == "liti" and len(self.models) != 1:
            raise ValueError("liti goes from the base to one model: merge several first")
        if self.method not in ("liti", "ema") and self.weights and len(self.weights) != len(self.models):
            raise ValueError(f"{len(self.weights)} weights for {len(self.models)} models")
        return self
