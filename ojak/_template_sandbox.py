"""The sandbox that chat templates are rendered in, seen from our side: one limited child process.

A chat template comes with a model and is a program (CVE-2024-34359 ran shell commands from one). It is rendered by
`_template_child.py` in a process of its own; this module starts that process, talks to it and replaces it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ojak.errors import InputRefused, OjakError

START_SECONDS = 30.0
REPLY_BYTES = 256 * 2**20
BOOT = "import sys, runpy; sys.path += sys.argv[2:-1]; runpy.run_path(sys.argv[1], run_name='__main__')"
REASONS = {
    "refused": "the template itself refuses this conversation",
    "security": "the template reaches for something that the sandbox forbids",
    "syntax": "the template is not valid Jinja",
    "undefined": "the template uses a name that does not exist",
    "output": "the template writes more text than any conversation needs",
    "memory": "the template takes more memory than the sandbox allows",
    "time": "the template takes longer than the sandbox allows",
    "death": "the process that renders templates ended in the middle of this one",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one template may cost. A batch larger than a frame is sent in several frames."""

    template_bytes: int = 256 * 1024
    cpu_seconds: float = 2.0
    wall_seconds: float = 20.0
    memory_bytes: int = 512 * 2**20
    output_chars: int = 16 * 2**20
    frame_bytes: int = 4 * 2**20
    frame_items: int = 4096
    today: str = "2024-07-26"


class TemplateSandbox:
    """Renders templates in one long-lived child process that is limited, and replaced when it breaks a limit.

    `limits.today` is the date that templates are told, always the same one: the day on which a data set is made must
    not change it (the value is what Llama 3.1's own template falls back to).
    """

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def render(self, template: str, contexts: Sequence[Mapping[str, Any]]) -> list[str]:
        """`template` rendered with each context, in one round trip for up to a few thousand of them.

        Raises:
            InputRefused: the template is too large, is no template, fails, or breaks a limit.
        """
        rendered = self.attempt(template, contexts)
        for item in rendered:
            if isinstance(item, InputRefused):
                raise item
        return [item for item in rendered if isinstance(item, str)]

    def attempt(self, template: str, contexts: Sequence[Mapping[str, Any]]) -> list[str | InputRefused]:
        """Like `render`, but a context that fails, or is too long, gives its error in its place.

        A template that breaks a limit raises still.
        """
        template = check_source(template, self.limits.template_bytes)
        result: list[str | InputRefused] = []
        with self._lock:
            for frame in self._frames(contexts):
                if isinstance(frame, InputRefused):
                    result.append(frame)
                    continue
                replies = self._exchange(template, frame)
                result += [
                    item["text"] if "text" in item else refusal(item["kind"], item["message"])
                    for item in replies
                ]
        return result

    def close(self) -> None:
        """Ends the child process; the next render starts another."""
        with self._lock:
            self._drop()

    def _frames(self, contexts: Sequence[Mapping[str, Any]]) -> Iterator[list[str] | InputRefused]:
        """The contexts as JSON, as many together as fit a frame, in order; an error for one that never fits."""
        frame: list[str] = []
        size = 0
        for context in contexts:
            text = json.dumps(context)
            if len(text) > self.limits.frame_bytes:
                if frame:
                    yield frame
                frame, size = [], 0
                yield self._too_long(text)
                continue
            if frame and (
                size + len(text) > self.limits.frame_bytes or len(frame) == self.limits.frame_items
            ):
                yield frame
                frame, size = [], 0
            frame.append(text)
            size += len(text)
        if frame:
            yield frame

    def _too_long(self, text: str) -> InputRefused:
        return InputRefused(
            f"a conversation of {len(text):,} bytes cannot be rendered",
            why=f"it is longer than {self.limits.frame_bytes:,} bytes",
            fix="split or drop it",
        )

    def _exchange(self, template: str, frame: Sequence[str]) -> list[dict[str, str]]:
        line = f'{{"template": {json.dumps(template)}, "contexts": [{", ".join(frame)}]}}\n'
        try:
            if self._child is None or not self._child.alive():
                self._drop()
                self._child = _Child(self.limits)
            reply = self._child.ask(line.encode("ascii"))
        except BaseException:
            self._drop()  # also after Ctrl-C: half a reply must not answer the next question
            raise
        if "breach" in reply:
            self._drop()
            raise refusal(reply["breach"])
        return reply["results"]

    def _drop(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """The process of `_template_child.py` and the socket to it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                _child_command(limits),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
                start_new_session=True,
            )
        self.end = weakref.finalize(self, _end_child, self.process, self.socket)
        self._greet()

    def _greet(self) -> None:
        try:
            self._read_line(time.monotonic() + START_SECONDS)
        except InputRefused as error:
            self.end()
            raise OjakError(
                "the process that renders chat templates does not start",
                why=f"it ended with {self.process.returncode}",
                fix="check the installation: `python -c 'import jinja2'` must work",
            ) from error

    def alive(self) -> bool:
        """Whether it runs and is ours. After a fork it is not: `poll` finds no such child, and takes it as ended."""
        return self.process.poll() is None

    def ask(self, line: bytes) -> dict[str, Any]:
        """Sends one request and waits for its reply; `InputRefused` when the process dies or takes too long."""
        deadline = time.monotonic() + self.limits.wall_seconds
        try:
            self.socket.settimeout(self.limits.wall_seconds)
            self.socket.sendall(line)
        except OSError as error:
            raise refusal("death", str(error)) from error
        return json.loads(self._read_line(deadline))

    def _read_line(self, deadline: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while not pieces or not pieces[-1].endswith(b"\n"):
            self.socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                pieces.append(self.socket.recv(2**20))
            except OSError as error:
                raise refusal("time" if isinstance(error, TimeoutError) else "death", str(error)) from error
            size += len(pieces[-1])
            if not pieces[-1] or size > REPLY_BYTES:
                raise self._explain_end()
        return b"".join(pieces)

    def _explain_end(self) -> InputRefused:
        self.end()
        if self.process.returncode == -signal.SIGPROF:
            return refusal("time", f"more than {self.limits.cpu_seconds:g} s")
        return refusal("death", f"exit {self.process.returncode}")


def _child_command(limits: Limits) -> list[str]:
    settings = {
        "today": limits.today,
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "output_chars": limits.output_chars,
    }
    script = str(Path(__file__).with_name("_template_child.py"))
    # -I and -S: no environment variables, no user site, no .pth files; only where Jinja lies is added.
    return [sys.executable, "-I", "-S", "-c", BOOT, script, *_jinja_roots(), json.dumps(settings)]


def _jinja_roots() -> list[str]:
    roots: set[str] = set()
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise OjakError(f"{name} is not installed", fix=f"pip install {name}")
        roots.add(str(Path(spec.origin).parents[1]))
    return sorted(roots)


def _end_child(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    if process.poll() is None:
        process.kill()
    process.wait()


@functools.cache
def shared_sandbox() -> TemplateSandbox:
    """The sandbox that templates use unless they are given one of their own."""
    return TemplateSandbox()


def check_source(source: str | bytes, limit_bytes: int = Limits.template_bytes) -> str:
    """`source` as text that can be compiled: valid UTF-8, not larger than the limit."""
    try:
        data = source.encode("utf-8") if isinstance(source, str) else bytes(source)
        text = data.decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        refuse("the chat template is refused", why=f"it is not valid UTF-8 ({error.reason})")
    if len(data) > limit_bytes:
        refuse(
            "the chat template is refused", why=f"it has {len(data):,} bytes, the limit is {limit_bytes:,}"
        )
    return text


def refuse(what: str, *, why: str, fix: str = "use another model, or give a corrected template") -> NoReturn:
    """Raises InputRefused."""
    raise InputRefused(what, why=why, fix=fix)


def refusal(kind: str, detail: str = "") -> InputRefused:
    reason = REASONS.get(kind, f"it fails with {kind}")
    # The detail is the template's own text: control characters must not reach a terminal.
    shown = "".join(c if c.isprintable() else " " for c in detail).strip()
    return InputRefused(
        "the chat template could not be rendered",
        why=f"{reason}: {shown}" if shown else reason,
        fix="check that the conversation has the roles the template expects, or use another model",
    )
