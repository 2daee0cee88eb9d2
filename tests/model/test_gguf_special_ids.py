"""Ids of special tokens in GGUF files: those of no token are refused, and what stands for "none" is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_gguf as g

from ojak.errors import InputRefused
from ojak.model import gguf
from ojak.model.gguf_tokenizer import build, stop_ids


def changed(role: str, value: Any, *extra: str) -> dict[str, Any]:
    return {**g.byte_vocabulary(extra), f"tokenizer.ggml.{role}_token_id": value}


@pytest.mark.parametrize("role", ["eos", "eot", "eom", "bos"])
@pytest.mark.parametrize("value", [10**6, -2, True, "</s>", 2**40])
def test_the_id_of_no_token_is_refused(role: str, value: Any) -> None:
    vocabulary = changed(role, value)
    with pytest.raises(InputRefused, match=rf"(?s){role}_token_id is .*none of its \d+ tokens.*fix"):
        stop_ids(vocabulary, build(vocabulary))


@pytest.mark.parametrize("value", [-1, 2**32 - 1])
def test_what_stands_for_none_is_none(value: int) -> None:
    vocabulary = changed("eos", value)
    built = build(vocabulary)
    assert built.eos_id is None
    assert stop_ids(vocabulary, built) == (built.special_tokens["<|endoftext|>"],), "a name used for that"


def test_a_file_with_an_odd_end_is_refused_whole(tmp_path: Path) -> None:
    path = g.model_for(tmp_path / "m.gguf", changed("eos", 99_999))
    with pytest.raises(InputRefused, match="tokenizer of this GGUF file"):
        gguf.read(path)
