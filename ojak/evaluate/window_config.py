"""The settings of a window sweep."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ojak._settings import Settings

Tokens = Annotated[int, Field(ge=1, le=1 << 30)]
CONTEXTS = (2048, 4096, 8192, 16384)
WINDOWS = (256, 512, 1024, 2048, 4096)


class WindowConfig(Settings):
    """What a model is read with, and on which text.

    data: documents of any format, or an artifact; they are joined into one text. split: of an artifact. contexts:
    tokens read as one text, each a divisor of the largest. windows: tokens that local layers see, besides the model's
    own and all of the context. tokens: how many of the text are predicted, in every cell the same ones; a multiple of
    the largest context is taken, by default one. softcaps: also measure with the model's soft caps left out. decoded:
    tokens at the end that are fed one at a time, which tells the speed of decoding. seed: of the bootstrap.
    """

    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    split: str | None = Field(default=None, min_length=1)
    contexts: tuple[Tokens, ...] = Field(default=CONTEXTS, min_length=1)
    windows: tuple[Tokens, ...] = WINDOWS
    tokens: Tokens | None = None
    softcaps: bool = False
    decoded: int = Field(default=16, ge=1)
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] | None = None
    accept_license: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        largest = max(self.contexts)
        odd = [each for each in self.contexts if largest % each]
        if odd:
            raise ValueError(
                f"the context {odd[0]} does not divide the largest, {largest}: not all cells would read the same tokens"
            )
        if self.decoded >= min(self.contexts):
            raise ValueError(f"decoded is {self.decoded}; it must be less than the smallest context")
        if self.tokens is not None and self.tokens < largest:
            raise ValueError(f"tokens is {self.tokens}; it must be at least the largest context, {largest}")
        return self
