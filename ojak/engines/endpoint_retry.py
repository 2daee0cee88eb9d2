"""When to ask an endpoint again, how long to wait, and how many requests to have under way."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Kind = Literal["busy", "broken", "slow", "denied", "final"]
AGAIN = {"busy": 30, "broken": 8, "slow": 2}
FIRST_LIMIT = 4
SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")

T = TypeVar("T")


class Trouble(Exception):
    """An attempt that brought no answer.

    kind: "busy" (429), "broken" (5xx, a connection that fails, an answer that cannot be read), "slow" (a deadline),
    "denied" (401, 403, 404 ...: about us or the route) or "final" (about this request); the last two are not repeated.
    `crowds`: a sign that fewer requests should be under way. `retry_after_s`: what the server asked for.
    """

    def __init__(
        self,
        kind: Kind,
        what: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        crowds: bool = False,
    ) -> None:
        super().__init__(what)
        self.kind: Kind = kind
        self.what, self.status, self.retry_after_s, self.crowds = what, status, retry_after_s, crowds


@dataclass(frozen=True, slots=True)
class Policy:
    """Deadlines in seconds, repeats of one request for each kind of trouble, caps.

    An answer comes in one piece, so that `read_s` covers the time it takes to write it. Waits are drawn between 0 and
    `base_s` doubled at each repeat, at most `cap_s`; a server that asks for more than `patience_s` is taken for gone.
    """

    connect_s: float = 10.0
    read_s: float = 600.0
    total_s: float = 900.0
    again: Mapping[str, int] = field(default_factory=lambda: dict(AGAIN))
    base_s: float = 0.5
    cap_s: float = 60.0
    patience_s: float = 900.0
    most: int = 64
    reply_bytes: int = 8 << 20
    failures_in_a_row: int = 16

    def wait_s(self, repeats: int, retry_after_s: float | None) -> float:
        """Full jitter, on top of what the server asks for: one that says "in a second" every time is spared, too."""
        return (retry_after_s or 0.0) + random.uniform(0, min(self.cap_s, self.base_s * 2**repeats))


class Pace:
    """How many requests may be under way: more with each answer, half as many when the server is crowded (AIMD).

    Until the first sign of crowding the number doubles with each round of answers, then it grows by one a round.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(min(FIRST_LIMIT, most))
        self._growing_fast = True
        self._lowered = self._not_before = 0.0

    @property
    def limit(self) -> int:
        return int(self._limit)

    def worked(self) -> None:
        self._limit = min(self.most, self._limit + (1 if self._growing_fast else 1 / self._limit))

    def crowded(self, sent: float) -> None:
        """`sent`: when the attempt began; one sent before the last cut says nothing about the pace since."""
        if sent >= self._lowered:
            self._limit = max(1.0, self._limit / 2)
            self._growing_fast = False
            self._lowered = time.monotonic()

    def hold(self, seconds: float) -> None:
        """No request begins before so many seconds have passed."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def gate(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)


async def persist(send: Callable[[], Awaitable[T]], policy: Policy, pace: Pace, tally: Counter[str]) -> T:
    """What `send` gives at last. Raises the last Trouble when its kind's repeats are spent; `tally` counts kinds."""
    spent: Counter[str] = Counter()
    while True:
        await pace.gate()
        begin = time.monotonic()
        try:
            found = await send()
        except Trouble as trouble:
            tally[trouble.kind] += 1
            if trouble.crowds:
                pace.crowded(begin)
            asked_for = trouble.retry_after_s
            if (
                spent[trouble.kind] >= policy.again.get(trouble.kind, 0)
                or (asked_for or 0) > policy.patience_s
            ):
                raise
            wait_s = policy.wait_s(spent[trouble.kind], asked_for)
            spent[trouble.kind] += 1
            if asked_for:
                pace.hold(asked_for)
            await asyncio.sleep(wait_s)
        else:
            pace.worked()
            return found


def read_retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or a date. None for what is neither."""
    text = (value or "").strip()[:64]
    if SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
