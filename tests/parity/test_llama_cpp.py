"""Greedy text of ojak in float32 against llama.cpp's on the same weights, for both real models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

import ojak
from ojak.chat import encode_prompt
from ojak.errors import EngineUnavailable
from ojak.model import hub

TOKENS = 64
PROCESS = Path(__file__).with_name("llama_cpp_process.py")
NEAR_TIE = 1e-3  # a gap in log-probability that float32 sums of another order may turn round
LONG = "".join(f"In year {year} the old harbour sent out {year % 37 + 3} ships. " for year in range(1801, 1836))
PROMPTS = {
    "smollm2-135m-instruct": [
        "The capital of France is",
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
        "def fibonacci(n):\n    ",
        "Once upon a time, in a village by the sea, there lived",
        "한국의 수도는",
    ],
    "gemma-3-270m": [
        "The capital of France is",
        "Once upon a time, in a village by the sea, there lived",
        "<bos>Water boils at",
        "def fibonacci(n):\n    ",
        LONG,
    ],
}


def source_file(name: str) -> Path:
    try:
        return hub.find(name, accept_license=["gemma"])
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")


def widen(source: Path, target: Path) -> None:
    """The same model in float32: llama.cpp multiplies quantised weights by quantised activations."""
    reader = gguf.GGUFReader(source)
    fields = reader.fields
    writer = gguf.GGUFWriter(target, fields["general.architecture"].contents())
    for key, field in fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(source: Path, folder: Path, prompts: Sequence[str]) -> list[dict[str, Any]]:
    wide, asked, answered = folder / "wide.gguf", folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps({"prompts": prompts, "count": TOKENS}), "utf-8")
    try:
        widen(source, wide)
        command = [sys.executable, str(PROCESS), str(wide), str(asked), str(answered)]
        ran = subprocess.run(command, capture_output=True, timeout=200, env=os.environ, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:].decode(errors="replace")
    finally:
        wide.unlink(missing_ok=True)  # a gigabyte
    return json.loads(answered.read_text("utf-8"))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_text_equals_llama_cpp(name: str, tmp_path: Path) -> None:
    source, prompts = source_file(name), PROMPTS[name]
    theirs = llama_cpp(source, tmp_path, prompts)
    model = ojak.load_model(name, dtype="float32", device="cpu", accept_license=["gemma"])
    ours = ojak.generate(model, prompts, max_tokens=TOKENS)
    for prompt, our, their in zip(prompts, ours, theirs, strict=True):
        assert encode_prompt(model.tokenizer, prompt) == their["prompt_ids"]
        assert our.prompt_tokens == their["prompt_tokens"] == len(their["prompt_ids"])
        written = [token for token in our.token_ids if token not in model.stop_ids]
        # Without a near-tie no difference is excused; a prompt that comes near one is to be replaced.
        assert min(their["gaps"]) > NEAR_TIE, prompt
        assert written == [token for token in their["ids"] if token not in model.stop_ids]
        assert our.text == their["text"]
    if model.config.sliding_window:
        assert max(len(their["prompt_ids"]) for their in theirs) > model.config.sliding_window
