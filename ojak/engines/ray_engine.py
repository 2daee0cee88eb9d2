"""Many workers, each with an engine of its own, behind the protocol of one; on one machine or on a cluster (Ray).

What a worker runs is what `EngineSpec` would open without Ray: a model in the embedded engine, or a server asked by
each worker. The identity is that engine's, so that a run may be begun without Ray and go on with it: a row's text
depends on its prompt and seed alone. Actors are used and not Ray Data: a stage asks for responses while instructions
are still drawn, a worker's batch must be refilled at once, and Ray Data's own checkpoints are at-least-once by block.

    ray_cluster   the cluster, and each worker's share of it
    ray_crew      who lives, who is fed, what becomes of a dead worker's requests
    ray_worker    the process that holds an engine
    ray_ledgers   what each worker has finished
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from ojak.chat import ChatPrefix
from ojak.engines.base import Capabilities, Engine, Scored
from ojak.engines.completions import key_of
from ojak.engines.ray_cluster import Cluster
from ojak.engines.ray_crew import Crew
from ojak.engines.ray_ledgers import WorkerLedgers
from ojak.engines.ray_scores import scores
from ojak.engines.ray_worker import Facts, Task
from ojak.errors import OjakError, UsageError
from ojak.model.request import Completion, Request

REMEMBERED = 4096  # answers of workers to small questions
MOST_KNOWN = 256  # completions out of ledgers that wait to be taken
SUMMED = ("slots", "lanes", "steps", "requests", "attempts", "failed_requests", "planned_bytes")


class RayEngine:
    """Engines from `make` in `workers` processes. `make` is called in each of them, so it must be picklable.

    folder: where workers keep what they finish, until the caller has it (`ray_ledgers`); all machines must see it.
    None: a worker that dies then has its requests asked again. workers: None for one a GPU, or else one a machine, or
    two where there is but one. address: of a Ray cluster; None for one on this machine.

    Raises UsageError where Ray is missing or cannot give that much, EngineUnavailable, and what `make` raises.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        *,
        workers: int | None = None,
        address: str | None = None,
        folder: Path | None = None,
        wants_gpu: bool = False,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers is {workers}; there must be at least one")
        self._cluster = cluster = Cluster(address)
        self._ledgers = WorkerLedgers(folder)
        self._end = weakref.finalize(self, cluster.close)
        try:
            number = workers or cluster.room().default_workers()
            self._crew = Crew(cluster, make, number, self._ledgers, wants_gpu)
            self._end.detach()
            self._end = weakref.finalize(self, _end, self._crew)
            self._facts: Facts = self._crew.start()
        except BaseException:
            self.close()
            raise
        self.capabilities: Capabilities = self._facts.capabilities
        self._ask = lru_cache(REMEMBERED)(self._crew.ask)
        self._told: list[dict[str, Any]] = []

    @property
    def identity(self) -> dict[str, Any]:
        return self._facts.identity

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self._facts.special_tokens

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._ask("stop_ids")

    @property
    def context_tokens(self) -> int | None:
        """The longest text that the workers' engines take, where they say so."""
        return self._ask("context_tokens")

    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        return self._ask("chat_prefix", system, turns=turns)

    @property
    def drawn_tokens(self) -> int:
        """As of the last word from each worker, at most a fraction of a second ago."""
        return self._crew.drawn

    def count_tokens(self, text: str) -> int:
        return self._ask("count_tokens", text)

    def first_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        return self._ask("first_tokens", tuple(texts))

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        """As the protocol has it, the work spread over the workers.

        Where it is left before its end, the workers end at once; what they had finished is in their ledgers, and comes
        out of those the next time it is asked. Raises EngineUnavailable where workers keep dying, Locked where one that
        Ray has given up lives on.
        """
        if self._crew.is_gone:
            self._crew.start()
        self._ledgers.begin()
        self._crew.begin(longest)
        return self._generate(requests)

    def _generate(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        crew, source, ended = self._crew, _Source(requests, self._ledgers, self.identity), False
        try:
            while True:
                source.is_waiting = False
                done = crew.step(source.take)
                yield from source.recalled()
                yield from (completion for _, completion in done)
                if source.is_over and not crew.in_flight():
                    break
                if source.is_waiting and not done and not crew.in_flight():
                    raise OjakError("the engine waits for requests that wait for the engine")
            ended = True
        finally:
            if ended:
                self._told = crew.finish()
                self._ledgers.clear()  # the caller has recorded every completion that it was given
            else:
                crew.kill()
                self._ledgers.close()

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        """As the protocol has it; what a worker had not told when it died is worked out again, to the same numbers."""
        if self._crew.is_gone:
            self._crew.start()
        return scores(self._crew, texts)

    def provenance(self) -> dict[str, Any]:
        return self._facts.provenance

    def stats(self) -> dict[str, Any]:
        """The workers' records put together: sums of slots and steps, the largest of the rest."""
        found: dict[str, Any] = {"workers": len(self._crew.members), "deaths": self._crew.deaths}
        for name in sorted({name for told in self._told for name in told}):
            values = [told[name] for told in self._told if name in told]
            if all(isinstance(value, int | float) for value in values):
                found[name] = sum(values) if name in SUMMED else max(values)
            else:
                found[name] = values[0]
        return {**found, "recalled": self._ledgers.recalled}

    def close(self) -> None:
        """Ends the workers, and Ray if it was begun for them."""
        self._end()


class _Source:
    """Where tasks come from: the caller's requests, less those that a worker of before had finished."""

    def __init__(
        self, requests: Iterator[Request | None], ledgers: WorkerLedgers, identity: dict[str, Any]
    ) -> None:
        self._requests, self._ledgers, self._identity = requests, ledgers, identity
        self._numbers = count()
        self.known: deque[Completion] = deque()
        self.is_over = self.is_waiting = False

    def take(self, room: int) -> tuple[list[Task], bool]:
        """Up to `room` tasks, and whether there may be more at once."""
        tasks: list[Task] = []
        self.is_waiting = False
        while len(tasks) < room and not self.is_over and len(self.known) < MOST_KNOWN:
            request = next(self._requests, StopIteration)
            self.is_over = request is StopIteration
            self.is_waiting = request is None
            if not isinstance(request, Request):
                break
            task = Task(next(self._numbers), self._key(request), request)
            found = self._ledgers.find(request, task.key)
            if found:
                self.known.append(found)
            else:
                tasks.append(task)
        return tasks, not (self.is_over or self.is_waiting)

    def recalled(self) -> Iterator[Completion]:
        """What a worker of before had finished, as far as it was asked for and not handed out."""
        while self.known:
            yield self.known.popleft()

    def _key(self, request: Request) -> str | None:
        return key_of(request, self._identity) if self._ledgers.folder else None


def _end(crew: Crew) -> None:
    crew.kill()
    crew.cluster.close()
