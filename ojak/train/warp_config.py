"""The settings of the recipe stage `warp`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, computed_field, field_validator, model_validator

from ojak.train.config import Dtype, ObjectiveName, TrainConfig
from ojak.train.sources import sha256_by_source

GRID = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)


class WarpConfig(TrainConfig):
    """Settings of `warp` (arXiv 2406.16768): those of a `reinforce` run, `TrainConfig`'s, hold for each run, and

    iterations: how often the runs begin anew, each time from where the last ones led. runs: how many begin at the same
    weights, with another order of prompts and other draws each. eta: how far the next ones begin on the way from the
    old beginning to the merged runs. front: how far from the first model to the last merged one the points lie that are
    measured at the end. final: which of these ways the model in OUT/model has gone. measure_data: prompts to measure on
    (none: those learnt from), `measure_prompts` of them, one answer each at temperature 1.

    Weights are float32 unless `dtype` says otherwise: what a run of small steps changes is less than what bfloat16
    rounds away, and differences of weights are what is merged.
    """

    objective: ObjectiveName = "reinforce"
    data: tuple[str, ...] = ()
    dtype: Dtype = "float32"
    iterations: int = Field(default=5, ge=1, le=100)
    runs: int = Field(default=2, ge=2, le=20)
    eta: float = Field(default=0.3, ge=0, le=1)
    front: tuple[float, ...] = GRID
    final: float = Field(default=1.0, ge=0, le=1)
    measure_data: str | None = Field(default=None, min_length=1)
    measure_prompts: int = Field(default=64, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _rates_are_those_of_reinforce(cls, values: Any) -> Any:
        """The objective is said, so that `lr` has its default of it (TrainConfig's validators run after this one)."""
        return {"objective": "reinforce", **values} if isinstance(values, dict) else values

    @field_validator("front")
    @classmethod
    def _front_is_on_the_way(cls, front: tuple[float, ...]) -> tuple[float, ...]:
        if not front or not all(0 <= eta <= 1 for eta in front):
            raise ValueError("give shares of the way, each from 0 to 1")
        return tuple(sorted(set(front)))

    @property
    def sources(self) -> list[str]:
        """Every source that is read; an empty one is the newest rows."""
        return [*(self.data or ("",)), *filter(None, [self.measure_data, self.val_data])]

    @computed_field
    @property
    def data_sha256(self) -> dict[str, str | None]:
        """A hash of what each source that is a path holds, so that a changed file is a changed setting."""
        return sha256_by_source([text for text in self.sources if text and not text.startswith("@")])

    def run_config(self, model: str, place: str, seed: int) -> TrainConfig:
        """The settings of one run, from the weights `model`, in the folder `place` of `out`."""
        own = set(WarpConfig.model_fields) - set(TrainConfig.model_fields)
        given = self.model_dump(exclude_unset=True, exclude={*own, "data_sha256"})
        named = {"objective": self.objective, "dtype": self.dtype, "data": self.data, "resume": "if_possible"}
        return TrainConfig(**{**given, **named, "model": model, "seed": seed, "out": self.out / place})
