"""A GGUF file as a `Source`: names and fields become those of Hugging Face, weights become what `transformers` has.

Three things differ between the formats besides names: llama.cpp stores the query and key rows of the llama family
in another order (its RoPE turns neighbouring pairs, Hugging Face's turns the two halves of a head), it stores Gemma's
norm weights as 1 + w, and it leaves out fields that are constants in its code (`_gemma` has them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ojak.errors import InputRefused
from ojak.model import gguf_config, gguf_tokenizer
from ojak.model.files import cached_sha256
from ojak.model.gguf_dequantize import PLAIN, READABLE, dequantize
from ojak.model.gguf_validate import Header, TensorInfo, validate
from ojak.model.source import Source

__all__ = ["Header", "read", "validate"]

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_LAYER = {**LAYER, "ffn_norm": "post_attention_layernorm"}
GEMMA_LAYER = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"
LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.([a-z_]+)\.(weight|bias)", re.ASCII)
TOP_NAME = re.compile(r"([a-z_]+)\.(weight|bias)", re.ASCII)


def read(path: Path | str) -> Source:
    """Read a GGUF file: its header is checked and mapped now, its weights when `tensors()` is called.

    Raises InputRefused for a malformed file and for an architecture, tensor type or tokenizer that is not supported.
    """
    path = Path(path)
    header = validate(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = _names(header)
    _check_types(header)
    factors = _load(path, tensors[ROPE_FACTORS]) if ROPE_FACTORS in tensors else None
    config = gguf_config.hf_config(header, None if factors is None else factors.double().tolist())
    tokenizer = gguf_tokenizer.build(header.metadata)
    if tokenizer.vocab_size != config["vocab_size"]:
        _refuse(f"{tokenizer.vocab_size} tokens but {config['vocab_size']} rows of embeddings")
    template, license_name = (
        header.metadata.get(key) for key in ("tokenizer.chat_template", "general.license")
    )
    return Source(
        name=str(header.metadata.get("general.name") or path.stem),
        path=path,
        config=config,
        tensors=lambda: _tensors(path, header, names, config),
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        stop_ids=gguf_tokenizer.stop_ids(header.metadata, tokenizer),
        sha256=cached_sha256(path),
        quantization=_quantization(header),
        license=license_name if isinstance(license_name, str) else None,
    )


def _refuse(
    why: str, fix: str = "use another conversion of the model, or its Hugging Face folder"
) -> NoReturn:
    raise InputRefused("this GGUF file cannot be used", why=why, fix=fix)


def _names(header: Header) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name, for all tensors of the file."""
    layer_table = GEMMA_LAYER if gguf_config.is_gemma(header) else LLAMA_LAYER
    names: dict[str, str] = {}
    for tensor in header.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        in_layer, on_top = LAYER_NAME.fullmatch(tensor.name), TOP_NAME.fullmatch(tensor.name)
        if in_layer and in_layer[2] in layer_table:
            names[tensor.name] = f"model.layers.{in_layer[1]}.{layer_table[in_layer[2]]}.{in_layer[3]}"
        elif on_top and on_top[1] in TOP:
            names[tensor.name] = f"{TOP[on_top[1]]}.{on_top[2]}"
        else:
            _refuse(f"the tensor {tensor.name!r} has no place in a model of this architecture")
    return names


def _check_types(header: Header) -> None:
    for tensor in header.tensors:
        if tensor.type not in READABLE:
            _refuse(
                f"the tensor {tensor.name!r} is quantised as {tensor.type}; read are {', '.join(READABLE)}",
                fix="use a file in one of these types (Q4_K_M, Q8_0 and F16 files are)",
            )


def _quantization(header: Header) -> str | None:
    """The quantised type that most weights have."""
    weights: dict[str, int] = {}
    for tensor in header.tensors:
        if tensor.type not in PLAIN:
            weights[tensor.type] = (
                weights.get(tensor.type, 0) + tensor.nbytes // tensor.block[1] * tensor.block[0]
            )
    return max(weights, key=lambda kind: weights[kind], default=None)


def _tensors(
    path: Path, header: Header, names: dict[str, str], config: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    gemma, permuted = gguf_config.is_gemma(header), config["model_type"] in ("llama", "mistral")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for info in header.tensors:
        if info.name not in names:
            continue
        name, tensor = names[info.name], _load(path, info)
        if gemma and name.endswith("norm.weight"):
            tensor = tensor.float() - 1.0
        projection = name.split(".")[-2]
        if permuted and projection in heads:
            tensor = _halves_from_pairs(tensor, heads[projection])
        yield name, tensor


def _halves_from_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of query and key rows: in a head, (pair, 2) back to (2, pair). Shape (heads * D, ...)."""
    if rows.shape[0] % (2 * heads):
        _refuse(f"{rows.shape[0]} rows cannot be divided among {heads} heads")
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _load(path: Path, info: TensorInfo) -> torch.Tensor:
    raw = np.fromfile(path, np.uint8, count=info.nbytes, offset=info.offset)
    if raw.size != info.nbytes:
        _refuse(f"the file ends inside the tensor {info.name!r}")
    return dequantize(torch.from_numpy(raw), info.type, info.block, info.shape)
