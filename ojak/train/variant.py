"""One model of a grid: its switches, the configuration that they give, its parameters and its operations.

The names are those of Hugging Face's configurations; the defaults are a small Gemma 2 (arXiv 2408.00118, table 1).
A variant is saved as the family that can say all of it: gemma2, llama, or else "ojak" (`ojak.model.config`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ojak._settings import Settings

if TYPE_CHECKING:
    from ojak.model.decoder import DecoderConfig

FULL, LOCAL = "full_attention", "sliding_attention"
GELU = "gelu_pytorch_tanh"
WIDTH_STEP = 8  # the widths that `same_parameters` tries
INITIALIZER_RANGE = 0.02
BACKWARD = 3  # forward and backward cost three times the forward operations (arXiv 2001.08361, section 2.1)


class VariantConfig(Settings):
    """The switches of one model.

    vocab_size: of its tokenizer. local_layers: so many layers that see `sliding_window` tokens come before each that
    sees all (0: all see all; Gemma 2: 1, Gemma 3: 5). head_dim: none is hidden_size / num_attention_heads.
    attn_logit_softcapping, final_logit_softcapping: none, or the cap. norms: before the sub-layers ("pre"), after them
    ("post"), or both ("sandwich"). same_parameters: hidden_size and intermediate_size are chosen anew, in the
    proportion that they have, so that there are as many parameters as the base model has.
    """

    vocab_size: int = Field(default=2048, ge=259, le=1 << 20)
    hidden_size: int = Field(default=192, ge=8, le=16_384)
    intermediate_size: int = Field(default=512, ge=8, le=65_536)
    num_hidden_layers: int = Field(default=6, ge=1, le=256)
    num_attention_heads: int = Field(default=4, ge=1, le=256)
    num_key_value_heads: int = Field(default=2, ge=1, le=256)
    head_dim: int | None = Field(default=None, ge=2, le=4096, multiple_of=2)
    max_position_embeddings: int = Field(default=1024, ge=8, le=1 << 20)
    rope_theta: float = Field(default=10_000.0, gt=0, le=1e9)
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = GELU
    sliding_window: int = Field(default=128, ge=1, le=1 << 20)
    local_layers: int = Field(default=1, ge=0, le=64)
    attn_logit_softcapping: float | None = Field(default=50.0, gt=0, le=1e9)
    final_logit_softcapping: float | None = Field(default=30.0, gt=0, le=1e9)
    norms: Literal["pre", "post", "sandwich"] = "sandwich"
    qk_norm: bool = False
    scale_embeddings: bool = True
    tie_word_embeddings: bool = True
    same_parameters: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> VariantConfig:
        if self.head_dim is None and self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                "hidden_size must be an even multiple of num_attention_heads, or head_dim be given"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self

    @property
    def layer_types(self) -> tuple[str, ...]:
        """Of each layer, the local ones first."""
        period = self.local_layers + 1
        return tuple(LOCAL if (i + 1) % period else FULL for i in range(self.num_hidden_layers))

    @property
    def family(self) -> str:
        """The type of model that can say all of it."""
        capped = self.attn_logit_softcapping is not None or self.final_logit_softcapping is not None
        is_gemma = (self.norms, self.hidden_act, self.scale_embeddings) == ("sandwich", GELU, True)
        if is_gemma and not self.qk_norm:
            return "gemma2"
        plain = self.norms == "pre" and not (self.qk_norm or self.scale_embeddings or capped)
        return "llama" if plain and not self.local_layers else "ojak"


def decoder_config(config: VariantConfig, vocab_size: int | None = None) -> DecoderConfig:
    """What the switches say. vocab_size: that of the tokenizer that was made, where it is another one."""
    from ojak.model.decoder import DecoderConfig

    family = config.family
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    taken = set(VariantConfig.model_fields) & set(DecoderConfig.__dataclass_fields__)
    values: dict[str, Any] = {name: getattr(config, name) for name in taken}
    return DecoderConfig(
        **values
        | {
            "model_type": family,
            "vocab_size": vocab_size or config.vocab_size,
            "head_dim": head_dim,
            "layer_types": config.layer_types,
            "sliding_window": config.sliding_window if config.local_layers or family == "gemma2" else None,
            "query_pre_attn_scalar": None if family == "llama" else head_dim,
            # w or 1 + w is the same function, and begins at the same one.
            "norm_offset": 0.0 if family == "llama" else 1.0,
            "pre_norms": config.norms != "post",
            "sandwich_norms": config.norms != "pre",
            "extra": {"initializer_range": INITIALIZER_RANGE},
        }
    )


def hf_fields(config: VariantConfig, vocab_size: int | None = None) -> dict[str, Any]:
    """The contents of the config.json."""
    from ojak.model.config import config_to_hf

    return config_to_hf(decoder_config(config, vocab_size))


def parameter_count(config: DecoderConfig) -> int:
    """All weights, tied ones once."""
    D, E, H, K = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
    norms = 2 * (config.pre_norms + config.sandwich_norms) * D + 2 * E * config.qk_norm
    layer = 2 * D * E * (H + K) + 3 * D * config.intermediate_size + norms
    embeddings = config.vocab_size * D * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + embeddings + D


def flops_per_token(config: DecoderConfig, length: int) -> float:
    """Floating point operations that training spends on a token of a text of `length` tokens.

    Two for each weight that it is multiplied with, those of the output layer among them, and four for each place that
    it sees and each element of a head; times three for the way back. Those are the operations of the mathematics: what
    a kernel computes of places that a mask then hides is not counted.
    """
    D, E, H, K = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
    weights = config.num_hidden_layers * (2 * D * E * (H + K) + 3 * D * config.intermediate_size)
    weights += config.vocab_size * D
    seen = sum(places_seen(length, config.window(i)) for i in range(config.num_hidden_layers))
    return BACKWARD * (2 * weights + 4 * H * E * seen)


def places_seen(length: int, window: int | None) -> float:
    """How many places a token of a text of `length` sees on average, itself among them."""
    reach = min(length, window or length)
    return (reach * (reach + 1) / 2 + (length - reach) * reach) / length


def resized(config: VariantConfig, parameters: int) -> VariantConfig:
    """`config` with the width that makes it have the nearest to `parameters`; its heads stay as they are.

    First the hidden size in steps of 8, with the feed-forward part in the same proportion, then the latter alone.
    """
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    shape = config.intermediate_size / config.hidden_size

    def count(hidden: int, inner: int) -> int:
        sized = replace(decoder, hidden_size=hidden, intermediate_size=inner)
        return parameter_count(sized)

    fixed = config.model_copy(update={"head_dim": head_dim})
    decoder = decoder_config(fixed)
    widths = range(WIDTH_STEP, 16_384 + 1, WIDTH_STEP)
    hidden = min(widths, key=lambda width: abs(count(width, max(8, round(width * shape))) - parameters))
    step = 3 * hidden * config.num_hidden_layers  # parameters of one more unit of the feed-forward part
    inner = max(8, round(hidden * shape) + round((parameters - count(hidden, round(hidden * shape))) / step))
    return fixed.model_copy(update={"hidden_size": hidden, "intermediate_size": inner})
