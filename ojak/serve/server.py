"""The port: a socket on 127.0.0.1, uvicorn with limits on patience, and an orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ojak.errors import UsageError
from ojak.serve import HOST
from ojak.serve.app import Api
from ojak.serve.guard import MOST_HEADER_BYTES, Guard
from ojak.serve.refusal import stopping
from ojak.serve.served import Served
from ojak.serve.worker import MOST_WAITING, Worker

MOST_CONNECTIONS = 512
HEADER_SECONDS = 15.0  # for a request's head to arrive, on a new connection or after an answer
STALLED_SECONDS = 60.0  # a client that takes nothing of its answer for so long is cut off
GRACE_SECONDS = 10.0  # for answers in flight, once the server is told to stop
BACKLOG = 128


def bind(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 takes a free one. Raises UsageError if the port is not to be had."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former run may linger
        bound.bind((HOST, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"port {port} of {HOST} cannot be used",
            why=error.strerror or str(error),
            fix="choose another one with --port, or 0 for any free one",
        ) from error
    return bound


class Patient(H11Protocol):
    """One connection, with an end to its patience: for heads that do not come, and answers that are not taken."""

    _idle: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._expect_request(None)

    def on_response_complete(self) -> None:
        finished = self.cycle
        super().on_response_complete()
        self._expect_request(finished)

    def _expect_request(self, last: Any) -> None:
        self._stop(self._idle)
        self._idle = self.loop.call_later(HEADER_SECONDS, self._give_up, last)

    def _give_up(self, last: Any) -> None:
        if self.cycle is not last:
            return
        if self.transport.get_write_buffer_size():  # the last answer is still being taken
            self._expect_request(last)
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop(self._idle)
        self._stop(self._stalled)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class Service(uvicorn.Server):
    """A model on a bound socket. `run` blocks until `stop` is called, or SIGTERM or Ctrl-C comes; used once.

    `key`: the bearer token that requests must have, if any. `notify` hears of what breaks. `cut_off`: how many choices
    were ended unfinished when the grace was over.
    """

    def __init__(
        self,
        served: Served,
        bound: socket.socket,
        *,
        key: str | None = None,
        most_waiting: int = MOST_WAITING,
        grace_s: float = GRACE_SECONDS,
        notify: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.served, self.bound, self.key, self.grace_s = served, bound, key, grace_s
        self.port: int = bound.getsockname()[1]
        self.worker = Worker(
            served.engine, served.room, most_waiting=most_waiting, notify=notify, halt=served.engine.halt
        )
        self.cut_off = 0
        self.ready: Callable[[], None] = lambda: None
        app = Guard(Api(served, self.worker, notify).app(), self.port, key)
        super().__init__(configuration(app, grace_s))

    @property
    def url(self) -> str:
        """What a client takes for its base URL."""
        return f"http://{HOST}:{self.port}/v1"

    def serve_until_stopped(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serves; `ready` is called once requests are answered."""
        self.ready = ready
        self.worker.start()
        try:
            self.run(sockets=[self.bound])
        finally:
            self.worker.close()
            self.bound.close()

    def stop(self) -> None:
        """Ends the server from any thread: what is in flight has `grace_s` seconds to finish."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.grace_s, self._cut_off)
        await super().shutdown(sockets)
        timer.cancel()

    def _cut_off(self) -> None:
        self.cut_off += self.worker.queue.drop(stopping(), waiting=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server in order; unlike uvicorn's own, they are not raised again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the grace, a second one ends it."""
        self.force_exit = self.should_exit
        self.should_exit = True


def configuration(app: Any, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what breaks is told by `notify`
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(HEADER_SECONDS),
        timeout_graceful_shutdown=int(grace_s) + 15,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )
