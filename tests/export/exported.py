"""Tiny models of every family with a tokenizer that was trained for them, in folders."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny

from ojak.model.load import Model
from ojak.model.tokenizer import Tokenizer
from ojak.train.tokenizer import train_tokenizer

VOCAB = 320
TEXT = "the crow builds a bridge; the magpie builds another. In 1985 they met 7 times: 한국의 까치와 까마귀. "
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What llama.cpp has as constants.
FITTING: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3": {"layer_types": ["sliding_attention"] * 2},
}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")


@functools.cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "d.jsonl"
        source.write_text('{"text": "' + TEXT * 9 + '"}\n', "utf-8")
        train_tokenizer([source], vocab_size=VOCAB, out=Path(folder) / "t")
        return Tokenizer.from_folder(Path(folder) / "t", {})


def model(family: str = "llama", *, template: str | None = CHATML, **changes: Any) -> Model:
    """Its rows are more than its tokens, and its end of text is not that of a turn, as in many models."""
    settings = {"vocab_size": VOCAB + 8, "scale": 0.2, **FITTING.get(family, {}), **changes}
    made = tokenizer()
    assert made.eos_id is not None
    base = tiny.model(family, **settings)
    return replace(base, tokenizer=made, chat_template=template, stop_ids=(made.eos_id,))
