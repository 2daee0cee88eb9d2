"""Small GGUF files for tests: written with the `gguf` package, or byte by byte where the file must be wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

Tensors = Mapping[str, tuple[np.ndarray, str]]


def kind_of(value: Any) -> GGUFValueType:
    """The type a value gets in these files: 32-bit numbers, as converters write them."""
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
    return kinds.get(type(value), GGUFValueType.STRING)


def write(path: Path, metadata: Mapping[str, Any], tensors: Tensors) -> Path:
    """Write a GGUF file. tensors: name -> (float array of the Hugging Face shape, type name)."""
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind_of(value))
    for name, (array, kind) in tensors.items():
        qtype = GGMLQuantizationType[kind]
        data = gguf.quants.quantize(array.astype(np.float32), qtype)
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_vocabulary(
    extra: Sequence[str] = (),
    *,
    pre: str = "gpt-2",
    merges: Sequence[str] = ("h e", "he l"),
    whole: Sequence[str] = (),
) -> dict[str, Any]:
    """Tokenizer keys of a byte-level BPE: the 256 bytes, what `merges` join, tokens that no merge makes (`whole`),
    an end token and `extra` control tokens."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    normal = [*letters, *(merge.replace(" ", "") for merge in merges), *whole]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*normal, "<|endoftext|>", *extra],
        "tokenizer.ggml.token_type": [1] * len(normal) + [3] * (1 + len(extra)),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.eos_token_id": len(normal),
        "tokenizer.ggml.bos_token_id": len(normal),
        "tokenizer.ggml.add_bos_token": False,
    }


def decoder_keys(
    arch: str, *, layers: int = 2, hidden: int = 64, heads: int = 4, kv: int = 2, **more: Any
) -> dict[str, Any]:
    """The metadata of a small decoder; `more` holds further keys of the architecture, dots written as `__`."""
    keys: dict[str, Any] = {
        "block_count": layers,
        "context_length": 128,
        "embedding_length": hidden,
        "feed_forward_length": 96,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    keys |= {name.replace("__", "."): value for name, value in more.items()}
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}


def sentencepiece_vocabulary(pieces: Sequence[str], *, prefix: bool) -> dict[str, Any]:
    """Tokenizer keys of a SentencePiece BPE: 3 control tokens, 256 bytes, `pieces` best first, one user-defined."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "[U]"]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))] + [-1000.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [4],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def model_for(path: Path, vocabulary: Mapping[str, Any]) -> Path:
    """A one-layer model around a vocabulary, small but whole: llama.cpp loads it."""
    shapes = {"attn_norm": [32], "ffn_norm": [32], "attn_q": [32, 32], "attn_k": [32, 32], "attn_v": [32, 32],
              "attn_output": [32, 32], "ffn_gate": [96, 32], "ffn_up": [96, 32], "ffn_down": [32, 96]}  # fmt: skip
    tensors = {f"blk.0.{name}.weight": (np.full(shape, 0.01), "F32") for name, shape in shapes.items()}
    rows = len(vocabulary["tokenizer.ggml.tokens"])
    tensors |= {
        "token_embd.weight": (np.full([rows, 32], 0.01), "Q8_0"),
        "output_norm.weight": (np.ones(32), "F32"),
    }
    return write(path, decoder_keys("llama", layers=1, hidden=32, heads=1, kv=1) | dict(vocabulary), tensors)


def string(text: str | bytes) -> bytes:
    """A GGUF string: its length in 8 bytes, then its bytes."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def header(tensors: int, keys: int, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    """The first 24 bytes of a file."""
    return magic + struct.pack("<IQQ", version, tensors, keys)


def tensor_entry(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """One entry of the tensor table; `dims` in the order of the file, innermost first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
