"""llama.cpp as an oracle: its server inside this process, asked over its local address."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp.xllamacpp as xllamacpp


class LlamaCpp:
    """One model in llama.cpp. `tokenize` and `next_token` are what the tests compare with."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)
        self._complete([0], 1)  # a server that is closed before its main loop runs waits for ever

    def _post(self, route: str, content: dict[str, Any]) -> dict[str, Any]:
        url = self.server.listening_address + route
        request = urllib.request.Request(
            url, json.dumps(content).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The ids of a text without BOS; special: control tokens in it count as such."""
        return self._post("/tokenize", {"content": text, "add_special": False, "parse_special": special})[
            "tokens"
        ]

    def next_token(self, ids: list[int], count: int) -> dict[int, float]:
        """The log-probabilities of the `count` likeliest next tokens; the likeliest must be text, and end nothing."""
        answer = self._complete(ids, count)["completion_probabilities"][0]
        return {entry["id"]: entry["logprob"] for entry in answer["top_logprobs"]}

    def _complete(self, ids: list[int], count: int) -> dict[str, Any]:
        asked = {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": -1.0, "cache_prompt": False}
        return self._post("/completion", asked)
