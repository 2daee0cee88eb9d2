"""A process of its own that runs llama.cpp: renders conversations, and answers them greedily until it stops by itself.

    python llama_cpp_stops.py MODEL.gguf < questions.json > answers.json

questions.json: {"chats": [[{"role", "content"}, ...], ...], "prompts": [[id, ...], ...], "tokens": N}. answers.json:
{"rendered": [text, ...], "answers": [{"ids": [id, ...], "stop": "eos" or "limit"}, ...]}.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from llama_cpp_greedy import serve


def post(server: Any, route: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.listening_address + route, json.dumps(content).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def answered(server: Any, ids: list[int], tokens: int) -> dict[str, Any]:
    asked = {
        "prompt": ids,
        "n_predict": tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "return_tokens": True,
        "cache_prompt": False,
    }
    done = post(server, "/completion", asked)
    return {"ids": done["tokens"], "stop": done["stop_type"]}


def main() -> None:
    asked = json.load(sys.stdin)
    longest = max(map(len, asked["prompts"])) + asked["tokens"]
    server = serve(Path(sys.argv[1]), -(-longest // 256) * 256)
    rendered = [post(server, "/apply-template", {"messages": chat})["prompt"] for chat in asked["chats"]]
    answers = [answered(server, ids, asked["tokens"]) for ids in asked["prompts"]]
    sys.stdout.write(json.dumps({"rendered": rendered, "answers": answers}))


if __name__ == "__main__":
    main()
