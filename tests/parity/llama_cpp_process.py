"""llama.cpp in a process of its own: `python llama_cpp_process.py MODEL ASKED ANSWERED` continues texts greedily.

ASKED is a JSON file {"prompts": [text, ...], "count": tokens}; ANSWERED gets, for each prompt, its ids, the text and
the ids that llama.cpp goes on with, and for each of those the log-probabilities of the two likeliest tokens.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xllamacpp.xllamacpp as xllamacpp

CONTEXT = 1024  # tokens of one text, prompt and completion


def server_of(path: Path, slots: int) -> xllamacpp.Server:
    """A server that keeps everything in float32: by default its key-value cache is float16."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = CONTEXT * slots, slots, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    return xllamacpp.Server(params)


def post(server: xllamacpp.Server, route: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.listening_address + route, json.dumps(content).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def continued(server: xllamacpp.Server, prompt: str, count: int) -> dict[str, Any]:
    asked = {"content": prompt, "add_special": True, "parse_special": True}
    ids = post(server, "/tokenize", asked)["tokens"]
    # A temperature below 0 takes the largest logit and still reports probabilities.
    greedy = {"temperature": -1.0, "n_predict": count, "n_probs": 2, "cache_prompt": False, "return_tokens": True}
    answer = post(server, "/completion", {"prompt": prompt, **greedy})
    likeliest = [step["top_logprobs"] for step in answer["completion_probabilities"]]
    return {
        "prompt_ids": ids,
        "prompt_tokens": answer["tokens_evaluated"],
        "text": answer["content"],
        "ids": answer["tokens"],
        "gaps": [top[0]["logprob"] - top[1]["logprob"] for top in likeliest],
    }


def main(model: str, asked: str, answered: str) -> None:
    content = json.loads(Path(asked).read_text("utf-8"))
    prompts = content["prompts"]
    server = server_of(Path(model), len(prompts))
    with ThreadPoolExecutor(len(prompts)) as pool:
        done = list(pool.map(lambda prompt: continued(server, prompt, content["count"]), prompts))
    Path(answered).write_text(json.dumps(done), "utf-8")
    sys.stdout.flush()
    os._exit(0)  # what the server does on its way out is of no interest, and may wait for ever


if __name__ == "__main__":
    main(*sys.argv[1:])
