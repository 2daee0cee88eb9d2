"""`config.json` to DecoderConfig and back: Hugging Face's names, each family's defaults filled in.

A decoder whose parts no family of Hugging Face puts together is of the type "ojak": its config.json says in so many
words what a family leaves unsaid, and other programs refuse it by its type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ojak.errors import InputRefused
from ojak.model.decoder import LIMITS, DecoderConfig

GEMMA = ("gemma2", "gemma3_text")
QWEN = ("qwen2", "qwen3")
OWN = "ojak"
MODEL_TYPES = ("llama", "mistral", *QWEN, *GEMMA, OWN)
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    OWN: "OjakForCausalLM",
}
# What a family decides, and a config.json of the type "ojak" says.
BY_FAMILY = (
    "qk_norm", "norm_offset", "pre_norms", "sandwich_norms", "scale_embeddings", "attention_output_bias",
)  # fmt: skip

# What transformers assumes where a config.json lacks the field; a field that is there and null stays unset.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4096},
    "gemma2": {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
}
ROPE_SCALING = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def config_from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """Reads the contents of a `config.json`. Raises InputRefused for a family or a value that is not supported."""
    inner = config.get("text_config") or config
    config = dict(inner) if isinstance(inner, Mapping) else {}
    model_type = "gemma3_text" if config.get("model_type") == "gemma3" else config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputRefused(
            f"model type {str(model_type)[:80]!r} is not supported",
            why=f"supported are {', '.join(MODEL_TYPES)}",
        )
    try:
        values = _values(model_type, config)
        return DecoderConfig(model_type=model_type, **values)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputRefused(
            "this model's config.json cannot be used", why=f"{type(error).__name__}: {error}"
        ) from error


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this model, which transformers and vLLM read."""
    own = {"extra", "layer_types", *(BY_FAMILY if config.model_type != OWN else ())}
    values = {name: value for name, value in asdict(config).items() if name not in own and value is not None}
    values |= {name: getattr(config, name) for name in DEFAULTS.get(config.model_type, {})}
    values |= {"architectures": [ARCHITECTURES[config.model_type]], **config.extra}
    if config.model_type in (*GEMMA, OWN) or "sliding_attention" in config.layer_types:
        values["layer_types"] = list(config.layer_types)
    if config.model_type in GEMMA:
        values["hidden_activation"] = values.pop("hidden_act")
    if config.model_type == "qwen2":
        values.pop("attention_bias")
    if config.model_type in QWEN:
        values["use_sliding_window"] = "sliding_attention" in config.layer_types
    return values


def _values(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of DecoderConfig from the fields of a config.json, with the family's defaults filled in."""
    config = {**DEFAULTS.get(model_type, {}), **config}
    names = {f.name for f in fields(DecoderConfig)} - {"model_type", "extra", "layer_types"}
    values = {name: config[name] for name in names if config.get(name) is not None}
    values |= _rope(config)
    gemma = model_type in GEMMA
    values["num_hidden_layers"] = layers = int(config["num_hidden_layers"])
    if layers > LIMITS["num_hidden_layers"]:  # before a list of that length is made
        raise ValueError(f"num_hidden_layers is {layers}")
    heads = int(config["num_attention_heads"])
    values.setdefault("num_key_value_heads", heads)
    values.setdefault("head_dim", 256 if gemma else int(config["hidden_size"]) // heads)
    activation = config.get("hidden_activation") if gemma else config.get("hidden_act")
    values["hidden_act"] = activation or ("gelu_pytorch_tanh" if gemma else "silu")
    values["attention_bias"] = bool(config.get("attention_bias", model_type == "qwen2"))
    values["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", gemma))
    values |= _by_family(model_type, values, config)
    if gemma:
        values.setdefault("query_pre_attn_scalar", 256)
    values["layer_types"] = _layer_types(model_type, config)
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
    values["extra"] = {name: config[name] for name in kept if config.get(name) is not None}
    return values


def _by_family(model_type: str, values: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json leaves to the family; what it says itself where it is of the type "ojak"."""
    if model_type == OWN:
        found = {name: config[name] for name in BY_FAMILY}
        if any(type(found[name]) is not bool for name in BY_FAMILY if name != "norm_offset"):
            raise ValueError("one of " + ", ".join(BY_FAMILY) + " is not true or false")
        if found["norm_offset"] not in (0, 1):
            raise ValueError(f"norm_offset is {found['norm_offset']!r:.80}; it must be 0 or 1")
        return {**found, "norm_offset": float(found["norm_offset"])}
    gemma = model_type in GEMMA
    return {
        "attention_output_bias": values["attention_bias"] and model_type != "qwen2",
        "qk_norm": model_type in ("qwen3", "gemma3_text"),
        "norm_offset": 1.0 if gemma else 0.0,
        "pre_norms": True,
        "sandwich_norms": gemma,
        "scale_embeddings": gemma,
    }


def _layer_types(model_type: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Which layers see a window only: as listed, or by the family's pattern (Gemma 2: 1 to 1; Gemma 3: 5 to 1)."""
    layers = int(config["num_hidden_layers"])
    if model_type in QWEN and not config.get("use_sliding_window"):
        return ("full_attention",) * layers
    if config.get("layer_types"):
        return tuple(str(kind) for kind in config["layer_types"])
    if model_type in GEMMA:
        pattern = 2 if model_type == "gemma2" else int(config.get("sliding_window_pattern", 6))
        kinds = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
        return tuple(kinds)
    global_layers = 0 if model_type == "mistral" and config.get("sliding_window") else layers
    if model_type in QWEN:
        global_layers = int(config.get("max_window_layers", 28))
    return tuple("sliding_attention" if i >= global_layers else "full_attention" for i in range(layers))


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE's base(s) and scaling, from the old fields or from transformers 5's `rope_parameters`."""
    parameters = config.get("rope_parameters") or {}
    local = parameters.get("sliding_attention")
    full = parameters.get("full_attention") or (parameters if "rope_theta" in parameters else {})
    found: dict[str, Any] = {}
    if full:
        found["rope_theta"] = float(full["rope_theta"])
    if local:
        found["rope_local_base_freq"] = float(local["rope_theta"])
    scaling = config.get("rope_scaling") or {k: v for k, v in full.items() if k != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if scaling else "default"
    if kind not in ("default", *ROPE_SCALING):
        raise ValueError(f"rope scaling of type {kind!r} is not supported (default, linear and llama3 are)")
    for name in ROPE_SCALING.get(kind, ()):
        if not 0 < float(scaling[name]) < math.inf:
            raise ValueError(f"rope scaling with {name} = {scaling[name]}")
    found["rope_scaling"] = None if kind == "default" else {**scaling, "rope_type": kind}
    return found
