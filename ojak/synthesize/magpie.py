"""Magpie: an aligned model, given only the left side of its own chat template, writes a user's turn, and answers it.

(arXiv 2406.08464, section 2.) Each row goes through the same steps; rows run side by side on one engine:

    ask       pre-query text -> instruction, at the temperature and top-p of the row's grid cell
    judge     in row order: rules clean or reject it, duplicates of earlier rows are dropped
    answer    pre-query + instruction + post-query -> response, greedy by default
    check     rules reject responses that are empty, cut or broken

Nothing is paid for twice: every finished request is in the ledger before its slot is used again, and each request's
seed is a function of the run's seed and the row. So a run that was killed continues where it stopped and ends with the
same data as one that was not.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ojak._progress import Listener, Progress
from ojak.chat import ChatPrefix
from ojak.engines.base import Engine, require
from ojak.engines.native import row_seed
from ojak.errors import InputRefused
from ojak.ledger import Entry, Ledger, request_key
from ojak.model.request import Completion, Request, Sampling
from ojak.records import Conversation, Message, Rejected, record_id
from ojak.rules import check_response, sanitize
from ojak.similarity import DuplicateIndex
from ojak.synthesize.config import MagpieConfig

PROBE_ROWS = 16  # the first rows show whether the model writes a user's turns at all
SLACK_TOKENS = 64  # cleaning an instruction can only shorten it, but shorter text may be more tokens
COUNT_EVERY_S = 5.0
PROBE_REFUSED = 0.8  # share of them that rules reject, from which on the model is refused


@dataclass
class Row:
    """One row of the run, from its instruction to its response."""

    number: int
    sampling: Sampling
    asked: Entry | None = None
    instruction: str = ""
    edits: tuple[str, ...] = ()
    answered: Entry | None = None
    reason: str | None = None  # why it is rejected
    stage: str = "instruction"

    @property
    def finished(self) -> bool:
        return self.reason is not None or self.answered is not None


class _Halt(Exception):
    """Leaves the engine at once, with rows in flight, when it asks for the next request."""


class MagpieRun:
    """The rows of one run and the requests they need, over one engine and one ledger."""

    def __init__(
        self, config: MagpieConfig, engine: Engine, ledger: Ledger, listener: Listener | None = None
    ) -> None:
        require(engine, "magpie", "raw_prompt")
        self.config, self.engine, self.ledger, self.listener = config, engine, ledger, listener
        self.prefix: ChatPrefix = engine.chat_prefix(config.system_text)
        self.rows = [Row(number, self._sampling(number)) for number in range(config.rows)]
        self.duplicates = DuplicateIndex()
        self.judged = 0  # rows up to here are judged
        self.asking = 0  # rows up to here are asked
        self.in_flight = 0
        self.ready: deque[Request] = deque()
        self.stopped: str | None = None
        self.busy = False  # doing its books: a signal waits until they are done
        self.progress = Progress(config.rows)
        self.ledger_seconds = 0.0
        self.new_tokens = 0
        self.counted_tokens = 0
        self.drawn_before = engine.drawn_tokens
        self.counted_s = 0.0
        self.started = time.perf_counter()

    # -- the method -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs until every row is finished or a budget is spent (`stopped` says which)."""
        completions = self.engine.generate(self._requests(), longest=self._longest())
        self.drawn_before = self.engine.drawn_tokens  # an engine may count anew once it knows the length
        with contextlib.suppress(_Halt):
            for completion in completions:
                self.busy = True
                self._record(completion)
                self._judge()
                self.busy = False
                if self.stopped:
                    break

    def settle(self) -> None:
        """Adds the time not yet counted to the ledger's totals. After `run`, however it ended."""
        self._count_time()
        if all(row.finished for row in self.rows):  # the budget went with the last row: nothing was left out
            self.stopped = None

    def _requests(self) -> Iterator[Request | None]:
        """What the engine should do next: responses that are ready first, then instructions, in row order.

        An engine asks at every step at which it has room, so that the budget is looked at even while nothing finishes.
        """
        while True:
            self._budget()
            if self.stopped:
                raise _Halt
            if self.ready:
                self.in_flight += 1
                yield self.ready.popleft()
            elif self.asking < len(self.rows):
                row = self.rows[self.asking]
                self.asking += 1
                request = self._ask(row)
                row.asked = self._known(row, request)
                if row.asked is None:
                    self.in_flight += 1
                    yield request
                else:
                    self.busy = True
                    self._judge()
                    self.busy = False
            elif self.in_flight:
                yield None
            else:
                return

    def _ask(self, row: Row) -> Request:
        config, prefix = self.config, self.prefix
        return Request(
            prompt=prefix.pre_query,
            shared_prefix=prefix.pre_query,
            max_tokens=config.max_instruction_tokens,
            sampling=row.sampling,
            seed=row_seed(config.seed, row.number, "instruction", 0),
            stop_ids=prefix.stop_ids,
            stop_strings=prefix.stop_strings,
            keep=row.number,
            tag=(row.number, "instruction"),
        )

    def _answer(self, row: Row) -> Request:
        config, prefix = self.config, self.prefix
        return Request(
            prompt=f"{prefix.pre_query}{row.instruction}{prefix.post_query}",
            shared_prefix=prefix.pre_query,
            max_tokens=config.max_response_tokens,
            sampling=config.response_sampling,
            seed=row_seed(config.seed, row.number, "response", 0),
            stop_ids=prefix.stop_ids,
            stop_strings=prefix.stop_strings,
            reuse=row.number,
            tag=(row.number, "response"),
        )

    def _judge(self) -> None:
        """Judges instructions in row order, as far as they are there; what passes is asked back."""
        while self.judged < len(self.rows) and (row := self.rows[self.judged]).asked:
            self.judged += 1
            row.reason = self._verdict(row)
            if row.reason is None:
                row.stage = "response"
                request = self._answer(row)
                row.answered = self._known(row, request)
                if row.answered:
                    self._check(row)
                else:
                    self.ready.append(request)
            if row.finished:
                self._finished(row)
            if self.judged == PROBE_ROWS:
                self._probe()

    def _verdict(self, row: Row) -> str | None:
        """Why an instruction is rejected, or None; sets its cleaned text."""
        assert row.asked is not None
        if row.asked.state == "failed":
            return "failed"
        clean = sanitize(
            row.asked.text, row.asked.finish_reason or "", special_tokens=self.engine.special_tokens
        )
        row.instruction, row.edits = clean.text, clean.edits
        if clean.reason:
            return clean.reason
        duplicate = self.duplicates.add(row.number, clean.text)
        return f"duplicate_{duplicate.kind}" if duplicate else None

    def _check(self, row: Row) -> None:
        assert row.answered is not None
        if row.answered.state == "failed":
            row.reason = "failed"
            return
        text, reason = row.answered.text.strip(), row.answered.finish_reason or ""
        row.reason = check_response(
            text, reason, instruction=row.instruction, special_tokens=self.engine.special_tokens
        )

    def _probe(self) -> None:
        """Refuses a model whose first rows are fragments, before more is spent on it."""
        first = self.rows[: self.judged]
        reasons_found = (row.reason for row in first if row.stage == "instruction" and row.reason)
        bad = Counter(reason for reason in reasons_found if not reason.startswith(("duplicate", "failed")))
        if sum(bad.values()) < PROBE_REFUSED * len(first):
            return
        reasons = ", ".join(f"{reason}: {count}" for reason, count in bad.most_common(3))
        examples = [repr(row.asked.text[:60]) for row in first if row.reason and row.asked][:3]
        raise InputRefused(
            "this model does not write a user's turns from its chat template",
            why=f"of its first {len(first)} instructions {sum(bad.values())} are unusable "
            f"({reasons}), such as {', '.join(examples)}",
            fix="use an instruction-tuned model with its own chat template, a lower temperature (--grid 0.7:1.0), "
            "or a larger --max-instruction-tokens if they are cut",
        )

    # -- the record -------------------------------------------------------------------------------------------------

    def _known(self, row: Row, request: Request) -> Entry | None:
        entry = self.ledger.get(self._key(row, request), request.max_tokens)
        return None if entry and entry.state == "failed" and self.config.retry_failed else entry

    def _key(self, row: Row, request: Request) -> str:
        return request_key(
            prompt=request.prompt,
            sampling=request.sampling.to_dict(),
            seed=request.seed,
            stop_ids=request.stop_ids,
            stop_strings=request.stop_strings,
            sample=0,
            **self.engine.identity,
        )

    def _record(self, completion: Completion) -> None:
        """Commits a finished request to the ledger, then hands it to its row."""
        request = completion.request
        number, kind = request.tag
        row, error = self.rows[number], completion.error
        payload = {"seed": request.seed, "sampling": request.sampling.to_dict()}
        entry = Entry(
            key=self._key(row, request),
            row=number,
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
        if kind == "instruction":
            row.asked = entry
        else:
            row.answered = entry
            self._check(row)
            self._finished(row)
        self._budget()
        self._tell()

    def _finished(self, row: Row) -> None:
        self.progress.rows_done += 1
        if row.reason is None:
            self.progress.accepted += 1
        else:
            self.progress.rejected[row.reason] += 1

    def _budget(self) -> None:
        config = self.config
        minutes = (time.perf_counter() - self.started) / 60
        if config.limit_tokens is not None and self._drawn() >= config.limit_tokens:
            self.stopped = "limit_tokens"
        elif config.limit_minutes is not None and minutes >= config.limit_minutes:
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
        state.phase = "sampling" if self.judged < len(self.rows) else "answering"
        share = state.rows_done / len(self.rows)
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

    def _longest(self) -> int:
        """The most tokens of prompt and completion together, of either request; cleaning adds a few at most."""
        config, count = self.config, self.engine.count_tokens
        around = count(self.prefix.pre_query) + count(self.prefix.post_query) + SLACK_TOKENS
        return around + config.max_instruction_tokens + config.max_response_tokens

    def _sampling(self, number: int) -> Sampling:
        temperature, top_p = self.config.cells[number % len(self.config.cells)]
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            first_temperature=self.config.first_temperature,
            banned_first=self.engine.first_tokens(self.config.ban_first) if self.config.ban_first else (),
        )

    # -- what comes out -----------------------------------------------------------------------------------------------

    def accepted(self) -> Iterator[Conversation]:
        for row in self.rows:
            if row.finished and row.reason is None and row.answered:
                yield Conversation(
                    id=self._id(row),
                    messages=[*self._turns(row), {"role": "assistant", "content": row.answered.text.strip()}],
                    source="magpie",
                    meta=self._meta(row),
                )

    def rejected(self) -> Iterator[Rejected]:
        for row in self.rows:
            if row.reason not in (None, "failed") and row.asked:
                answered = row.answered
                reply: list[Message] = [{"role": "assistant", "content": answered.text}] if answered else []
                yield Rejected(
                    id=self._id(row),
                    reason=row.reason,
                    stage=row.stage,
                    text=answered.text if answered else row.asked.text,
                    messages=[*self._turns(row), *reply],
                    source="magpie",
                    meta=self._meta(row),
                )

    def _id(self, row: Row) -> str:
        return record_id(self.config.run_key(self.engine.identity), row.number)

    def _turns(self, row: Row) -> list[Message]:
        system = self.config.system_text
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*opening, {"role": "user", "content": row.instruction}]

    def _meta(self, row: Row) -> dict[str, Any]:
        sides = {"instruction": row.asked, "response": row.answered}
        found = {side: entry for side, entry in sides.items() if entry}
        return {
            "method": "magpie",
            "row": row.number,
            **self.engine.identity,
            "seed": {side: entry.payload["seed"] for side, entry in found.items()},
            "sampling": {side: entry.payload["sampling"] for side, entry in found.items()},
            "finish_reason": {side: entry.finish_reason for side, entry in found.items()},
            "tokens": {side: entry.token_count for side, entry in found.items()},
            "prompt_tokens": {side: entry.prompt_tokens for side, entry in found.items()},
            "edits": list(row.edits),
            "raw": {side: entry.text for side, entry in found.items() if side == "instruction"},
        }
