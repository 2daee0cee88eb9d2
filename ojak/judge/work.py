"""How much a calibration asks, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from ojak._progress import Listener, Progress
from ojak.judge.prompts import Question, Row

CHARACTERS_PER_TOKEN = 4.2
AROUND_TOKENS = 60  # of a question about a row, beside the row's texts and what is the same for all rows


class Work(NamedTuple):
    """Requests, and the tokens that are read and written for them, about."""

    requests: int
    tokens: float


def asking(
    question: Question, rows: Sequence[Row], *, scores: bool, reason_tokens: int | None = None
) -> Work:
    """To ask it about rows: free text is written, then the labels are read; without `scores` all is written at once.

    reason_tokens: of each free text, None for the question's own number, 0 for none.
    """
    most = question.reason_tokens if reason_tokens is None else reason_tokens
    free = most * len(question.fields)
    each = (free > 0 or not scores) + scores
    read = sum(AROUND_TOKENS + sum(map(len, row)) / CHARACTERS_PER_TOKEN for row in rows)
    return Work(each * len(rows), each * read + free * len(rows))


def reading(rows: Sequence[Row]) -> Work:
    """To read their answers, with the instruction and without (which counts as nothing: one prompt for all)."""
    return Work(
        len(rows), sum(len(row.instruction) + 2 * len(row.response) for row in rows) / CHARACTERS_PER_TOKEN
    )


class Meter:
    """Counts requests, and shows them to a listener. The time left goes by those that are new."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener
        self.state = Progress(rows_total=0, unit="requests", reads=True)
        self.new = 0
        self.began: float | None = None

    @property
    def recalled(self) -> int:
        """Requests that were finished before."""
        return self.state.rows_done - self.new

    def begin(self, phase: str, total: int | None = None) -> None:
        """The next thing is done; `total`: of all requests."""
        self.state.phase = phase
        self.state.rows_total = self.state.rows_total if total is None else total
        self.began = self.began or time.monotonic()

    def add(self, count: int, is_new: bool) -> None:
        """So many more are finished, or were before."""
        state, now = self.state, time.monotonic()
        if not self.new:
            self.began = self.began if is_new else now  # what is only looked up takes no time
        self.new += count * is_new
        state.rows_done += count
        state.rows_total = max(state.rows_total, state.rows_done)
        if self.new and self.began is not None:
            state.eta_s = (now - self.began) / self.new * (state.rows_total - state.rows_done)
        if self.listener:
            self.listener.update(state)
