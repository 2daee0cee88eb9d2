"""The stop contract at each boundary: ojak, transformers from the exported folder and llama.cpp from the exported GGUF
file write the same greedy ids for the same conversation, and stop at the same place.

All three have the values of the F16 file; llama.cpp also rounds what goes into its products to F16, so the questions are
those whose likeliest tokens do not hang on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ojak.chat import ChatTemplate, encode_prompt
from ojak.engines.native import NativeEngine
from ojak.errors import EngineUnavailable
from ojak.export.model import export_model
from ojak.model import hub
from ojak.model.load import Model, load_model
from ojak.model.request import Request

NAME = "smollm2-135m-instruct"
TOKENS = 96
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Write one sentence about crows."}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What is the sun?"},
    ],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Name another one."},
    ],
]


def of_ojak(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    engine = NativeEngine(model, slots=4)
    stops = engine.chat_prefix().stop_ids
    requests = [
        Request(prompt=tuple(ids), max_tokens=TOKENS, stop_ids=stops, tag=row)
        for row, ids in enumerate(prompts)
    ]
    longest = max(map(len, prompts)) + TOKENS
    done = {d.request.tag: d for d in engine.generate(iter(requests), longest=longest)}
    return [list(done[row].token_ids) for row in range(len(prompts))]


def of_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """With the folder's own generation_config.json: nobody tells it what to stop at."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for ids in prompts:
        given = torch.tensor([ids])
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        found.append(out[0, len(ids) :].tolist())
    return found


def of_llama_cpp(path: Path, prompts: list[list[int]]) -> dict[str, Any]:
    pytest.importorskip("xllamacpp")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("llama_cpp_stops.py")), str(path)],
        input=json.dumps({"chats": CHATS, "prompts": prompts, "tokens": TOKENS}),
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_three_write_the_same_and_stop(tmp_path: Path) -> None:
    try:
        hub.find(NAME)
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")
    told = export_model(NAME, "gguf", tmp_path / "m.gguf")
    assert (told.kind, set(told.stops)) == ("f16", {"<|im_end|>", "<|endoftext|>"})
    assert export_model(str(tmp_path / "m.gguf"), "hf", tmp_path / "hf").kind == "f16"
    model = load_model(tmp_path / "m.gguf", dtype="float32", device="cpu")
    rendered = ChatTemplate.of(model.chat_template, model.tokenizer).render(CHATS, add_generation_prompt=True)
    prompts = [encode_prompt(model.tokenizer, text) for text in rendered]

    ours = of_ojak(model, prompts)
    ends = {model.tokenizer.special_tokens[text] for text in told.stops}
    assert all(ids[-1] in ends and len(ids) < TOKENS for ids in ours), (
        "the questions should have short answers"
    )
    assert of_transformers(tmp_path / "hf", prompts) == ours
    theirs = of_llama_cpp(tmp_path / "m.gguf", prompts)
    assert theirs["rendered"] == rendered
    for own, other in zip(ours, theirs["answers"], strict=True):
        assert other["stop"] == "eos"
        assert [i for i in other["ids"] if i not in ends] == own[:-1]
