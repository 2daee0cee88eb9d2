"""The settings of low-rank adapters: plain data, no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ojak._settings import Settings

Variant = Literal["lora", "rslora", "dora", "olora", "pissa"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,40}$")]


class LoraConfig(Settings):
    """Which linear layers get a low-rank update W + s B A (LoRA, arXiv 2106.09685), and of what kind.

    `r`: its rank. `alpha`: s = alpha / r. `targets`: names of the layers, such as q_proj, or all within the blocks.
    `dropout`: of what goes into A. `variant`:

    - rslora: s = alpha / sqrt(r) (arXiv 2312.03732);
    - dora: the rows of W + s B A keep a length of their own, which is learnt, too (arXiv 2402.09353);
    - olora, pissa: A and B begin as the first r columns and rows of a QR decomposition (arXiv 2406.01775), or as the
      r largest singular values and vectors (arXiv 2404.02948), of W; what they begin with is subtracted.
    """

    r: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[Name, ...] = "all-linear"
    variant: Variant = "lora"

    @property
    def scaling(self) -> float:
        """The factor s on B A."""
        return self.alpha / (self.r**0.5 if self.variant == "rslora" else self.r)
