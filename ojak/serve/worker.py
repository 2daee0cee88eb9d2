"""Many clients on one engine.

The engine runs in a thread of its own for as long as the server does. It takes requests from `Queue`, which waits where
nothing is to be done, and says so at once where rows are in flight. What it writes goes back to the event loop through
an `Answer`, which wakes the loop once for all that has come since it last looked.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from ojak.engines.base import Engine
from ojak.model.request import Completion, Drawn, Request
from ojak.serve.refusal import Refusal, broken, stopping

MOST_WAITING = 256  # choices that have no slot yet
CLOSING_SECONDS = 30.0
Event = Drawn | Completion | Refusal


class Answer:
    """The choices of one HTTP request. Made and read on the event loop, written to in the engine's thread."""

    def __init__(self, requests: Sequence[Request], *, hears: bool) -> None:
        self.jobs = [Job(self, n, request, hears=hears) for n, request in enumerate(requests)]
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Event]] = deque()
        self._ready = asyncio.Event()
        self._is_told = False

    def put(self, index: int, event: Event) -> None:
        """From any thread."""
        self._events.append((index, event))
        if not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):  # the loop has ended: nobody reads any more
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_told = False  # before the events are read: none that comes later can be missed
        self._ready.set()

    async def batches(self) -> AsyncIterator[list[tuple[int, Drawn | Completion]]]:
        """What has come since the last batch, until every choice has its completion. Raises the Refusal of a choice."""
        left = len(self.jobs)
        while left:
            await self._ready.wait()
            self._ready.clear()
            batch: list[tuple[int, Drawn | Completion]] = []
            while self._events:
                index, event = self._events.popleft()
                if isinstance(event, Refusal):
                    raise event
                batch.append((index, event))
                left -= isinstance(event, Completion)
            if batch:
                yield batch


class Job:
    """One choice. `hears`: whether the answer wants each token, or the end alone."""

    def __init__(self, answer: Answer, index: int, request: Request, *, hears: bool) -> None:
        self.answer, self.index, self.hears = answer, index, hears
        self.cancelled = False
        self.request = replace(request, tag=self, on_token=self.hear)

    def hear(self, drawn: Drawn) -> bool:
        """In the engine's thread: passes a token on; False once nobody wants the rest."""
        if self.hears and not self.cancelled:
            self.answer.put(self.index, drawn)
        return not self.cancelled

    def end(self, event: Completion | Refusal) -> None:
        if not self.cancelled:
            self.answer.put(self.index, event)


class Queue(Iterator[Request | None]):
    """What an engine takes its requests from. All methods may be called from any thread."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self.is_closed = False
        self._waiting: dict[Job, None] = {}  # in order of arrival
        self._in_flight: set[Job] = set()
        self._changed = threading.Condition()

    def __next__(self) -> Request | None:
        """The next request; None while others are in flight; waits while there are none. Ends when closed."""
        with self._changed:
            while True:
                if self._waiting:
                    job = next(iter(self._waiting))
                    del self._waiting[job]
                    self._in_flight.add(job)
                    return job.request
                if self._in_flight:
                    return None
                if self.is_closed:
                    raise StopIteration
                self._changed.wait()

    def put(self, jobs: Sequence[Job]) -> None:
        """Takes all jobs or none. Raises Refusal if there is no room for them."""
        with self._changed:
            if self.is_closed:
                raise stopping()
            if len(self._waiting) + len(jobs) > self.most_waiting:
                raise Refusal(
                    429, "too many requests are waiting", kind="rate_limit_error", code="queue_full",
                    headers={"Retry-After": "1"},
                )  # fmt: skip
            self._waiting.update(dict.fromkeys(jobs))
            self._changed.notify()

    def finish(self, done: Completion) -> None:
        """A row has ended; its slot is free."""
        job: Job = done.request.tag
        with self._changed:
            self._in_flight.discard(job)
        if done.finish_reason in ("stop", "length"):
            job.end(done)
        else:
            job.end(broken(f"the model could not go on: {done.error}"))

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Nobody wants these any more: they leave the queue, or their slot at their next token."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
                self._waiting.pop(job, None)

    def drop(self, refusal: Refusal, *, waiting: bool) -> int:
        """Ends what is in flight, and with `waiting` what is queued, by telling the clients so. Returns how many."""
        with self._changed:
            jobs = [*self._in_flight, *(self._waiting if waiting else ())]
        for job in jobs:
            job.end(refusal)
        self.cancel(jobs)
        return len(jobs)

    def forget(self) -> None:
        """The engine has dropped all its rows."""
        with self._changed:
            self._in_flight.clear()

    def close(self) -> None:
        """No more requests are taken; the engine's loop ends with its last row."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    @property
    def counts(self) -> tuple[int, int]:
        """(choices in flight, choices waiting)."""
        with self._changed:
            return len(self._in_flight), len(self._waiting)


class Worker:
    """The engine's thread. `notify` is told of what breaks in it, `halt` makes the engine leave what it is at."""

    def __init__(
        self,
        engine: Engine,
        longest: int,
        *,
        most_waiting: int,
        notify: Callable[[str], None],
        halt: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine, self.longest, self.notify, self.halt = engine, longest, notify, halt
        self.queue = Queue(most_waiting)
        self._thread = threading.Thread(target=self._work, name="ojak-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Request], *, hears: bool) -> Answer:
        """Queues the choices of an answer. Raises Refusal if there is no room for them."""
        answer = Answer(requests, hears=hears)
        self.queue.put(answer.jobs)
        return answer

    def close(self) -> None:
        """Ends what is left and waits for the thread."""
        self.queue.close()
        self.queue.drop(stopping(), waiting=True)
        self.halt()  # rows end at their next token, which those with long prompts have yet to come to
        if self._thread.is_alive():
            self._thread.join(CLOSING_SECONDS)

    def _work(self) -> None:
        while not (self.queue.is_closed and self.queue.counts == (0, 0)):
            try:
                for done in self.engine.generate(self.queue, longest=self.longest):
                    self.queue.finish(done)
                self.queue.forget()
            except Exception as error:  # noqa: BLE001 (whatever it is: it ends its rows, and the server stays)
                self.notify(f"the engine failed: {type(error).__name__}: {error}")
                if not self.queue.drop(broken("the engine failed"), waiting=False):
                    self.queue.close()  # it fails by itself: another try would fail like this one
                    self.queue.drop(broken("the engine failed"), waiting=True)
                self.queue.forget()
