"""A model that has learnt nothing: a tokenizer of one's own text and a configuration, for training from nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from ojak._files import remove
from ojak._progress import silent
from ojak._settings import Settings
from ojak.artifact import Artifact, publish
from ojak.errors import PartialResult
from ojak.model import checkpoint
from ojak.model.config import config_from_hf
from ojak.model.decoder import Decoder
from ojak.model.tokenizer import Tokenizer
from ojak.train.tokenizer import train_tokenizer

MODEL = "model"  # the folder of the model within that of the result


class ScratchConfig(Settings):
    """The sizes of a Llama, by the names of Hugging Face's configuration; the defaults have 5 million parameters.

    vocab_size: of the tokenizer, at most: a small text gives fewer. Input and output share their embeddings.
    """

    vocab_size: int = Field(default=4096, ge=259, le=1 << 20)
    hidden_size: int = Field(default=256, ge=8, le=16_384)
    intermediate_size: int = Field(default=704, ge=8, le=65_536)
    num_hidden_layers: int = Field(default=5, ge=1, le=256)
    num_attention_heads: int = Field(default=4, ge=1, le=256)
    num_key_value_heads: int = Field(default=4, ge=1, le=256)
    max_position_embeddings: int = Field(default=1024, ge=8, le=1 << 20)

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchConfig:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError("hidden_size must be an even multiple of num_attention_heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self


def make_scratch(
    source: Path | str, out: Path | str, config: ScratchConfig, *, notify: Callable[[str], None] = silent
) -> Artifact:
    """Trains a tokenizer on the texts of `source`, and writes it with a configuration to OUT/model.

    `out` becomes an artifact without rows (kind "scratch") that says how many parameters there are. Raises what
    `train_tokenizer` does.
    """
    folder = Path(out) / MODEL
    if not (Path(out) / "manifest.json").exists():
        remove(folder)  # of a run that was killed
    try:
        size = train_tokenizer([Path(source)], vocab_size=config.vocab_size, out=folder).vocab_size
    except PartialResult as error:  # a small text; the folder is there
        notify(error.what)
        size = Tokenizer.from_folder(folder, {}).vocab_size
    fields = llama_fields(config, size)
    checkpoint.write_json(folder / "config.json", fields)
    with torch.device("meta"):
        decoder = Decoder(config_from_hf(fields))
    count = sum(weight.numel() for weight in decoder.parameters())
    return publish(
        Path(out), kind="scratch", records=[], config=config.model_dump(mode="json"), inputs=[source],
        stats={"parameters": count, "vocab_size": size},
    )  # fmt: skip


def llama_fields(config: ScratchConfig, vocab_size: int) -> dict[str, Any]:
    """The contents of a config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config.model_dump(mode="json"),
        "vocab_size": vocab_size,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }
