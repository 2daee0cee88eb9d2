"""The driver's view of the workers: who lives, what each is doing, and what becomes of its work when it dies.

    placing -> opening -> idle -> beginning -> working -> idle
       ^___________ a death: another life, with what the dead one had not finished left to the others

Each worker has at most one call under way; `step` waits for one of them to return and makes the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ojak._code import version
from ojak.engines.base import Engine, Scored
from ojak.engines.ray_cluster import Cluster
from ojak.engines.ray_ledgers import WorkerLedgers
from ojak.engines.ray_worker import LEAST_QUEUED, Facts, Reply, Share, Task, Worker
from ojak.errors import EngineUnavailable, OjakError, UsageError
from ojak.model.request import Completion

MOST_DEATHS = 3  # in a row without a finished request: then it is no accident
MOST_TRIES = 3  # deaths that one request may be there for
PLACE_WAIT_S = 120.0
STEP_S = 0.2
MOST_CALLS = 4  # one that feeds, two bundles of scores, one that only looks

Done = tuple[Task, Completion]


@dataclass
class Member:
    """A worker, over all its lives. `call` is what it is busy with, None when idle."""

    number: int
    actor: Any = None
    phase: str = "placing"
    call: Any = None
    since: float = 0.0
    ledger: Path | None = None
    tasks: dict[int, Task] = field(default_factory=dict)
    room: int = LEAST_QUEUED
    drawn: int = 0  # by this life, since `begin`
    deaths: int = 0  # in a row


class Crew:
    """So many workers on a cluster, each with an engine from `make`, which must be picklable."""

    def __init__(
        self,
        cluster: Cluster,
        make: Callable[[], Engine],
        count: int,
        ledgers: WorkerLedgers,
        wants_gpu: bool,
    ) -> None:
        self.cluster, self.make, self.ledgers = cluster, make, ledgers
        room = cluster.room()
        self.share: Share = room.share(count, wants_gpu)
        self.claim = room.claim(self.share)
        self.members = [Member(number) for number in range(count)]
        self.again: deque[Task] = deque()  # of the dead, to be asked by the living
        self.done: list[Done] = []  # not yet taken by `step`
        self.tries: dict[int, int] = {}
        self.facts: Facts | None = None
        self.longest: int | None = None  # while generating
        self.drawn_before = 0
        self.deaths = 0

    # -- what the engine does with it ---------------------------------------------------------------------------------

    def start(self) -> Facts:
        """Brings every worker to life; returns once all are open. Raises what their engines raise."""
        for member in self.members:
            self._live(member)
        self._until_idle()
        assert self.facts is not None
        return self.facts

    def begin(self, longest: int) -> None:
        """Lets all generate; `step` gives what they finish."""
        self._until_idle()
        self.longest = longest
        for member in self.members:
            self._begin(member)

    def step(self, take: Callable[[int], tuple[list[Task], bool]]) -> list[Done]:
        """Feeds those that are free by `take(room) -> (tasks, whether there may be more)`; what is finished since."""
        for member in self.members:
            if member.phase == "working" and member.call is None:
                again = [self.again.popleft() for _ in range(min(member.room, len(self.again)))]
                fresh, more = take(member.room - len(again))
                self._feed(member, [*again, *fresh], more)
        if not self.done:
            self._news(STEP_S)
        done, self.done = self.done, []
        return done

    def in_flight(self) -> int:
        """Requests that are with a worker, waiting for one after a death, or finished and not yet taken."""
        return len(self.again) + len(self.done) + sum(len(member.tasks) for member in self.members)

    def finish(self) -> list[dict[str, Any]]:
        """Ends generating with nothing in flight; the engines' records of it. Workers stay open."""
        self.longest = None
        told: list[dict[str, Any]] = []
        for member in self.members:
            while member.phase in ("beginning", "working") and member.call is not None:
                self._take(member)  # nothing is in flight: it brings nothing
            if member.phase == "working":
                self._count(member)
                told += self._finished(member)
        return told

    def ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What an engine says of a text or of itself (`Worker.look`); waits for one that is just coming to life."""
        if self.is_gone:
            self.start()
        while True:  # ends with an answer, or where a worker dies too often (`_died`)
            for member in self.members:
                if member.phase in ("idle", "working"):
                    try:
                        return self._get(member.actor.look.remote(name, *arguments, **options))
                    except self._deadly as error:
                        self._died(member, error)
            self._news(STEP_S)

    def send_scores(self, number: int, texts: list[Scored]) -> Any:
        """A call that reads probabilities on one worker."""
        member = self.members[number]
        while member.phase in ("placing", "opening"):
            self._news(STEP_S)
        return member.actor.score.remote(texts)

    def receive_scores(self, number: int, call: Any) -> list[tuple[float, ...]] | None:
        """What such a call gave; None where its worker died, and with it all that was sent to it."""
        try:
            found = self._get(call)
        except self._deadly as error:
            self._died(self.members[number], error)
            return None
        self.members[number].deaths = 0
        return found

    def kill(self) -> None:
        """Ends every worker at once; what they had finished is in their ledgers. `start` brings others to life."""
        for member in self.members:
            self._count(member)
            if member.actor is not None and self.cluster.ray.is_initialized():
                self.cluster.ray.kill(member.actor)
            self.members[member.number] = Member(member.number, phase="gone")
        self.longest = None
        self.again.clear()
        self.done.clear()
        self.tries.clear()

    @property
    def drawn(self) -> int:
        """Tokens drawn so far, by all lives of all workers."""
        return self.drawn_before + sum(member.drawn for member in self.members)

    @property
    def is_gone(self) -> bool:
        """Whether no worker lives, since `kill`."""
        return all(member.phase == "gone" for member in self.members)

    # -- one worker's calls -------------------------------------------------------------------------------------------

    def _live(self, member: Member) -> None:
        """A new life: a process somewhere on the cluster. Its ledger is its own."""
        options = {**self.claim, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": MOST_CALLS}
        actor = self.cluster.ray.remote(scheduling_strategy="SPREAD", **options)(Worker)
        member.actor, member.room, member.ledger = actor.remote(), LEAST_QUEUED, None
        self._call(member, "placing", member.actor.process_id.remote())

    def _begin(self, member: Member) -> None:
        member.ledger = self.ledgers.new_path()
        self._call(member, "beginning", member.actor.begin.remote(member.ledger, self.longest))

    def _feed(self, member: Member, tasks: list[Task], more: bool) -> None:
        member.tasks |= {task.number: task for task in tasks}
        bare = [task._replace(request=replace(task.request, tag=None)) for task in tasks]
        self._call(member, "working", member.actor.exchange.remote(bare, more))

    def _call(self, member: Member, phase: str, call: Any) -> None:
        member.phase, member.call, member.since = phase, call, time.monotonic()

    def _next(self, member: Member, value: Any) -> None:
        """What follows when a call has returned."""
        member.call = None
        if member.phase == "placing":
            self._call(member, "opening", member.actor.open.remote(self.make, self.share))
        elif member.phase == "opening":
            self._check(value)
            member.phase = "idle"
            if self.longest is not None:
                self._begin(member)
        elif member.phase == "beginning":
            member.phase = "working"
        elif isinstance(value, Reply):
            member.room, member.drawn = value.room, value.drawn
            for number, completion in value.done:
                self._done(member, member.tasks.pop(number), completion)

    def _done(self, member: Member, task: Task, completion: Completion) -> None:
        member.deaths = 0
        self.tries.pop(task.number, None)
        self.done.append((task, replace(completion, request=task.request)))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _news(self, wait_s: float) -> None:
        """Waits for a call to return, and takes up each that has."""
        busy = {member.call: member for member in self.members if member.call is not None}
        if not busy:
            return
        ready, _ = self.cluster.ray.wait(list(busy), num_returns=1, timeout=wait_s)
        if len(busy) > 1:  # whoever else has returned by now
            ready, _ = self.cluster.ray.wait(list(busy), num_returns=len(busy), timeout=0)
        for call in ready:
            self._take(busy[call])
        self._check_placed()

    def _take(self, member: Member) -> None:
        try:
            value = self._get(member.call)
        except self._deadly as error:
            self._died(member, error)
        else:
            self._next(member, value)

    def _until_idle(self) -> None:
        while any(member.phase != "idle" for member in self.members):
            self._news(STEP_S)

    def _finished(self, member: Member) -> list[dict[str, Any]]:
        """Lets one worker end generating: its engine's record, none if it died of that."""
        try:
            told = self._get(member.actor.finish.remote())
        except self._deadly as error:
            self._died(member, error)
            return []
        member.phase, member.ledger = "idle", None
        return [told]

    def _get(self, call: Any) -> Any:
        """The value of a call. Raises what the worker raised, or one of `_deadly` where it died."""
        errors = self.cluster.ray.exceptions
        try:
            return self.cluster.ray.get(call)
        except errors.RayTaskError as error:
            if isinstance(error.cause, OjakError):
                raise error.cause from None
            why = f"{type(error.cause).__name__}: {error.cause}"[:500]
            raise OjakError("a worker of Ray failed", why=why) from error

    @property
    def _deadly(self) -> tuple[type[Exception], ...]:
        return (self.cluster.ray.exceptions.RayError,)

    # -- deaths and refusals ------------------------------------------------------------------------------------------

    def _died(self, member: Member, error: Exception) -> None:
        """Takes over what a worker leaves: what it had finished is done, the rest is asked again. It lives again."""
        self.deaths += 1
        self._count(member)
        member.deaths += 1
        self.cluster.ray.kill(member.actor)  # one that only did not answer must not go on
        left, member.tasks = member.tasks, {}
        self.ledgers.take_up(member.ledger)
        for task in left.values():
            found = self.ledgers.find(task.request, task.key)
            if found:
                self._done(member, task, found)
            else:
                self._ask_again(task, error)
        if member.deaths >= MOST_DEATHS:
            raise self._give_up(_reason(error))
        self._live(member)

    def _ask_again(self, task: Task, error: Exception) -> None:
        self.tries[task.number] = tries = self.tries.get(task.number, 0) + 1
        if tries >= MOST_TRIES:
            raise self._give_up(f"one request was there at {tries} deaths; the last: {_reason(error)}")
        self.again.append(task)

    def _count(self, member: Member) -> None:
        self.drawn_before += member.drawn
        member.drawn = 0

    def _check(self, facts: Facts) -> None:
        """Raises UsageError where a worker runs another ojak or another model than the others."""
        if facts.version != version():
            raise UsageError(
                "a worker of Ray runs another ojak",
                why=f"version {facts.version} there, {version()} here",
                fix="install one version on every machine",
            )
        self.facts = self.facts or facts
        if facts.identity != self.facts.identity:
            raise UsageError(
                "the workers of Ray run different models",
                why=f"{facts.identity} on one, {self.facts.identity} on another",
                fix="put the same files on every machine; on machines that compute alike",
            )

    def _check_placed(self) -> None:
        late = time.monotonic() - PLACE_WAIT_S
        if any(member.phase == "placing" and member.since < late for member in self.members):
            asked = f"{self.claim['num_cpus']:g} cores and {self.claim['num_gpus']} GPUs each"
            raise EngineUnavailable(
                f"Ray has found no place for {len(self.members)} workers in {PLACE_WAIT_S:.0f} s",
                why=f"they ask for {asked}; others may hold the cluster",
                fix="lower --workers, or wait until the cluster is free",
            )

    def _give_up(self, why: str) -> EngineUnavailable:
        return EngineUnavailable(
            "the workers of Ray keep dying",
            why=why,
            fix="what is finished is kept; try fewer --workers (each has its own copy of the model), see Ray's logs",
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__
