"""A model as a GGUF file that llama.cpp runs: the way back of gguf.py, through the `gguf` library.

Much of what a `config.json` says is a constant in llama.cpp. So what was written is read again as gguf.py reads it, and
a file that would say something else than the model does is refused, naming the field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from ojak._files import commit_new, staged, target_exists
from ojak.errors import InputRefused, VerificationFailed
from ojak.model import gguf_config, gguf_tokenizer, gguf_write_tokenizer
from ojak.model.config import config_from_hf
from ojak.model.decoder import DecoderConfig
from ojak.model.gguf import GEMMA_LAYER, LLAMA_LAYER, ROPE_FACTORS, TOP
from ojak.model.gguf_validate import validate

if TYPE_CHECKING:
    import gguf

    from ojak.model.load import Model

WeightType = Literal["F32", "F16", "BF16", "Q8_0"]
LARGEST_F16 = 65504.0
Q8_BLOCK = 32
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
# Of a model: what a GGUF file cannot say, or says in other words.
NOT_COMPARED = ("extra", "model_type", "sliding_window")


def write_gguf(path: Path | str, model: Model, kind: WeightType, *, stop_ids: tuple[int, ...]) -> Path:
    """Writes the model with its matrices as `kind` (vectors stay float32), its tokenizer, its template and its stops.

    Of `kind` Q8_0, a matrix whose rows are no multiple of 32 long is F16. `stop_ids` must end a text in llama.cpp.
    Raises TargetExists, InputRefused for a model, a tokenizer or stops that the format cannot hold.
    """
    path = Path(path)
    if path.exists():
        raise target_exists(path)
    with staged(path) as temporary:
        _write(temporary, model, kind, stop_ids)
        _check(temporary, model, stop_ids)
        commit_new(temporary, path)
    return path


def _refuse(why: str, fix: str = "export it as a Hugging Face folder (--format hf)") -> NoReturn:
    raise InputRefused("this model cannot be a GGUF file", why=why, fix=fix)


def _write(path: Path, model: Model, kind: WeightType, stop_ids: tuple[int, ...]) -> None:
    import gguf

    architecture = ARCHITECTURES.get(model.config.model_type, model.config.model_type)
    keys = {**_metadata(model, kind), **gguf_write_tokenizer.metadata(model, stop_ids)}
    tensors = dict(_tensors(model))
    with closing(gguf.GGUFWriter(path, architecture)) as writer:
        for key, value in keys.items():
            _add(writer, key, value)
        for name, tensor in tensors.items():
            shape, dtype, size, qtype = _layout(tensor, kind)
            writer.add_tensor_info(name, shape, dtype, size, raw_dtype=qtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(_encoded(name, tensor, kind))


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key with the type that converters give it: 32-bit numbers."""
    from gguf import GGUFValueType

    if isinstance(value, list):
        writer.add_array(key, value)
        return
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
    writer.add_key_value(key, value, kinds.get(type(value), GGUFValueType.STRING))


# ------------------------------------------------------------------------------------------------------- metadata


def _metadata(model: Model, kind: WeightType) -> dict[str, Any]:
    import gguf

    config = model.config
    prefix = ARCHITECTURES.get(config.model_type, config.model_type)
    file_types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    general = {
        "general.name": model.name,
        "general.file_type": int(gguf.LlamaFileType[file_types[kind]]),
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
    }
    if model.license:
        general["general.license"] = model.license
    return {**general, **{f"{prefix}.{key}": value for key, value in _shape(config).items()}}


def _shape(config: DecoderConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.sliding_window and (config.norm_offset or "sliding_attention" in config.layer_types):
        found["attention.sliding_window"] = config.sliding_window
    if config.rope_local_base_freq is not None:
        found["rope.freq_base_swa"] = float(config.rope_local_base_freq)
    if config.attn_logit_softcapping is not None:
        found["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    scaling = config.rope_scaling
    if scaling and scaling["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    return found


# -------------------------------------------------------------------------------------------------------- weights


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """All weights under GGUF's names and as llama.cpp wants them: Gemma's norms as 1 + w, turned pairs side by side."""
    config = model.config
    gemma, paired = bool(config.norm_offset), config.model_type in ("llama", "mistral")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.decoder.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        projection = name.split(".")[-2]
        if gemma and name.endswith("norm.weight"):
            tensor = tensor.float() + config.norm_offset
        elif paired and projection in heads:
            tensor = _pairs_from_halves(tensor, heads[projection])
        yield _name(name, gemma), tensor
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        divisors = gguf_config.llama3_divisors(config.rope_theta, config.head_dim, config.rope_scaling)
        yield ROPE_FACTORS, torch.from_numpy(divisors.astype(np.float32))


def _name(name: str, gemma: bool) -> str:
    parts, _, kind = name.rpartition(".")
    tables = {hf: short for short, hf in TOP.items()}
    if parts in tables:
        return f"{tables[parts]}.{kind}"
    inner = {hf: short for short, hf in (GEMMA_LAYER if gemma else LLAMA_LAYER).items()}
    _, _, layer, own = parts.split(".", 3)
    return f"blk.{layer}.{inner[own]}.{kind}"


def _pairs_from_halves(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of query and key rows: in a head, (2, pair) to (pair, 2). Shape (heads * E, ...)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _type_of(tensor: Tensor, kind: WeightType) -> WeightType:
    if tensor.ndim == 1:
        return "F32"
    return "F16" if kind == "Q8_0" and tensor.shape[-1] % Q8_BLOCK else kind


def _layout(tensor: Tensor, kind: WeightType) -> tuple[tuple[int, ...], np.dtype, int, Any]:
    """(shape as the library wants it, dtype, bytes, type) of a tensor that `_encoded` will give."""
    import gguf

    qtype = gguf.GGMLQuantizationType[_type_of(tensor, kind)]
    block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    size = tensor.numel() // block * block_bytes
    plain = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
    if qtype.name in plain:
        return tuple(tensor.shape), plain[qtype.name], size, qtype
    return gguf.quant_shape_to_byte_shape(tuple(tensor.shape), qtype), np.dtype(np.uint8), size, qtype


def _encoded(name: str, tensor: Tensor, kind: WeightType) -> np.ndarray:
    import gguf

    own = _type_of(tensor, kind)
    values = tensor.detach().cpu().float().contiguous().numpy()
    if own == "F16" and float(np.abs(values).max(initial=0.0)) > LARGEST_F16:
        _refuse(f"{name} has values beyond {LARGEST_F16:,.0f}, which F16 cannot hold", "use --type bf16")
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[own])


# ----------------------------------------------------------------------------------------------------------- check


def _check(path: Path, model: Model, stop_ids: tuple[int, ...]) -> None:
    """Reads what was written. Raises InputRefused for a model that the format tells otherwise."""
    header = validate(path)
    factors = None
    if (scaling := model.config.rope_scaling) and scaling["rope_type"] == "llama3":
        factors = gguf_config.llama3_divisors(
            model.config.rope_theta, model.config.head_dim, scaling
        ).tolist()
    read = config_from_hf(gguf_config.hf_config(header, factors))
    for name, wanted in asdict(model.config).items():
        if name not in NOT_COMPARED and not _same(wanted, getattr(read, name)):
            _refuse(f"its {name} is {wanted!r}; in llama.cpp it would be {getattr(read, name)!r}")
    window = model.config.sliding_window or 0
    if "sliding_attention" in read.layer_types and read.sliding_window != window:
        _refuse(f"its sliding_window is {window}")
    if model.config.model_type == "mistral" and window and window < model.config.max_position_embeddings:
        _refuse(
            f"its layers see {window} tokens of {read.max_position_embeddings}; in llama.cpp they would see all"
        )
    tokenizer = gguf_tokenizer.build(header.metadata)
    gguf_write_tokenizer.check(model.tokenizer, tokenizer, model.config.vocab_size)
    missing = set(stop_ids) - set(gguf_tokenizer.stop_ids(header.metadata, tokenizer))
    if missing or header.metadata.get("tokenizer.chat_template") != model.chat_template:
        raise VerificationFailed(
            "the GGUF file does not end a text as the model does", why=f"missing stops: {sorted(missing)}"
        )


def _same(one: Any, other: Any) -> bool:
    """Equal, floats as far as 32 bits tell them apart."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, list | tuple):
        return list(one) == list(other)
    return one == other
