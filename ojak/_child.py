"""A process of our own that may die: it reads what strangers made, within limits of memory and time.

It is this Python, started anew with our module path and nothing on its command line but settings; bytes and JSON go
over a socket, never pickles. The kernel holds it to its memory; SIGPROF ends it where one document takes too long,
even in the middle of a library's C code; and who waits for it waits so long and no longer.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Protocol, TypeVar

import orjson

from ojak.errors import OjakError, UsageError

Batch = TypeVar("Batch", contravariant=True)
Result = TypeVar("Result", covariant=True)
MOST_WORKERS = 64
START_S, EXIT_S = 120.0, 15.0
WALL_PER_CPU = (
    4.0  # a document may wait so many times its CPU seconds before the process is given up: others run, too
)
BOOT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
importlib.import_module(sys.argv[2]).serve(json.loads(sys.argv[3]))
"""
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
KEPT = ("LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "LANG", "TMPDIR")  # of the environment: no keys of anybody's


def workers(asked: int | None) -> int:
    """How many processes that is on this machine: as many as asked for, else one for each CPU that we may use."""
    return asked or min(MOST_WORKERS, len(os.sched_getaffinity(0)))


class Worker(Protocol[Batch, Result]):
    """Takes a batch at a time; its results come in the batch's order."""

    def give(self, batch: Batch, /) -> None: ...

    def replies(self) -> Iterator[Result]: ...


def in_turn(workers: Sequence[Worker[Batch, Result]], batches: Iterable[Batch]) -> Iterator[Result]:
    """The results of all batches in their order, whoever was first: each worker has one batch at a time."""
    idle, busy = list(workers), deque[Worker[Batch, Result]]()
    for batch in batches:
        if not idle:
            first = busy.popleft()
            yield from first.replies()
            idle.append(first)
        worker = idle.pop()
        worker.give(batch)
        busy.append(worker)
    for worker in busy:
        yield from worker.replies()


class Ended(Exception):
    """The process ended, or was ended. reason: "time", "memory" or "died"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Child:
    """A running process, the function `serve` of one of our modules, and the socket to it."""

    def __init__(self, module: str, settings: Mapping[str, Any], *, cpu_s: float, memory_bytes: int) -> None:
        self._wall_s = WALL_PER_CPU * cpu_s
        self._socket, theirs = socket.socketpair()
        limits = {**settings, "cpu_s": cpu_s, "memory_bytes": memory_bytes}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", BOOT, json.dumps(sys.path), module, json.dumps(limits)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={**{k: os.environ[k] for k in KEPT if k in os.environ}, **THREADS},
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _end, self._process, self._socket)
        self._buffer = bytearray()
        self._greet()

    def _greet(self) -> None:
        try:
            first = self.line(START_S)
        except Ended as error:
            raise OjakError(
                "the process that reads documents does not start", why=error.detail, fix="see `ojak doctor`"
            ) from error
        if "refused" in first:
            self.close()
            raise UsageError(
                "not all libraries that read documents are there",
                why=str(first["refused"]),
                fix='pip install "ojak[corpus]"',
            )

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """A line of JSON and bytes after it. Raises Ended."""
        try:
            self._socket.settimeout(self._wall_s)
            self._socket.sendall(orjson.dumps(header) + b"\n" + payload)
        except OSError as error:
            raise self._ended(error) from error

    def line(self, wall_s: float | None = None) -> dict[str, Any]:
        """The next line of JSON that it writes. Raises Ended."""
        deadline = time.monotonic() + (wall_s or self._wall_s)
        while (end := self._buffer.find(b"\n")) < 0:
            self._receive(deadline)
        found = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return orjson.loads(found)

    def exactly(self, count: int) -> bytes:
        """The next bytes that it writes. Raises Ended."""
        deadline = time.monotonic() + self._wall_s
        while len(self._buffer) < count:
            self._receive(deadline)
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def _receive(self, deadline: float) -> None:
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            data = self._socket.recv(2**20)
        except OSError as error:
            raise self._ended(error) from error
        if not data:
            raise self._ended(None)
        self._buffer += data

    def _ended(self, error: OSError | None) -> Ended:
        """Why it ended; it has when this returns."""
        timed_out = isinstance(error, TimeoutError)
        if not timed_out:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_S)
        self.close()
        code = self._process.returncode
        if timed_out or code == -signal.SIGPROF:
            return Ended("time", "it took longer than a document may")
        if code == OUT_OF_MEMORY:
            return Ended("memory", "it took more memory than a document may")
        return Ended("died", f"the process ended with {code}")


OUT_OF_MEMORY = 86  # the exit code of a child that found no more


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    if process.poll() is None:
        process.kill()
    process.wait()


# -- within the process -----------------------------------------------------------------------------------------------


def streams() -> tuple[IO[bytes], IO[bytes]]:
    """What it reads and writes; the standard streams are then closed to whatever a library may print."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who started it is gone: end at once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return source, sink


def limit_memory(memory_bytes: int) -> None:
    """From here on it may have so much address space beyond what it has, and leave no core behind."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + memory_bytes, has + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(cpu_s: float) -> None:
    """It may compute for so long from now on; 0 takes the limit away."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def told(error: Exception) -> str:
    """What an error says, as text that can be stored, not too long."""
    return f"{type(error).__name__}: {error}"[:300].encode("utf-8", "replace").decode()


def put(sink: IO[bytes], header: Mapping[str, Any], payload: bytes = b"") -> None:
    """A line of JSON, and bytes after it."""
    sink.write(orjson.dumps(header) + b"\n" + payload)
    sink.flush()
