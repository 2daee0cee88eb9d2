"""The metadata of a GGUF file as the fields of a Hugging Face `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ojak.errors import InputRefused
from ojak.model.gguf_validate import Header

# GGUF architecture -> (Hugging Face model_type, class name)
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
GEMMA = ("gemma2", "gemma3")
MAX_LAYERS = 1024
# The 27B models scale attention by hidden_size / heads instead of the size of a head; GGUF does not say so, llama.cpp
# knows them by their number of layers.
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
# (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings) of the Llama 3.1 and 3.2 models.
LLAMA3_SCALINGS = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))


def is_gemma(header: Header) -> bool:
    """Whether the file holds a Gemma model, whose norms and layer names differ."""
    return header.metadata.get("general.architecture") in GEMMA


def hf_config(header: Header, rope_factors: Sequence[float] | None) -> dict[str, Any]:
    """The `config.json` of the model; rope_factors: the content of `rope_freqs.weight` if the file has one.

    Raises InputRefused for an architecture or a setting that the decoder does not have.
    """
    fields = _Fields(header)
    model_type, class_name = ARCHITECTURES[fields.architecture]
    heads, hidden = fields.count("attention.head_count"), fields.count("embedding_length")
    head_dim = fields.count("attention.key_length", hidden // heads)
    rotated = fields.count("rope.dimension_count", head_dim)
    if fields.count("attention.value_length", head_dim) != head_dim or rotated != head_dim:
        _refuse("its keys, values and rotated dimensions differ in size")
    config = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": fields.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "intermediate_size": fields.count("feed_forward_length"),
        "num_hidden_layers": fields.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.count("context_length"),
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.real("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields),
        "attention_bias": fields.has("blk.0.attn_q.bias"),
        "tie_word_embeddings": not fields.has("output.weight"),
    }
    config |= _gemma(fields, config) if fields.architecture in GEMMA else _llama(fields, config)
    if rope_factors is not None:
        config["rope_scaling"] = _llama3_scaling(config, rope_factors)
    return config | _token_ids(header.metadata)


def _refuse(why: str) -> NoReturn:
    raise InputRefused(
        "this GGUF file holds a model that cannot be used", why=why,
        fix=f"architectures that can be used: {', '.join(ARCHITECTURES)}",
    )  # fmt: skip


class _Fields:
    """The metadata of one architecture, read with a type and within bounds."""

    def __init__(self, header: Header) -> None:
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            _refuse(f"its architecture is {str(architecture)[:40]!r}")
        self.architecture = architecture
        self.metadata = header.metadata
        self.shapes = {tensor.name: tensor.shape for tensor in header.tensors}
        if self.get("expert_count") or self.metadata.get("split.count", 1) not in (0, 1):
            _refuse("it is a mixture of experts, or one part of a split file")

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer; a list of equal ones (one per layer) counts as one."""
        value = self.get(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            _refuse(f"{self.architecture}.{key} is {str(value)[:80]}, not one positive number for all layers")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number, as the shortest decimal that gives the same float32 (1e-05, not 9.99999975e-06)."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e38:
            _refuse(f"{self.architecture}.{key} is {str(value)[:80]}, not a positive number")
        return float(str(np.float32(value)))

    def has(self, tensor: str) -> bool:
        return tensor in self.shapes

    def shape(self, tensor: str) -> tuple[int, ...]:
        if tensor not in self.shapes:
            _refuse(f"it has no tensor {tensor}")
        return self.shapes[tensor]

    def layers(self) -> int:
        layers = self.count("block_count")
        if layers > MAX_LAYERS or not self.has(f"blk.{layers - 1}.attn_q.weight"):
            _refuse(f"it announces {layers} layers but has not the weights of so many")
        return layers


def _rope_scaling(fields: _Fields) -> dict[str, Any] | None:
    kind = fields.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind != "linear":
        _refuse(f"its positions are scaled by {str(kind)[:40]!r}; 'linear' and Llama 3's way are supported")
    factor = fields.real("rope.scaling.factor", 1.0)
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _llama(fields: _Fields, config: dict[str, Any]) -> dict[str, Any]:
    window = fields.get("attention.sliding_window")
    if fields.architecture == "llama" and window:
        name = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        return {**name, "hidden_act": "silu", "sliding_window": fields.count("attention.sliding_window")}
    return {"hidden_act": "silu"}


def _gemma(fields: _Fields, config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma has more. The soft caps, the local RoPE base and the pattern of layers are constants in llama.cpp."""
    layers, architecture = config["num_hidden_layers"], fields.architecture
    is_27b = layers == LAYERS_OF_27B[architecture]
    scalar = config["hidden_size"] // config["num_attention_heads"] if is_27b else config["head_dim"]
    pattern = 2 if architecture == "gemma2" else fields.count("attention.sliding_window_pattern", 6)
    kinds = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)]
    more: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": fields.count("attention.sliding_window"),
        "layer_types": kinds,
    }
    if architecture == "gemma3":
        more["rope_local_base_freq"] = fields.real("rope.freq_base_swa", 10000.0)
        more["sliding_window_pattern"] = pattern
    for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        given = architecture == "gemma2" or fields.get(name)
        more[name] = fields.real(name, default) if given else None
    return more


def _llama3_scaling(config: dict[str, Any], factors: Sequence[float]) -> dict[str, Any]:
    """The settings whose frequency divisors are those stored in `rope_freqs.weight`.

    The formula is `transformers`' rope type "llama3": long waves are divided by `factor`, short ones stay, and those
    between are blended.
    """
    for factor, low, high, length in LLAMA3_SCALINGS:
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        scaling["original_max_position_embeddings"] = length
        expected = llama3_divisors(config["rope_theta"], config["head_dim"], scaling)
        if len(expected) == len(factors) and np.allclose(expected, factors, rtol=1e-3):
            return scaling
    _refuse("its rope_freqs.weight is not that of Llama 3.1 or 3.2")


def llama3_divisors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """What `rope_freqs.weight` holds: the divisor of each frequency, (head_dim / 2)."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling["factor"] + blend)


def _token_ids(metadata: dict[str, Any]) -> dict[str, int]:
    roles = {"bos": "bos", "eos": "eos", "padding": "pad"}
    found = {f"{hf}_token_id": metadata.get(f"tokenizer.ggml.{role}_token_id") for role, hf in roles.items()}
    return {name: value for name, value in found.items() if isinstance(value, int)}
