"""Many requests over one engine and one ledger: what every way of synthesis shares.

A run has rows; a row needs requests, one after another. Here they are sent, answered and recorded: each finished
request is in the ledger before its slot is used again, nothing that is there is sent again, and a budget or a signal
stops the run at once, with rows in flight. What the rows are, and what becomes of an answer, is for the subclass.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from ojak._progress import Listener, Progress
from ojak.engines.base import Engine
from ojak.engines.completions import key_of
from ojak.engines.native import row_seed
from ojak.ledger import Entry, Ledger
from ojak.model.request import Completion, Request
from ojak.records import Record, Rejected
from ojak.synthesize.config import RunConfig

COUNT_EVERY_S = 5.0


class Step(NamedTuple):
    """Which request of its row: `side` is "instruction" or "response" (or the run's own), turns count from 1."""

    side: str
    turn: int = 1
    sample: int = 0

    @property
    def name(self) -> str:
        """Side and turn, the first of which needs no number: "instruction", "response-2"."""
        return self.side if self.turn == 1 else f"{self.side}-{self.turn}"

    @property
    def kind(self) -> str:
        """The name, and the number of the sample from the second on: "response.3". What the ledger calls it."""
        return f"{self.name}.{self.sample}" if self.sample else self.name

    @classmethod
    def of(cls, kind: str) -> Step:
        """The inverse of `kind`."""
        name, _, sample = kind.partition(".")
        side, _, turn = name.partition("-")
        return cls(side, int(turn or 1), int(sample or 0))


class _Halt(Exception):
    """Leaves the engine at once, with rows in flight, when it asks for the next request."""


class Asking:
    """The requests of one run. The `tag` of each is (row, kind), kind being that of a `Step`.

    A subclass gives what raises NotImplementedError here; it asks by `_send`, and says of each row once that it is
    `_finished`. `sides`: those of its steps.
    """

    sides: ClassVar[tuple[str, ...]] = ("instruction", "response")

    def __init__(
        self, config: RunConfig, engine: Engine, ledger: Ledger, listener: Listener | None, rows: int
    ) -> None:
        self.settings, self.engine, self.ledger, self.listener = config, engine, ledger, listener
        self.in_flight = 0
        self.begun = 0  # rows
        self.ready: deque[Request] = deque()
        self.stopped: str | None = None
        self.busy = False  # doing its books: a signal waits until they are done
        self.progress = Progress(rows)
        self.ledger_seconds = 0.0
        self.new_tokens = 0
        self.counted_tokens = 0
        self.drawn_before = engine.drawn_tokens
        self.counted_s = 0.0
        self.started = time.perf_counter()

    # -- for the subclass ---------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Begins the next row; False if there is none now."""
        raise NotImplementedError

    def _take(self, row: int, step: Step, entry: Entry) -> None:
        """An answer comes in."""
        raise NotImplementedError

    def _longest(self) -> int:
        """The most tokens of prompt and completion together, of any request."""
        raise NotImplementedError

    def _row_tokens(self) -> int:
        """The most tokens that a row may take, over all its requests."""
        raise NotImplementedError

    def _phase(self) -> str:
        """What the progress says is being done."""
        return "sampling"

    def accepted(self) -> Iterator[Record]:
        """The records of the rows that are kept, in row order."""
        raise NotImplementedError

    def rejected(self) -> Iterator[Rejected]:
        """Those that are not, but for the failed ones."""
        raise NotImplementedError

    def failed(self) -> int:
        """How many rows failed."""
        raise NotImplementedError

    def pending(self) -> int:
        """How many rows are not finished."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What the manifest tells of this run beside what it tells of every run."""
        raise NotImplementedError

    def seed(self, row: int, step: Step) -> int:
        return row_seed(self.settings.seed, row, step.name, step.sample)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs until every row is finished or a budget is spent (`stopped` says which)."""
        completions = self.engine.generate(self._requests(), longest=self._longest())
        self.drawn_before = self.engine.drawn_tokens  # an engine may count anew once it knows the length
        with contextlib.suppress(_Halt):
            for completion in completions:
                self.busy = True
                self._record(completion)
                self.busy = False
                if self.stopped:
                    break

    def settle(self) -> None:
        """Adds the time not yet counted to the ledger's totals. After `run`, however it ended."""
        self._count_time()
        if not self.pending():  # the budget went with the last row: nothing was left out
            self.stopped = None

    def _requests(self) -> Iterator[Request | None]:
        """What the engine should do next: what rows that are begun need, then new rows, in their order.

        An engine asks at every step at which it has room, so that the budget is looked at even while nothing finishes.
        """
        while True:
            self._budget()
            if self.stopped:
                raise _Halt
            if self.ready:
                self.in_flight += 1
                yield self.ready.popleft()
                continue
            if not self._is_full() and self._begin():
                continue
            if not self.in_flight:
                return
            yield None

    def _begin(self) -> bool:
        """Begins the next row; False if there is none now."""
        self.busy = True
        opened = self._open()
        self.busy = False
        self.begun += opened
        return opened

    def _is_full(self) -> bool:
        """Whether the token budget is too small for one more row beside those that are begun.

        So many rows at once that all of them fit the budget, each at its longest: at least one is then whole when it is
        spent. With a row for each slot of a large engine, a small budget would end with every row half written.
        """
        limit, unfinished = self.settings.limit_tokens, self.begun - self.progress.rows_done
        return limit is not None and self.in_flight > 0 and (unfinished + 1) * self._row_tokens() > limit

    def _send(self, request: Request) -> None:
        """Asks the engine, or takes the answer that the ledger has."""
        row, kind = request.tag
        known = self.ledger.get(self._key(request), request.max_tokens)
        if known and not (known.state == "failed" and self.settings.retry_failed):
            self._take(row, Step.of(kind), known)
        else:
            self.ready.append(request)

    # -- the record ---------------------------------------------------------------------------------------------------

    def _key(self, request: Request) -> str:
        return key_of(request, self.engine.identity, sample=Step.of(request.tag[1]).sample)

    def _record(self, completion: Completion) -> None:
        """Commits a finished request to the ledger, then hands it to its row."""
        request = completion.request
        (row, kind), error = request.tag, completion.error
        payload = {"seed": request.seed, "sampling": request.sampling.to_dict()}
        entry = Entry(
            key=self._key(request),
            row=row,
            kind=kind,
            state="ok" if error is None else "failed",
            max_tokens=request.max_tokens,
            finish_reason=completion.finish_reason if error is None else None,
            text=completion.text,
            token_count=completion.token_count,
            prompt_tokens=completion.prompt_tokens,
            payload=payload if error is None else {**payload, "error": error},
        )
        begin = time.perf_counter()
        self.ledger.put(entry)
        self.ledger_seconds += time.perf_counter() - begin
        self.in_flight -= 1
        self.new_tokens += entry.token_count
        self._take(row, Step.of(kind), entry)
        self._budget()
        self._tell()

    def _finished(self, reason: str | None) -> None:
        """A row has ended: kept, or rejected for `reason`."""
        self.progress.rows_done += 1
        if reason is None:
            self.progress.accepted += 1
        else:
            self.progress.rejected[reason] += 1

    def _budget(self) -> None:
        settings = self.settings
        minutes = (time.perf_counter() - self.started) / 60
        if settings.limit_tokens is not None and self._drawn() >= settings.limit_tokens:
            self.stopped = "limit_tokens"
        elif settings.limit_minutes is not None and minutes >= settings.limit_minutes:
            self.stopped = "limit_minutes"

    def _drawn(self) -> int:
        """Tokens that this run has cost, those of rows in flight too."""
        return self.engine.drawn_tokens - self.drawn_before

    def _tell(self) -> None:
        """Adds the time since the last call to the ledger's totals now and then, and shows the progress."""
        if self._uncounted_s() >= COUNT_EVERY_S:
            self._count_time()
        state, seconds = self.progress, max(time.perf_counter() - self.started, 1e-9)
        state.completion_tokens = self.new_tokens
        state.tokens_per_s = self._drawn() / seconds
        state.phase = self._phase()
        share = state.rows_done / max(1, state.rows_total)
        state.eta_s = seconds * (1 - share) / share if share else None
        if self.listener:
            self.listener.update(state)

    def _uncounted_s(self) -> float:
        return time.perf_counter() - self.started - self.counted_s

    def _count_time(self) -> None:
        seconds, tokens = self._uncounted_s(), self.new_tokens - self.counted_tokens
        self.counted_s += seconds
        self.counted_tokens += tokens
        self.ledger.add_run(seconds, tokens)
