"""The decoder: configuration to logits in one file, for Llama, Mistral, Qwen 2.5/3, Gemma 2 and Gemma 3 (text).

One class serves all families; what differs is read from the configuration, never from a name. Unusual parts:

- Gemma multiplies embeddings by sqrt(hidden_size) rounded to the activations' dtype, stores norm weights as w and
  applies (1 + w), norms the output of each sub-layer as well, and caps scores and logits by cap * tanh(x / cap).
- Local layers see `sliding_window` tokens; Gemma 3 gives them a RoPE base of their own.
- Attention itself is a function handed to `forward`: full sequences by default (attention.py), the slots of the
  generator's cache while generating (cache.py). So training and generation run the same layers.

Shape letters: B batch, T tokens, D hidden_size, F intermediate_size, H query heads, K key-value heads, G = H / K,
E head_dim, V vocab_size. Parameters carry Hugging Face's names, so `config.json` and `*.safetensors` load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ojak.errors import InputRefused
from ojak.model.attention import CausalAttention, softcap
from ojak.model.gradients import Norm, Rotate, turn

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
LIMITS = {
    "vocab_size": 1 << 21,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "head_dim": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "max_position_embeddings": 1 << 30,
}
# Real numbers and the largest sensible value of each; all are positive, and those that are None are unset.
REALS = {
    "rms_norm_eps": 1.0,
    "rope_theta": 1e15,
    "rope_local_base_freq": 1e15,
    "query_pre_attn_scalar": 1e9,
    "attn_logit_softcapping": 1e9,
    "final_logit_softcapping": 1e9,
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What shapes a decoder. Every field that Hugging Face has carries its name there.

    `layer_types` says "full_attention" or "sliding_attention" for each layer; `norm_offset` is 1.0 where the norm
    weight is stored as w and applied as (1 + w) (Gemma); `sandwich_norms` where norms follow the sub-layers, too.
    `pre_norms` is false where they only follow them (arXiv 2501.00656, section 3.2).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_local_base_freq: float | None = None
    rope_scaling: Mapping[str, Any] | None = None
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    pre_norms: bool = True
    sandwich_norms: bool = False
    scale_embeddings: bool = False
    tie_word_embeddings: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise InputRefused("this model's configuration cannot be used", why=problem)

    def _problem(self) -> str:
        """What is wrong with the values, or an empty string."""
        for name, limit in LIMITS.items():
            if type(getattr(self, name)) is not int or not 0 < getattr(self, name) <= limit:
                return (
                    f"{name} is {getattr(self, name)!r:.80}; it must be a whole number between 1 and {limit}"
                )
        for name, limit in REALS.items():
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 < value <= limit):
                return f"{name} is {value!r:.80}; it must be a number above 0 and up to {limit:g}"
        if self.sliding_window is not None and not (
            type(self.sliding_window) is int and self.sliding_window <= 1 << 30
        ):
            return f"sliding_window is {self.sliding_window!r:.80}; it must be a whole number"
        if self.num_attention_heads % self.num_key_value_heads:
            return f"{self.num_attention_heads} query heads over {self.num_key_value_heads} key-value heads"
        if self.head_dim < 2 or self.head_dim % 2:
            return f"head_dim is {self.head_dim}; it must be even"
        if self.hidden_act not in ACTIVATIONS:
            return f"hidden_act is {self.hidden_act!r}; known are {', '.join(ACTIVATIONS)}"
        if len(self.layer_types) != self.num_hidden_layers:
            return f"{len(self.layer_types)} layer types for {self.num_hidden_layers} layers"
        if not self.pre_norms and not self.sandwich_norms:
            return "layers without any norm"
        unknown = set(self.layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            return f"layers of type {min(unknown)[:80]!r}; known are full_attention and sliding_attention"
        if "sliding_attention" in self.layer_types and (self.sliding_window or 0) < 1:
            return "sliding layers without a sliding_window"
        return ""

    @property
    def attention_scale(self) -> float:
        """The factor on attention scores: query_pre_attn_scalar^-0.5, or head_dim^-0.5 where it is unset."""
        return float(self.query_pre_attn_scalar or self.head_dim) ** -0.5

    def window(self, layer: int) -> int | None:
        """The attention window of a layer in tokens, None for a global layer."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    def rope_base(self, layer: int) -> float:
        """The RoPE base of a layer: Gemma 3's local layers have one of their own."""
        local = self.layer_types[layer] == "sliding_attention" and self.rope_local_base_freq
        return float(self.rope_local_base_freq or 0) if local else self.rope_theta


class Attend(Protocol):
    """Attention over whatever context the caller keeps: queries, keys and values of the new tokens in, outputs out."""

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor: ...


class Linear(nn.Linear):
    """nn.Linear; on the meta device, where weights are put in from a file, it draws none (which would load sympy)."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    """nn.Embedding, likewise."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight), in float32, rounded once at the end."""

    def __init__(self, width: int, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return Norm.apply(x, self.weight, self.eps, self.offset)  # pyright: ignore[reportReturnType]
        if not self.offset:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float() + self.offset, self.eps).type_as(x)


class Attention(nn.Module):
    """Grouped-query attention with RoPE; queries and keys are normed per head in Qwen 3 and Gemma 3."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        D, E, bias = config.hidden_size, config.head_dim, config.attention_bias
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim, self.widths = layer, E, (H * E, K * E, K * E)
        self.q_proj = Linear(D, H * E, bias=bias)
        self.k_proj = Linear(D, K * E, bias=bias)
        self.v_proj = Linear(D, K * E, bias=bias)
        self.o_proj: nn.Module = Linear(H * E, D, bias=config.attention_output_bias)
        self.fused_qkv: nn.Module | None = None  # one product for all three, set by fuse.py for generation
        norm = RMSNorm if config.qk_norm else None
        self.q_norm = norm(E, config.rms_norm_eps, config.norm_offset) if norm else nn.Identity()
        self.k_norm = norm(E, config.rms_norm_eps, config.norm_offset) if norm else nn.Identity()

    def forward(self, x_BTD: Tensor, cos_sin_BT1E: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        B, T, _ = x_BTD.shape
        if self.fused_qkv is not None:
            q, k, v = self.fused_qkv(x_BTD).split(self.widths, -1)
        else:
            q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        q_BTHE = rotate(self.q_norm(q.view(B, T, -1, self.head_dim)), *cos_sin_BT1E)
        k_BTKE = rotate(self.k_norm(k.view(B, T, -1, self.head_dim)), *cos_sin_BT1E)
        out_BTHE = attend(self.layer, q_BTHE, k_BTKE, v.view(B, T, -1, self.head_dim))
        return self.o_proj(out_BTHE.reshape(B, T, -1))


class MLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(D, inner, bias=False)
        self.up_proj = Linear(D, inner, bias=False)
        self.down_proj: nn.Module = Linear(inner, D, bias=False)
        self.fused_gate_up: nn.Module | None = None  # act(gate(x)) * up(x), set by fuse.py for generation
        self.silu = config.hidden_act == "silu"

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.fused_gate_up is not None:
            return self.down_proj(self.fused_gate_up(x_BTD))
        gate_BTF, up_BTF = self.gate_proj(x_BTD), self.up_proj(x_BTD)
        gate_BTF = F.silu(gate_BTF) if self.silu else F.gelu(gate_BTF, approximate="tanh")
        return self.down_proj(gate_BTF * up_BTF)


class Layer(nn.Module):
    """Attention and feed-forward around the residual stream; norms before, and with `sandwich_norms` after, too.

    Without `pre_norms` those before are missing, and the stream itself goes into the sub-layers.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        D, eps, offset = config.hidden_size, config.rms_norm_eps, config.norm_offset
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        before = config.pre_norms
        self.input_layernorm = RMSNorm(D, eps, offset) if before else nn.Identity()
        self.post_attention_layernorm = RMSNorm(D, eps, offset)
        self.sandwich = config.sandwich_norms
        if self.sandwich:
            self.pre_feedforward_layernorm = RMSNorm(D, eps, offset) if before else nn.Identity()
            self.post_feedforward_layernorm = RMSNorm(D, eps, offset)

    def forward(self, x_BTD: Tensor, cos_sin_BT1E: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        mixed_BTD = self.self_attn(self.input_layernorm(x_BTD), cos_sin_BT1E, attend)
        if not self.sandwich:
            x_BTD = x_BTD + mixed_BTD
            return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        x_BTD = x_BTD + self.post_attention_layernorm(mixed_BTD)
        fed_BTD = self.mlp(self.pre_feedforward_layernorm(x_BTD))
        return x_BTD + self.post_feedforward_layernorm(fed_BTD)


class Trunk(nn.Module):
    """Everything below the logits; the name `model.*` of its parameters is Hugging Face's."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)
        self.recompute = False  # gradient checkpointing: keep each layer's input only, and compute it twice

    def forward(self, ids_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        config = self.config
        x_BTD = self.embed_tokens(ids_BT)
        if config.scale_embeddings:
            x_BTD = x_BTD * torch.tensor(config.hidden_size**0.5, dtype=x_BTD.dtype, device=x_BTD.device)
        bases = {config.rope_base(i) for i in range(config.num_hidden_layers)}
        cos_sin = {base: rope_cos_sin(config, base, positions_BT) for base in bases}
        for i, layer in enumerate(self.layers):
            if self.recompute and torch.is_grad_enabled():
                x_BTD = _recomputed(layer, x_BTD, cos_sin[config.rope_base(i)], attend)
            else:
                x_BTD = layer(x_BTD, cos_sin[config.rope_base(i)], attend)
        return self.norm(x_BTD)


class Decoder(nn.Module):
    """A causal language model: `decoder(ids_BT) -> logits_BTV`.

    `positions_BT` and `attend` are given by the generator; without them the ids are whole sequences from position 0.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head: nn.Module = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        return self.logits(self.hidden(ids_BT, positions_BT, attend))

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """The last hidden states (B, T, D), normed, before the output layer."""
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        return self.model(ids_BT, positions_BT, attend or CausalAttention(self.config, positions_BT))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Hidden states to logits (B, T, V), capped where the family caps them."""
        return softcap(self.lm_head(x_BTD), self.config.final_logit_softcapping)


def _recomputed(
    layer: nn.Module, x_BTD: Tensor, cos_sin_BT1E: tuple[Tensor, Tensor], attend: Attend
) -> Tensor:
    """A layer of which only the input is kept for the backward pass (arXiv 1604.06174)."""
    from torch.utils.checkpoint import checkpoint

    out = checkpoint(layer, x_BTD, cos_sin_BT1E, attend, use_reentrant=False)
    assert isinstance(out, Tensor)
    return out


def rope_cos_sin(config: DecoderConfig, base: float, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32, each (B, T, 1, E/2), of rotary position embedding (arXiv 2104.09864)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions_BT.device)
    frequencies = 1.0 / (base ** (half / config.head_dim))
    if config.rope_scaling and base == config.rope_theta:
        frequencies = scale_frequencies(frequencies, config.rope_scaling)
    angles_BT1E = (positions_BT[..., None].float() * frequencies)[:, :, None]
    return angles_BT1E.cos(), angles_BT1E.sin()


def scale_frequencies(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Longer contexts: "linear" divides all frequencies; "llama3" only the low ones, with a ramp between."""
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequencies / factor
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - ramp) + frequencies * ramp


def rotate(x_BTHE: Tensor, cos_BT1E: Tensor, sin_BT1E: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + E/2}) by its angle; float32 inside."""
    if torch.is_grad_enabled() and x_BTHE.requires_grad:
        return Rotate.apply(x_BTHE, cos_BT1E, sin_BT1E)  # pyright: ignore[reportReturnType]
    return turn(x_BTHE, cos_BT1E, sin_BT1E)
