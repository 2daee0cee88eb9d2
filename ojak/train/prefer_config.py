"""The settings of preference training: which loss, and its constants."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ojak._settings import Settings

PreferLoss = Literal["dpo", "ipo", "simpo", "rpo"]

LR = 1e-6  # of all weights; an adapter's is ten times that. These losses have no floor to rest on
BETAS = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "rpo": 0.1}  # as published


class PreferConfig(Settings):
    """What is learnt from a prompt x with a better answer w and a worse one l.

    With s = log p(answer | x) under the model, and s less its value under the reference (the model as the run began, an
    adapter's base) as r, d = r_w - r_l:

        dpo    -log sigmoid(beta d)                               (arXiv 2305.18290, equation 7)
        ipo    (d - 1 / (2 beta))^2                               (arXiv 2310.12036, equation 17)
        simpo  -log sigmoid(beta (s_w / |w| - s_l / |l|) - gamma) (arXiv 2405.14734, equation 6), without a reference
        rpo    KL(sigmoid(eta g) || sigmoid(beta d)), g the difference of the two answers' scores (arXiv 2406.11704,
               equation 2); for a pair without scores, or with eta none, dpo

    beta: none for 0.1, of simpo 2. gamma: simpo's margin. label_smoothing: the share of pairs taken to be the wrong
    way round (dpo, simpo, and pairs of rpo without scores). eta: the unit of the scores. nll: how much of the better
    answer's -s_w / |w| is added (arXiv 2404.19733, equation 2); none for 1 of rpo, 0 of the others. per_token: s and r
    divided by the answer's tokens; none for simpo alone.
    """

    loss: PreferLoss = "dpo"
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gamma: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    eta: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    nll: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    per_token: bool | None = None

    @model_validator(mode="after")
    def _the_loss_reads_it(self) -> Self:
        """A constant that the loss has no place for would do nothing, unsaid."""
        elsewhere = {
            "gamma": self.loss != "simpo",
            "eta": self.loss != "rpo",
            "label_smoothing": self.loss == "ipo",
        }
        for name, unread in elsewhere.items():
            if unread and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"the loss {self.loss} has no {name}")
        return self

    @property
    def scale(self) -> float:
        """`beta`, its default filled in."""
        return self.beta or BETAS[self.loss]

    @property
    def nll_weight(self) -> float:
        """`nll`, its default filled in."""
        return (1.0 if self.loss == "rpo" else 0.0) if self.nll is None else self.nll

    @property
    def by_length(self) -> bool:
        """`per_token`, its default filled in."""
        return self.loss == "simpo" if self.per_token is None else self.per_token

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at what the model was as the run began."""
        return self.loss != "simpo"
