"""The settings of distillation: from whom, by which loss, and what a cache of a teacher's predictions holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ojak._settings import Settings

DistilLoss = Literal["forward-kl", "reverse-kl", "jsd", "minillm", "dpkd"]
DIVERGENCES = ("forward-kl", "reverse-kl", "jsd")  # those that need a teacher's predictions and nothing else


class DistilConfig(Settings):
    """Settings of `train distil`, beside those of any run.

    teacher: a model as everywhere, or the folder of a cache (`ojak distil cache`), which is enough for forward-kl,
    reverse-kl and jsd. beta: of jsd (arXiv 2306.13649), the teacher's share of the mixture (none: 0.5); of dpkd (arXiv
    2406.19774), the factor on the reward (none: 0.1). temperature: both distributions are taken at it, and answers are
    sampled at it; a cache has one of its own, which must be the same. ce_weight: the share of the loss that is
    cross-entropy with the rows' own tokens. top_k: of a cache, the most likely so many tokens of each place (none: all
    that it holds); the others are one bucket. texts: the rows are texts of which every token is learnt, as `pretrain`
    reads them; otherwise conversations, of which the answers are.

    Of those that sample answers: max_tokens of each. alpha: the teacher's share of the distribution that minillm draws
    from (arXiv 2306.08543). form: of dpkd, the paper's (the teacher's whole answer over the student's), or that of its
    released code (the most likely token of each place). teacher_answers: the paper's form prefers answers that the
    teacher writes, or the rows' own, where it wrote these.

    What a loss does not read is refused where it is given.
    """

    teacher: str = Field(min_length=1)
    loss: DistilLoss = "forward-kl"
    beta: float | None = Field(default=None, gt=0, le=100)
    temperature: float = Field(default=1.0, gt=0, le=100)
    ce_weight: float = Field(default=0.0, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    texts: bool = False
    max_tokens: int = Field(default=128, ge=1)
    alpha: float = Field(default=0.2, ge=0, lt=1)
    form: Literal["paper", "code"] = "paper"
    teacher_answers: Literal["sampled", "rows"] = "sampled"

    @model_validator(mode="after")
    def _shares_are_shares(self) -> DistilConfig:
        if self.loss == "jsd" and self.beta is not None and self.beta >= 1:
            raise ValueError(
                "beta of jsd is a share, below 1; for the limits there are forward-kl and reverse-kl"
            )
        return self

    @model_validator(mode="after")
    def _the_loss_reads_it(self) -> DistilConfig:
        """A setting that the loss has no place for would do nothing, unsaid."""
        readers = {
            "beta": (self.loss in {"jsd", "dpkd"}, "jsd and dpkd"),
            "top_k": (self.loss in DIVERGENCES, ", ".join(DIVERGENCES)),
            "max_tokens": (self.samples, "minillm and dpkd's form paper"),
            "alpha": (self.loss == "minillm", "minillm"),
            "form": (self.loss == "dpkd", "dpkd"),
            "teacher_answers": (self.loss == "dpkd" and self.samples, "dpkd's form paper"),
        }
        for name, (is_read, of) in readers.items():
            given = name in self.model_fields_set and getattr(self, name) is not None
            if given and not is_read:
                loss = self.loss if name == "form" or self.loss != "dpkd" else f"dpkd's form {self.form}"
                raise ValueError(f"{name} does nothing with {loss}; it is read by {of}: leave it out")
        return self

    @property
    def samples(self) -> bool:
        """Whether answers are sampled: from whole models, and never from a cache."""
        return self.loss == "minillm" or (self.loss == "dpkd" and self.form == "paper")


class DistilCacheConfig(Settings):
    """Settings of `distil cache`: whose predictions, on which rows, and how much of them is kept.

    data, style, mask_roles, max_len, long_rows: as the run that learns from it has them (`TrainConfig`); a run with
    other rows is refused. top_k: so many log-probabilities of each learnt token, and the mass of all others. dtype: of
    the log-probabilities as they are stored. compute: of the teacher (none: bfloat16 where the machine has it).
    """

    teacher: str = Field(min_length=1)
    data: tuple[str, ...] = Field(min_length=1)
    out: Path
    top_k: int = Field(default=50, ge=1, le=1 << 20)
    temperature: float = Field(default=1.0, gt=0, le=100)
    dtype: Literal["float16", "float32"] = "float16"
    texts: bool = False
    style: str | None = Field(default=None, min_length=1)
    mask_roles: tuple[str, ...] = ("system", "user")
    max_len: int = Field(default=1024, ge=4)
    long_rows: Literal["truncate", "split", "drop"] | None = None
    compute: Literal["bfloat16", "float32"] | None = None
    device: str | None = Field(default=None, min_length=1)
    accept_license: tuple[str, ...] = ()


class CacheStageConfig(DistilCacheConfig):
    """Settings of the stage `teacher`. data: as above, or the result of an earlier stage of the recipe,
    `@STAGE[:SPLIT]`; without data, the newest rows.
    """

    data: tuple[str, ...] = ()
