"""Linear layers made ready for generation: products that share an input are joined, weights laid out for the CPU.

On a CPU with bf16 instructions, PyTorch lays a weight out anew at each call; doing it once makes a product of 256 rows
about a tenth faster and one of 32 rows twice as fast. The layout is oneDNN's own, reached through the operators that
torch.compile uses; where they are missing or do not agree with the plain product, plain products stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ojak.model.decoder import MLP, Decoder, Layer
from ojak.model.memory import available_bytes, keep_freed_memory

LAYOUT_ROWS = 256  # the number of rows that the layout is chosen for


class JoinedLinear(nn.Module):
    """Several linear layers of one input as one product; their outputs lie side by side in its own."""

    def __init__(self, layers: Sequence[nn.Module], *, laid_out: bool) -> None:
        super().__init__()
        weights = [layer.get_parameter("weight").detach() for layer in layers]
        biases = [bias.detach() for layer in layers if isinstance(bias := layer.bias, Tensor)]
        self.bias = torch.cat(biases) if biases else None
        weight = torch.cat(weights)
        self.matrix = lay_out(weight) if laid_out else weight
        self.laid_out = laid_out

    def forward(self, x: Tensor) -> Tensor:
        if not self.laid_out:
            return F.linear(x, self.matrix, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")


class SingleLinear(JoinedLinear):
    """One linear layer, laid out. It keeps the layer's parameters under their names, so the decoder can be saved."""

    def __init__(self, layer: nn.Module, *, laid_out: bool) -> None:
        super().__init__([layer], laid_out=laid_out)
        self.weight, self.bias = layer.weight, layer.bias


class GatedUp(nn.Module):
    """act(gate(x)) * up(x); nothing larger than one of the two is made on the way."""

    def __init__(self, mlp: MLP, *, laid_out: bool) -> None:
        super().__init__()
        self.silu = mlp.silu
        self.gate, self.up = (
            JoinedLinear([part], laid_out=laid_out) for part in (mlp.gate_proj, mlp.up_proj)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        gate = F.silu(gate, inplace=True) if self.silu else F.gelu(gate, approximate="tanh")
        return gate.mul_(self.up(x))


def lay_out(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), LAYOUT_ROWS)


def can_lay_out(decoder: Decoder) -> bool:
    """Whether laid-out products exist here for this model's weights and agree with plain ones."""
    weight = decoder.get_parameter("model.layers.0.mlp.gate_proj.weight").detach()
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.bfloat16
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    x = torch.ones(4, weight.shape[1], dtype=weight.dtype)
    try:
        got = torch.ops.mkldnn._linear_pointwise(x, lay_out(weight), None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(torch.allclose(got.float(), F.linear(x, weight).float(), rtol=0.02, atol=0.02))


def weight_bytes(decoder: Decoder) -> int:
    """Bytes that `fuse` adds: a second copy of every linear weight."""
    return sum(p.numel() * p.element_size() for name, p in decoder.named_parameters() if "norm" not in name)


def is_fused(decoder: Decoder) -> bool:
    """Whether a decoder was made ready for generation."""
    return any(
        layer.self_attn.fused_qkv is not None for layer in decoder.model.layers if isinstance(layer, Layer)
    )


def ready(decoder: Decoder) -> None:
    """Lays the weights out for fast products, if memory allows; once."""
    keep_freed_memory()
    if 2 * weight_bytes(decoder) < available_bytes(decoder.model.embed_tokens.weight.device):
        fuse(decoder)


@torch.inference_mode()
def fuse(decoder: Decoder, *, again: bool = False) -> None:
    """Makes a decoder ready for generation. Its parameters stay as they are; changing them later has no effect.

    Does nothing to a decoder that is ready already, unless `again`: its parameters have changed since.
    """
    if is_fused(decoder) and not again:
        return
    laid_out = can_lay_out(decoder)
    for layer in decoder.model.layers:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        attention.fused_qkv = JoinedLinear(qkv, laid_out=laid_out)
        mlp.fused_gate_up = GatedUp(mlp, laid_out=laid_out)
        if laid_out:
            attention.o_proj = SingleLinear(attention.o_proj, laid_out=True)
            mlp.down_proj = SingleLinear(mlp.down_proj, laid_out=True)
    if laid_out:
        decoder.lm_head = SingleLinear(decoder.lm_head, laid_out=True)
