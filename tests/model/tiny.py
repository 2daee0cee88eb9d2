"""Random decoders of a few thousand parameters, one for each family, and a byte tokenizer to go with them."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch

from ojak.model.config import config_from_hf
from ojak.model.decoder import Decoder
from ojak.model.load import Model
from ojak.model.tokenizer import Tokenizer

BOS, EOS = 256, 257
VOCAB = 264

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_theta": 500.0},
    "mistral": {"model_type": "mistral", "sliding_window": 12},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_sliding": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 9,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 10,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 100000.0,
        "rope_local_base_freq": 100.0,
    },
}


def hf_config(family: str, **changes: Any) -> dict[str, Any]:
    """The contents of a config.json."""
    return {**COMMON, **FAMILIES[family], **changes}


def decoder(
    family: str, *, dtype: torch.dtype = torch.float32, scale: float = 0.4, seed: int = 0, **changes: Any
) -> Decoder:
    """A decoder with random weights; `scale` large enough that tokens differ and caps are reached."""
    return randomised(Decoder(config_from_hf(hf_config(family, **changes))), scale, seed).to(dtype)


def randomised(made: Decoder, scale: float, seed: int = 0) -> Decoder:
    """Sets all weights by the seed: norms around what changes nothing, the rest around 0."""
    made.eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, generator=random) * scale
        neutral = 1 - made.config.norm_offset if "norm" in name else 0.0
        parameter.copy_(neutral + noise * (0.3 if parameter.ndim == 1 else 1.0))
    return made


def tokenizer(*, adds_bos: bool = True) -> Tokenizer:
    """One token a byte, then a BOS and an EOS; ids from 258 on stand for nothing."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in letters)}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[misc]
    backend.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[misc]
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return Tokenizer(backend, bos_id=BOS, eos_id=EOS, adds_bos=adds_bos)


def model(family: str = "llama", *, adds_bos: bool = True, **options: Any) -> Model:
    """A whole model around `decoder`."""
    made = decoder(family, **options)
    return Model(
        name="tiny",
        config=made.config,
        tokenizer=tokenizer(adds_bos=adds_bos),
        decoder=made,
        chat_template=None,
        stop_ids=(EOS,),
        sha256="0" * 64,
        quantization=None,
        license=None,
    )
