"""Engines for the workers of Ray's tests: they note in a file, a line each, which requests they were asked."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ojak.engines.base import Engine
from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.errors import UsageError
from ojak.model.request import Completion, Request


class Noting(ScriptedEngine):
    """Writes "pid seed" for each request that it finishes working out, `pause_s` after it began.

    deadly: the seed of a request that kills the process, as running out of memory would.
    """

    def __init__(self, log: str, pause_s: float = 0.0, deadly: int | None = None, **options: Any) -> None:
        super().__init__(scripted_text, **options)
        self._file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._pause_s, self._deadly = pause_s, deadly

    def _complete(self, request: Request) -> Completion:
        if request.seed == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._pause_s)
        done = super()._complete(request)
        os.write(self._file, f"{os.getpid()} {request.seed}\n".encode())
        return done


def tiny_engine() -> Engine:
    """The embedded engine with a model of a few thousand weights."""
    import tiny

    from ojak.engines.native import NativeEngine

    return NativeEngine(tiny.model("llama"), slots=16)


def refusing() -> Engine:
    raise UsageError("this cannot be meant as it is", fix="mend it")


def asked(log: Path) -> Counter[int]:
    """How often each seed was asked."""
    return Counter(seed for _, seed in _lines(log))


def processes(log: Path) -> Counter[int]:
    """How many requests each process was asked, by its id."""
    return Counter(pid for pid, _ in _lines(log))


def asked_again(log: Path, killed: Iterable[int] = ()) -> set[int]:
    """Seeds asked more than once, but for what a killed process was at: the last that it noted may not be committed."""
    last = dict(_lines(log))
    excused = Counter(last[process] for process in killed if process in last)
    return {seed for seed, count in asked(log).items() if count > 1 + excused[seed]}


def _lines(log: Path) -> list[tuple[int, int]]:
    text = log.read_text("utf-8") if log.exists() else ""
    return [(int(pid), int(seed)) for pid, seed in map(str.split, text.splitlines())]
