"""Servers in threads, and clients for them."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openai
import tiny

from ojak.engines.native import NativeEngine, generate
from ojak.model.load import Model
from ojak.serve.served import Served
from ojak.serve.server import Service, bind

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_chat_model(**options: Any) -> Model:
    """Random weights: its texts are noise, half of it no valid UTF-8, which is what streaming has to get right."""
    return replace(tiny.model("llama", adds_bos=False, **options), chat_template=TEMPLATE)


class Running:
    """A service in a thread. `told`: what it notified."""

    def __init__(self, model: Model, *, slots: int = 2, **options: Any) -> None:
        self.told: list[str] = []
        engine = NativeEngine(model, slots=slots)
        self.engine = engine
        self.service = Service(Served(engine), bind(0), notify=self.told.append, **options)
        self.port = self.service.port
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self.service.serve_until_stopped, args=(self._ready.set,))

    def __enter__(self) -> Running:
        self.thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()
        self.thread.join(60)
        assert not self.thread.is_alive(), f"the server does not end:\n{stacks()}"

    def client(self, **options: Any) -> openai.OpenAI:
        settings: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60.0, **options}
        return openai.OpenAI(base_url=self.service.url, **settings)

    def counts(self) -> tuple[int, int]:
        return self.service.worker.queue.counts

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        port: int | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body read as JSON where it is) of a plain request; a dict is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        sent = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, raw, {**sent, **(headers or {})})
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        is_json = reply.headers.get_content_type() == "application/json"
        found = {name.lower(): value for name, value in reply.headers.items()}
        return reply.status, found, json.loads(text) if is_json else text.decode()


def stacks() -> str:
    """Where each thread of this process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(
        f"{names.get(ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames
    )


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def written(model: Model, prompts: list[Any], **settings: Any) -> list[str]:
    """What `ojak.generate` writes: the oracle of what a server must answer."""
    return [done.text for done in generate(model, prompts, **settings)]
