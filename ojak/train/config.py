"""The settings of a training run: what shapes the trained weights, and what only says where they go."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ojak._settings import Settings
from ojak.model.lora_config import LoraConfig
from ojak.train.distil_config import DistilConfig
from ojak.train.prefer_config import LR as PREFER_LR
from ojak.train.prefer_config import PreferConfig
from ojak.train.reinforce_config import LR as REINFORCE_LR
from ojak.train.reinforce_config import ReinforceConfig

Dtype = Literal["bfloat16", "float32"]
ObjectiveName = Literal["pretrain", "finetune", "distil", "prefer", "reinforce"]
Reads = Literal["pretrain", "finetune", "prefer", "reinforce"]
BLOCKS = ("distil", "prefer", "reinforce")  # objectives with settings of their own, under their name
HELD_OUT = r"^[a-z][a-z0-9_]{0,39}$"  # the name of further held-out rows
ADAPTER_LR = 2e-4  # ten times that of all weights (Schulman et al. 2025, "LoRA Without Regret")


class OptimizerConfig(Settings):
    """AdamW (arXiv 1711.05101), or Muon on the matrices of the layers and AdamW on the rest.

    `state_dtype` is that of AdamW's two moments and of Muon's momentum; the float32 master weights stay. In bfloat16
    they are rounded to the nearest value: the second moment then no longer follows a falling gradient closely.
    Matrices decay by lr * weight_decay a step; vectors (norms, biases) do not decay. `muon_lr` is the step of Muon's
    matrices, whose updates have the same size whatever the gradient's; it follows the schedule as `lr` does.
    """

    name: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0, le=1e-2)
    state_dtype: Dtype = "float32"
    muon_lr: float = Field(default=0.02, gt=0, le=1)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)

    @field_validator("betas")
    @classmethod
    def _betas_are_shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas


class ScheduleConfig(Settings):
    """The learning rate over the run's steps, as a factor on `lr`.

    It rises over the first `warmup` of all steps (a share below 1, or a number of steps), and falls to `final` of its
    height: as a cosine, in a line, with "wsd" in a line over the last `decay` of all steps (arXiv 2404.06395), or not.
    """

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0)
    final: float = Field(default=0.1, ge=0, le=1)
    decay: float = Field(default=0.2, gt=0, le=1)


class EvaluateConfig(Settings):
    """Loss on the validation rows every so many steps (0: at the end only), over at most so many batches.

    probe: a file of facts (`ojak.judge.facts`) that the model is asked for at the same steps, and before the first one.
    more: further held-out rows by name, such as general text during training on a field's; each is logged as
    `val_loss_<name>` at the same steps, and before the first one. Sources as in `val_data`.
    """

    every_steps: int = Field(default=0, ge=0)
    batches: int = Field(default=50, ge=1)
    probe: str | None = Field(default=None, min_length=1)
    more: dict[Annotated[str, Field(pattern=HELD_OUT)], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict
    )


class CheckpointConfig(Settings):
    """A checkpoint every so many steps (0: only where a signal stops the run), of which the last `keep` are kept."""

    every_steps: int = Field(default=500, ge=0)
    keep: int = Field(default=2, ge=1)


class TrainConfig(Settings):
    """Settings of `train`.

    The run ends after `epochs` (one, if `max_tokens` is not given either), or once `max_tokens` tokens were read.
    A step learns from `batch` rows, or packed sequences of up to `max_len` tokens with `packing`, over all processes,
    `micro_batch` of them at a time. `dtype` "bfloat16" multiplies in bfloat16 and keeps float32 master weights;
    "float32" does all in float32.
    `clip` bounds the norm of the whole gradient (0: no bound); `z_loss` is the factor on log(Z)^2 (arXiv 2204.02311).
    `long_rows`: what becomes of a row of more than `max_len` tokens: its beginning, pieces, or nothing (none: pieces
    for texts, the beginning for conversations).
    `max_rows`: learn from so many of the rows, drawn by the seed, so that data of several sizes can be compared (none:
    all).
    `mask_roles` are the roles whose turns are read but not learnt. `peak_flops`: operations a second of which the log
    gives the share that was used (none: measured on a CPU, looked up for a GPU).
    `ema` is the decay of a running mean of the weights, which is saved in their place (0: none).
    `share_prefixes`: documents of a micro-batch that begin alike are multiplied once where they are alike, with the
    same loss and gradients. `padded` takes the plain path: a row of the tensor for each row, padding and all.

    `prefer`, `reinforce`: the settings of that objective, whose `lr` is by default a twentieth of finetuning's.

    `not_shaping`: what does not change the weights: a run may be resumed with other values of these.
    """

    not_shaping: ClassVar[frozenset[str]] = frozenset(
        {
            "out",
            "resume",
            "track",
            "accept_license",
            "checkpoint",
            "evaluate",
            "val_data",
            "device",
            "peak_flops",
        }
    )

    objective: ObjectiveName = "finetune"
    model: str = Field(min_length=1)
    data: tuple[str, ...] = Field(min_length=1)
    out: Path
    max_tokens: int | None = Field(default=None, ge=1)
    max_rows: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0, le=10_000)
    lr: float = Field(default=2e-5, gt=0, le=10)
    batch: int = Field(default=8, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    max_len: int = Field(default=1024, ge=2)
    long_rows: Literal["truncate", "split", "drop"] | None = None
    style: str | None = Field(default=None, min_length=1)
    mask_roles: tuple[str, ...] = ("system", "user")
    packing: bool = False
    padded: bool = False
    share_prefixes: bool = True
    val_data: str | None = Field(default=None, min_length=1)
    val_share: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    dtype: Dtype = "bfloat16"
    device: str | None = Field(default=None, min_length=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: float = Field(default=0.0, ge=0, lt=1)
    gradient_checkpointing: bool = False
    clip: float = Field(default=1.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0, le=1)
    peak_flops: float | None = Field(default=None, gt=0)
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    lora: LoraConfig | None = None
    distil: DistilConfig | None = None
    prefer: PreferConfig | None = None
    reinforce: ReinforceConfig | None = None
    track: tuple[str, ...] = ()
    resume: Literal["if_possible", "always", "never"] = "if_possible"
    accept_license: tuple[str, ...] = ()

    @field_validator("out", mode="before")
    @classmethod
    def _out_is_named(cls, out: object) -> object:
        if out == "":  # for Path it would be the current folder
            raise ValueError("an empty path; the current folder is '.'")
        return out

    @model_validator(mode="before")
    @classmethod
    def _adapters_learn_faster(cls, values: Any) -> Any:
        """Without an `lr` of one's own, an adapter has another one than all weights, some objectives lower ones."""
        if not isinstance(values, dict):
            return values
        adapter = values.get("lora") is not None
        for name, rate in (("prefer", PREFER_LR), ("reinforce", REINFORCE_LR)):
            if values.get("objective") == name:
                return {"lr": rate * (10 if adapter else 1), **values}
        return {"lr": ADAPTER_LR, **values} if adapter else values

    @model_validator(mode="after")
    def _pairs_and_prompts_are_whole(self) -> Self:
        """Pairs and prompts are not asked for what is not theirs, which would otherwise do nothing, unsaid."""
        if self.objective not in ("prefer", "reinforce"):
            return self
        if self.objective == "prefer" and self.packing:
            raise ValueError("pairs are not packed: a step is a number of pairs")
        if self.long_rows == "split":
            raise ValueError("pairs and prompts are not split: a piece would have lost its beginning")
        if self.mask_roles != type(self).model_fields["mask_roles"].default:
            raise ValueError("of pairs and prompts the answers are learnt, whatever mask_roles says")
        if self.z_loss:
            raise ValueError("z_loss is for cross-entropy alone")
        return self

    @field_validator("micro_batch")
    @classmethod
    def _micro_batches_fill_a_batch(cls, size: int | None, info: ValidationInfo) -> int | None:
        batch = info.data.get("batch")  # missing where it is wrong itself
        if size is not None and batch is not None and size > batch:
            raise ValueError(f"it is more than the batch of {batch}")
        return size

    @model_validator(mode="after")
    def _objective_has_its_settings(self) -> Self:
        for name in BLOCKS:
            given = getattr(self, name) is not None
            if given != (self.objective == name):
                other = f"is for the objective {name!r}, this one is {self.objective!r}"
                raise ValueError(f"{name} {other if given else 'is missing'}")
        return self

    @property
    def reads(self) -> Reads:
        """How rows are read and measured: as texts of which all is learnt, as conversations, as pairs, as prompts."""
        if self.objective == "distil":
            return "pretrain" if self.distil and self.distil.texts else "finetune"
        return self.objective

    @property
    def held_out(self) -> tuple[str | None, ...]:
        """The sources of rows that are measured on and not learnt from."""
        return (self.val_data, *self.evaluate.more.values())

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the trained weights, as JSON values; what other objectives have is not there."""
        others = {name for name in BLOCKS if name != self.objective}
        return self.model_dump(mode="json", exclude=set(self.not_shaping) | others)

    @property
    def sha256(self) -> str:
        """The hash of `shaping()`: checkpoints carry it, and a run resumes from its own only."""
        return hashlib.sha256(orjson.dumps(self.shaping(), option=orjson.OPT_SORT_KEYS)).hexdigest()
