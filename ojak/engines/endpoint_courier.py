"""Carries requests to an endpoint and their answers back, many at once, each to one end: an answer or a failure.

A request that fails for good is a failure of its own only if the server answers others meanwhile, or a short question
now; otherwise the server is gone, the work ends, and what was under way is asked again by the next run.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections import Counter
from concurrent.futures import Future

from ojak.engines.endpoint_dialects import Answer, Prompt, body_of, path_of, read_answer
from ojak.engines.endpoint_probe import Found, is_up, unavailable
from ojak.engines.endpoint_retry import Pace, Policy, Trouble, persist
from ojak.engines.endpoint_wire import Wire
from ojak.errors import EngineUnavailable
from ojak.model.request import Completion, Request

SLOTS_AHEAD = 2  # requests for each of a server's slots, so that none waits for the way back and forth


class Courier:
    """Lives inside its wire. `send` and `wait` are for one thread, the rest runs in the wire's.

    `context`: tokens of room to ask Ollama for.
    """

    def __init__(self, wire: Wire, found: Found, policy: Policy, context: int | None) -> None:
        self.wire, self.found, self.policy, self.context = wire, found, policy, context
        self.pace = Pace(min(policy.most, SLOTS_AHEAD * found.slots) if found.slots else policy.most)
        self.in_flight = self.most_in_flight = self.failed = 0
        self.tally, self.odd = Counter[str](), Counter[str]()
        self._done: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        self._answered = time.monotonic()
        self._failed_in_a_row = 0
        self._asking = asyncio.Lock()

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.pace.limit

    def send(self, request: Request, prompt: Prompt) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.wire.submit(self._complete(request, prompt)).add_done_callback(self._arrived)

    def wait(self, seconds: float) -> Completion | None:
        """The next completion, None if there is none in time. Raises EngineUnavailable when the server is gone."""
        try:
            done = self._done.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(done, BaseException):
            raise done
        self.in_flight -= 1
        return done

    def _arrived(self, delivery: Future[Completion]) -> None:
        if not delivery.cancelled():
            self._done.put(delivery.exception() or delivery.result())

    async def _complete(self, request: Request, prompt: Prompt) -> Completion:
        found, asked = self.found, 0.0
        stops = list(dict.fromkeys([*request.stop_strings, *found.texts.stop_texts(request.stop_ids)]))
        body = body_of(found.server, found.model, prompt, request, stops, self.context)

        async def ask() -> Answer:
            nonlocal asked
            asked = time.monotonic()
            return read_answer(found.server, await self.wire.ask(path_of(found.server), body), stops)

        try:
            answer = await persist(ask, self.policy, self.pace, self.tally)
        except Trouble as trouble:
            return await self._failure(request, trouble, asked)
        self._answered, self._failed_in_a_row = time.monotonic(), 0
        if answer.odd:
            self.odd[answer.odd] += 1
        return self._completion(request, answer)

    def _completion(self, request: Request, answer: Answer) -> Completion:
        return Completion(
            request=request,
            text=answer.text,
            token_ids=(),
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens or 0,
            logprobs=answer.logprobs if request.logprobs else None,
            completion_tokens=answer.completion_tokens,
        )

    async def _failure(self, request: Request, trouble: Trouble, asked: float) -> Completion:
        """The failed completion of a request, if it is its own failure. Raises EngineUnavailable if it is not."""
        async with self._asking:
            if self._answered < asked and not await is_up(self.wire, self.found):
                raise unavailable(self.wire, trouble)  # nobody was answered since its last attempt began
        self.failed += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.policy.failures_in_a_row:
            raise EngineUnavailable(
                f"{self.wire.address.origin} fails every request",
                why=f"the last {self._failed_in_a_row} failed for good: {trouble.what}",
                fix="see to the server; then run the same command again with --retry-failed",
            )
        return Completion(request=request, text="", token_ids=(), finish_reason="failed", error=trouble.what)
