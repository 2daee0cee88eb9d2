"""A completion server on loopback that answers like a model, counts every request by its row, and fails on demand."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import tokenizers

from ojak.engines.endpoint_dialects import fold
from ojak.engines.native import row_seed
from ojak.engines.scripted import scripted_text
from ojak.model.request import Request

MODEL = "tiny-chat"
SPECIAL = ("<s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Tag = tuple[int, str]
Fault = Callable[["Handler"], None]


def tokenizer() -> tokenizers.Tokenizer:
    """A token a byte, and the special ones."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[misc]
    backend.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[misc]
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in SPECIAL])
    return backend


def write_tokenizer(folder: Path, *, bos: bool = False, template: str = CHATML) -> Path:
    """A Hugging Face folder without weights. bos: the template writes a BOS, and the tokenizer adds one, too."""
    folder.mkdir(parents=True)
    backend = tokenizer()
    config: dict[str, Any] = {"chat_template": ("<s>" if bos else "") + template, "eos_token": "<|im_end|>"}
    if bos:
        config["bos_token"] = "<s>"
        backend.post_processor = tokenizers.processors.TemplateProcessing(  # type: ignore[misc]
            single=["<s>", "$A"],
            pair=["<s>", "$A", "<s>", "$B"],
            special_tokens=[("<s>", backend.token_to_id("<s>"))],
        )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


class FaultyServer:
    """A context manager. `faults`: for a row and kind, what happens to its requests before they are answered.

    kind: "openai", "vllm", "llama.cpp" or "ollama". extra_tokens: what it counts besides a text (a BOS is 1, a template
    more). `key`: the one it wants. `seed`: "followed", "ignored" or "stuck". After `dies_after` answers it says nothing
    any more. `echo`: repeats the key that it was sent wherever it can.
    """

    def __init__(
        self,
        faults: dict[Tag, Iterable[Fault]] | None = None,
        *,
        kind: str = "openai",
        extra_tokens: int = 0,
        miscount: int = 0,
        takes_ids: bool = True,
        gives_usage: bool = True,
        chat_only: bool = False,
        key: str = "",
        echo: bool = False,
        seed: str = "followed",
        dies_after: int | None = None,
        rows: int = 64,
    ) -> None:
        self.faults = {tag: iter(items) for tag, items in (faults or {}).items()}
        self.kind, self.extra_tokens, self.miscount, self.takes_ids = kind, extra_tokens, miscount, takes_ids
        self.gives_usage, self.chat_only, self.key, self.echo = gives_usage, chat_only, key, echo
        self.seed, self.dies_after = seed, dies_after
        self.rows = {
            fold(row_seed(0, row, part, 0)): (row, part)
            for row in range(rows)
            for part in ("instruction", "response")
        }
        self.requests: Counter[Tag] = Counter()
        self.answered: Counter[Tag] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.under_way = self.most_under_way = self.others = 0
        self.on_answer: Callable[[], None] = lambda: None
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.backend = tokenizer()

    def __enter__(self) -> Self:
        owner = self

        class Bound(Handler):
            server_state = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def text_of(self, prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else self.backend.decode(prompt, skip_special_tokens=False)

    def count(self, prompt: Any) -> int:
        if not isinstance(prompt, str):
            return len(prompt)
        more = self.miscount if len(prompt) % 2 else 0
        return len(self.backend.encode(prompt, add_special_tokens=False).ids) + self.extra_tokens + more

    def write(self, prompt: str, seed: int, most: int) -> tuple[str, bool]:
        """(text, whether it is whole)."""
        if self.seed == "ignored":
            seed = len(self.bodies)
        if seed in self.rows:
            text = scripted_text(Request(prompt=prompt, max_tokens=most, seed=seed))
        else:
            text = hashlib.sha256(f"{prompt}{0 if self.seed == 'stuck' else seed}".encode()).hexdigest()
        return text[:most], len(text) <= most


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FaultyServer

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        if not self.allowed():
            return
        answers: dict[str, Any] = {"/v1/models": {"data": [{"id": MODEL, "owned_by": state.kind}]}}
        if state.kind == "ollama":
            answers |= {
                "/api/version": {"version": "0.34.3"},
                "/api/tags": {"models": [{"name": MODEL + ":latest"}]},
            }
        if state.kind == "llama.cpp":
            told = {"chat_template": CHATML, "bos_token": "", "eos_token": "<|im_end|>", "total_slots": 2}
            answers["/props"] = told | {"default_generation_settings": {"n_ctx": 4096}, "build_info": "b1"}
        if self.path in answers:
            self.reply(200, answers[self.path])
        else:
            self.reply(404, {"error": {"message": "no such route"}})

    def do_POST(self) -> None:
        state = self.server_state
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.allowed():
            return
        if state.kind == "llama.cpp" and self.path == "/tokenize":
            self.reply(200, {"tokens": self.tokens()})
            return
        route = "/api/generate" if state.kind == "ollama" else "/v1/completions"
        if self.path != route or state.chat_only:
            self.reply(404, {"error": {"message": "no such route"}})
            return
        with state.lock:
            state.under_way += 1
            state.most_under_way = max(state.most_under_way, state.under_way)
        try:
            self.complete()
        finally:
            with state.lock:
                state.under_way -= 1

    def complete(self) -> None:
        state = self.server_state
        options = self.body.get("options", self.body)
        tag = state.rows.get(options["seed"])
        with state.lock:
            state.bodies.append(self.body)
            state.requests[tag or (-1, "probe")] += 1
            fault = next(state.faults.get(tag, iter(())), None) if tag else None
            dead = state.dies_after is not None and state.answered.total() >= state.dies_after
            if tag and not fault and not dead:
                state.answered[tag] += 1
        if dead:
            close_now(self)
        elif fault:
            fault(self)
        elif not state.takes_ids and not isinstance(self.body["prompt"], str):
            self.reply(400, {"error": {"message": "a prompt is a text"}})
        else:
            self.reply(200, self.completion())
            state.on_answer()

    def completion(self) -> dict[str, Any]:
        state, body = self.server_state, self.body
        options = body.get("options", body)
        most = options.get("num_predict", body.get("max_tokens"))
        text, whole = state.write(state.text_of(body["prompt"]), options["seed"], most)
        reason = "stop" if whole else "length"
        if state.echo:
            text = f"{text} Say {self.sent_key()}?"
        read, drawn = state.count(body["prompt"]), len(text) + whole
        if state.kind == "ollama":
            found = {"model": MODEL, "response": text, "done": True, "done_reason": reason}
            return found | ({"prompt_eval_count": read, "eval_count": drawn} if state.gives_usage else {})
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.5] * drawn}
        usage = {"usage": {"prompt_tokens": read, "completion_tokens": drawn}} if state.gives_usage else {}
        return {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice], **usage}

    def tokens(self) -> list[int]:
        backend = self.server_state.backend
        backend.encode_special_tokens = not self.body["parse_special"]
        return backend.encode(self.body["content"], add_special_tokens=False).ids

    def allowed(self) -> bool:
        state = self.server_state
        state.keys.append(self.sent_key())
        if state.key and self.sent_key() != state.key:
            self.reply(401, {"error": {"message": f"wrong key {self.sent_key()}"}})
            return False
        return True

    def sent_key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def reply(self, status: int, found: Any, **headers: str) -> None:
        self.send(status, json.dumps(found).encode(), {"Content-Type": "application/json", **headers})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)


# -- faults -------------------------------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.reply(
        code, {"error": {"message": f"no, says {handler.sent_key()}"}}, **named
    )


def retry_at(handler: Handler) -> None:
    handler.reply(429, {}, **{"Retry-After": email.utils.formatdate(time.time() + 1, usegmt=True)})


def content(body: bytes, kind: str = "application/json", **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send(200, body, {"Content-Type": kind, **named})


def altered(**changes: Any) -> Fault:
    """The right answer with other values in its choice."""

    def fault(handler: Handler) -> None:
        found = handler.completion()
        found["choices"][0] |= changes
        found["choices"][0] = {name: value for name, value in found["choices"][0].items() if value is not ...}
        handler.reply(200, found)

    return fault


def close_now(handler: Handler) -> None:
    """A reset: not even a FIN."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.wfile.flush()
    handler.connection.close()
    handler.rfile = handler.wfile = open("/dev/null", "r+b")  # noqa: SIM115  # what the base class flushes at the end


def reset_mid_body(handler: Handler) -> None:
    handler.send(200, b'{"choices": [{"te', {"Content-Type": "application/json", "Content-Length": "500"})
    close_now(handler)


def chunks_that_end(handler: Handler) -> None:
    handler.wfile.write(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho\r\n'
    )
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, without end."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
        )
        while not handler.server_state.released.wait(0.05):
            handler.wfile.write(b" ")


def drip_headers(handler: Handler) -> None:
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not handler.server_state.released.wait(0.05):
            handler.wfile.write(b"X-A: b\r\n")


def hang(handler: Handler) -> None:
    handler.close_connection = True
    handler.server_state.released.wait(20)


def forever(fault: Fault) -> Iterator[Fault]:
    while True:
        yield fault


BOMB = gzip.compress(bytes(30_000_000))
DEEP = b"[" * 10_000 + b"]" * 10_000
