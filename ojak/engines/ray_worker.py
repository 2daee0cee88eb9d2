"""What runs in a worker's process: an engine that is fed through a queue, so that its batch stays full.

Nothing of Ray is imported here. The engine generates in a thread of its own; the driver calls `exchange` again and
again, which brings requests and takes completions back.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ojak._code import version
from ojak.engines.base import Capabilities, Engine, Scored
from ojak.engines.completions import entry_of
from ojak.engines.ray_ledgers import worker_ledger
from ojak.errors import OjakError
from ojak.ledger import Ledger
from ojak.model.request import Completion, Request

LEAST_QUEUED = 8  # requests; else as many as the engine works on, so that a full batch is refilled from here
PATIENCE_S = 0.05  # a call with nothing to tell returns after this
STARVING_S = 0.005  # ... and sooner where the queue is empty and the driver may have more
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_NOTHING = Request(prompt="", max_tokens=1)


class Share(NamedTuple):
    """What of a machine a worker may take: one of `workers` on it; `whole_device` if it has a GPU of its own."""

    workers: int
    whole_device: bool = False


class Task(NamedTuple):
    """A request on its way. `number` is the driver's name for it, `key` that of the ledger (None: keep none)."""

    number: int
    key: str | None
    request: Request


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker's engine says of itself; the same on every worker."""

    version: str
    identity: dict[str, Any]
    capabilities: Capabilities
    special_tokens: tuple[str, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call: completions by number, how many more requests are welcome, tokens drawn since `begin`."""

    done: list[tuple[int, Completion]]
    room: int
    drawn: int


@dataclass
class _Feed:
    """What the two threads share; `changed` guards it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    queue: deque[Task] = field(default_factory=deque)
    done: list[tuple[int, Completion]] = field(default_factory=list)
    running: int = 0
    closing: bool = False
    error: OjakError | None = None

    def requests(self) -> Iterator[Request | None]:
        """For the engine: what is queued; waits only while the engine has nothing to do."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.running or self.closing)
                if self.closing:
                    return
                task = self.queue.popleft() if self.queue else None
                self.running += task is not None
            yield replace(task.request, tag=task) if task else None

    def finish(self, completion: Completion) -> None:
        """Puts a completion, without its request, where the driver takes it from."""
        with self.changed:
            self.running -= 1
            self.done.append((completion.request.tag.number, replace(completion, request=_NOTHING)))
            self.changed.notify_all()

    def end(self, error: OjakError | None) -> None:
        with self.changed:
            self.error = self.error or error
            self.closing = True
            self.changed.notify_all()

    @property
    def room(self) -> int:
        return max(LEAST_QUEUED, self.running) - len(self.queue)


class Worker:
    """An actor's class. Each method is one call of the driver; `look` may come beside another one."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._feed = _Feed(closing=True)
        self._thread: threading.Thread | None = None
        self._drawn_before = 0
        self._scoring = threading.Lock()

    def process_id(self) -> int:
        """Answers as soon as Ray has found a place for this worker."""
        return os.getpid()

    def open(self, make: Callable[[], Engine], share: Share) -> Facts:
        """Makes the engine, with this worker's share of the machine's cores and memory."""
        _take_cores(share)
        self._engine = engine = make()
        _take_cores(share)
        if not share.whole_device and hasattr(engine, "memory_share"):
            engine.memory_share = 1 / share.workers  # pyright: ignore[reportAttributeAccessIssue]
        return Facts(
            version=version(),
            identity=engine.identity,
            capabilities=engine.capabilities,
            special_tokens=engine.special_tokens,
            provenance=engine.provenance(),
        )

    def look(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the engine that asks for no text, or reads an attribute that it may have."""
        found = getattr(self._ready, name, None)
        return found(*arguments, **options) if callable(found) else found

    def score(self, texts: Sequence[Scored]) -> list[tuple[float, ...]]:
        with self._scoring:
            return list(self._ready.score(texts))

    def begin(self, ledger: Path | None, longest: int) -> None:
        """Begins to generate; from now on `exchange` feeds. Ends with `finish`."""
        self._feed = feed = _Feed()
        completions = self._ready.generate(feed.requests(), longest=longest)
        self._drawn_before = self._ready.drawn_tokens
        opened: list[OjakError | None] = []
        self._thread = threading.Thread(
            target=self._generate, args=(feed, completions, ledger, opened), daemon=True
        )
        self._thread.start()
        with feed.changed:
            feed.changed.wait_for(lambda: opened)
        if opened[0]:
            raise opened[0]

    def exchange(self, tasks: Sequence[Task], more: bool) -> Reply:
        """Takes requests, and gives back what is finished; soon, where it is idle and the driver may have `more`."""
        feed, begun = self._feed, time.monotonic()
        with feed.changed:
            feed.queue.extend(tasks)
            feed.changed.notify_all()
            feed.changed.wait_for(lambda: feed.done or feed.closing, STARVING_S)
            if not (more and not feed.queue):
                left = PATIENCE_S - (time.monotonic() - begun)
                feed.changed.wait_for(lambda: feed.done or feed.closing, max(0.0, left))
            done, feed.done = feed.done, []
            if feed.error and not done:
                raise feed.error
            return Reply(done, feed.room, self._drawn())

    def finish(self) -> dict[str, Any]:
        """Ends what `begin` began: the ledger is closed when this returns. Gives the engine's record of the run."""
        self._feed.end(None)
        if self._thread is not None:
            self._thread.join()
        return {**self._ready.stats(), "threads": int(os.environ[THREAD_VARIABLES[0]])}

    @property
    def _ready(self) -> Engine:
        if self._engine is None:
            raise OjakError("a worker of Ray was asked before its engine was open")
        return self._engine

    def _drawn(self) -> int:
        return self._ready.drawn_tokens - self._drawn_before

    def _generate(
        self,
        feed: _Feed,
        completions: Iterator[Completion],
        path: Path | None,
        opened: list[OjakError | None],
    ) -> None:
        """The thread: each completion is committed before it is told; failures, which may be asked again, are not."""
        error: OjakError | None = None
        try:
            with worker_ledger(path) as ledger:
                _tell(feed, opened, None)
                for completion in completions:
                    _keep(ledger, completion)
                    feed.finish(completion)
        except OjakError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001  # the driver must learn of it, whatever it is
            error = OjakError("a worker of Ray failed", why=f"{type(caught).__name__}: {caught}"[:500])
        if not opened:
            _tell(feed, opened, error)
        feed.end(error)


def _tell(feed: _Feed, opened: list[OjakError | None], error: OjakError | None) -> None:
    with feed.changed:
        opened.append(error)
        feed.changed.notify_all()


def _keep(ledger: Ledger | None, completion: Completion) -> None:
    task: Task = completion.request.tag
    if ledger is not None and task.key is not None and completion.finish_reason != "failed":
        ledger.put(entry_of(task.key, completion, task.number))


def _take_cores(share: Share) -> None:
    """Sets how many threads this process computes with; before torch is loaded, and again if it was."""
    threads = max(1, len(os.sched_getaffinity(0)) // share.workers)
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if torch := sys.modules.get("torch"):
        with contextlib.suppress(AttributeError):
            torch.set_num_threads(threads)
