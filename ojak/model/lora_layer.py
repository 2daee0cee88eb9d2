"""A linear layer with a low-rank update beside its frozen weight, and how the two become one.

The base weights are never changed. OLoRA and PiSSA, which are usually made by subtracting from the base what the
adapter begins with, subtract it in the adapter instead: s (B A - B0 A0) = s [B, -B0] [A; A0]. So what is trained is
what is saved, a plain LoRA of rank 2r that belongs to the model as it was published, in whatever precision that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ojak.errors import UsageError, VerificationFailed
from ojak.model.decoder import Decoder, Linear

PROBE_TOKENS = 16
MERGE_TOLERANCE = 1e-4  # of the largest logit; the sums of float32 products differ by a tenth of this


class LoraLinear(Linear):
    """A linear layer with a low-rank update: x W^T + s x A^T B^T + b. Its `weight` and `bias` are the base layer's.

    `lora_A` (r, in) and `lora_B` (out, r) are float32 in any model, and take the dtype of x in a product; so is
    `lora_magnitude_vector` (out), the lengths of DoRA's rows. `start_A`, `start_B`: what is subtracted, if anything.
    """

    resting = False  # as if there were no adapter, see `without_adapters`
    lora_magnitude_vector: nn.Parameter | None
    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        a_RI: Tensor,
        b_OR: Tensor,
        *,
        scaling: float,
        dropout: float = 0.0,
        subtract_start: bool = False,
        magnitude_O: Tensor | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scaling, self.dropout = scaling, dropout
        self.lora_A, self.lora_B = nn.Parameter(a_RI), nn.Parameter(b_OR)
        self.lora_magnitude_vector = None if magnitude_O is None else nn.Parameter(magnitude_O)
        self.register_buffer("start_A", a_RI.clone() if subtract_start else None, persistent=False)
        self.register_buffer("start_B", b_OR.clone() if subtract_start else None, persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (R, in) and B (out, R) with W + s B A as the weight; R is 2r where a start is subtracted."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)

    def forward(self, input: Tensor) -> Tensor:
        if self.resting:
            return F.linear(input, self.weight, self.bias)
        x, (a_RI, b_OR) = input, self.factors()
        into = F.dropout(x, self.dropout, self.training) if self.dropout else x
        update = F.linear(F.linear(into, a_RI.type_as(x)), (b_OR * self.scaling).type_as(x))
        if self.lora_magnitude_vector is None:
            return F.linear(x, self.weight, self.bias) + update
        share_O = self.lora_magnitude_vector / self._row_lengths(a_RI, b_OR)
        out = (F.linear(x, self.weight) + update) * share_O.type_as(x)
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def _row_lengths(self, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        """The lengths of the rows of W + s B A, a constant to the gradient (DoRA, section 4.3).

        |w + u|^2 = |w|^2 + 2 w.u + |u|^2, so that no second matrix of W's size is made.
        """
        square_O = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float32) ** 2
        cross_OR = (self.weight @ a_RI.T.type_as(self.weight)).float()
        own_OR = b_OR @ (a_RI @ a_RI.T)
        return (
            (
                square_O
                + 2 * self.scaling * (cross_OR * b_OR).sum(1)
                + self.scaling**2 * (own_OR * b_OR).sum(1)
            )
            .clamp_min(0)
            .sqrt()
        )

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight that does the same alone, float32."""
        a_RI, b_OR = self.factors()
        weight_OI = self.weight.float() + self.scaling * (b_OR.float() @ a_RI.float())
        if self.lora_magnitude_vector is None:
            return weight_OI
        lengths_O = torch.linalg.vector_norm(weight_OI, dim=1)
        return weight_OI * (self.lora_magnitude_vector.float() / lengths_O)[:, None]


def lora_layers(decoder: Decoder) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with an adapter, by name."""
    return ((name, module) for name, module in decoder.named_modules() if isinstance(module, LoraLinear))


@contextmanager
def without_adapters(decoder: Decoder) -> Iterator[None]:
    """Inside, the decoder does what its base does, whatever its adapters have learnt."""
    layers = [layer for _, layer in lora_layers(decoder)]
    for layer in layers:
        layer.resting = True
    try:
        yield
    finally:
        for layer in layers:
            layer.resting = False


@torch.no_grad()
def fold(decoder: Decoder) -> None:
    """Merges every adapter into its layer's weight, in float32; the decoder must be float32, and is plain afterwards.

    Raises VerificationFailed if the logits of a probe then differ by more than rounding.
    """
    if decoder.model.embed_tokens.weight.dtype != torch.float32:
        raise UsageError("adapters are merged in float32", fix="load the base model as float32")
    before = _probe(decoder)
    for name, layer in list(lora_layers(decoder)):
        plain = Linear(layer.in_features, layer.out_features, device="meta", bias=False)
        plain.weight = nn.Parameter(layer.merged(), requires_grad=False)
        plain.bias = layer.bias
        set_module(decoder, name, plain)
    worst, largest = float((_probe(decoder) - before).abs().max()), float(before.abs().max())
    if not worst <= MERGE_TOLERANCE * max(1.0, largest):
        raise VerificationFailed(
            "the merged model does not write what the model with its adapter does",
            why=f"logits of up to {largest:.3g} differ by {worst:.3g}",
            fix="use the adapter beside its base model, and report this",
        )


def set_module(decoder: Decoder, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the layer of this name."""
    parent, _, own = name.rpartition(".")
    setattr(decoder.get_submodule(parent), own, module)


def _probe(decoder: Decoder) -> Tensor:
    """Logits for tokens from all over the vocabulary."""
    weight = decoder.model.embed_tokens.weight
    ids = torch.linspace(0, len(weight) - 1, PROBE_TOKENS, device=weight.device).long()
    return decoder(ids[None])
