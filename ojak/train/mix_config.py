"""The settings of `pretrain-mix`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from ojak._settings import Settings, WrongSettings, dotted, explain

Arm = Literal["vanilla", "mix", "instruct"]
WEIGHT = re.compile(r":[0-9][0-9./]*\Z")
NAME = re.compile(r"(?!validation\Z)[a-z][a-z0-9_]{0,39}")


class MixConfig(Settings):
    """What a data set for pretraining is made of; every arm of a comparison gets the same `tokens`.

    arm: "vanilla" takes the texts as they are; "instruct" gives a share of them with their pairs; "mix" adds a
    supervised set to them (arXiv 2406.14491, section 2). tokens: of the whole set, as training counts them: BOS and EOS
    included, in rows of at most `max_len`. tokenizer: that of the model to be trained. ratio: the share of augmented
    (of supervised) tokens among all that are not replayed. mix_data: the supervised set of the arm "mix". replay:
    `PATH:RATIO`, general instructions or texts, RATIO tokens of them for each one of all others (1: as many). data: the
    corpus of this arm, where it is another one than the others', such as the same texts with pairs of another maker.
    held_out: the share of the corpus's texts that no arm has; the same texts for all arms with one seed. seed: draws
    the order in which texts are taken.
    """

    arm: Arm
    tokens: int = Field(ge=1)
    tokenizer: str = Field(default="smollm2-135m-instruct", min_length=1)
    ratio: float = Field(default=0.2, ge=0, le=1)
    mix_data: str | None = Field(default=None, min_length=1)
    replay: str | None = Field(default=None, min_length=1)
    data: str | None = Field(default=None, min_length=1)
    held_out: float = Field(default=0.0, ge=0, lt=1)
    max_len: int = Field(default=1024, ge=4)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    accept_license: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _mixed_is_what_the_arm_mixes(self) -> Self:
        if self.arm == "mix" and self.mix_data is None:
            raise ValueError("the arm mix needs mix_data, a supervised set that is added to the texts")
        if self.mix_data is not None and WEIGHT.search(self.mix_data) and not Path(self.mix_data).exists():
            raise ValueError("mix_data takes no weight: `ratio` is its share")
        if self.arm != "mix" and self.mix_data is not None:
            raise ValueError(f"the arm {self.arm} takes no mix_data; another set goes into any arm as replay")
        return self


class MixArmsConfig(MixConfig):
    """Settings of the stage `pretrain-mix`: those of `MixConfig` for all arms, and

    arms: for each its name, which is that of a split of the result, and what it sets otherwise. One that is called
    vanilla, mix or instruct is that arm.
    """

    arm: Arm = "vanilla"
    arms: dict[str, dict[str, Any] | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arms_are_sound(self) -> Self:
        wrong = [name for name in self.arms if not NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0][:80]!r} cannot be the name of an arm (a to z, 0 to 9 and '_')")
        self.configs()
        return self

    def configs(self) -> dict[str, MixConfig]:
        """The settings of each arm; without arms, of one that is called train."""
        shared = self.model_dump(exclude_unset=True, exclude={"arms"})
        made: dict[str, MixConfig] = {}
        for name, changes in (self.arms or {"train": None}).items():
            arm = {"arm": name} if name in get_args(Arm) else {"arm": self.arm}
            try:
                made[name] = MixConfig(**{**shared, **arm, **(changes or {})})
            except WrongSettings as error:
                fields = list(MixConfig.model_fields)
                lines = [
                    explain(item, f"arms.{name}.{dotted(item['loc'])}", fields) for item in error.problems
                ]
                raise ValueError("; ".join(lines)) from error
        return made
