"""An engine that does nothing twice: what it finishes is in a ledger at once, and comes out of there if asked again.

For work that knows its questions beforehand and keeps only what follows from all the answers, such as a judge's: killed
at any time, the same command goes on after the last answer. (A synthesis keeps its rows' requests itself.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Any

from ojak._files import disk_errors
from ojak.chat import ChatPrefix
from ojak.engines.base import Capabilities, Engine, Scored
from ojak.engines.completions import completion_of, entry_of, key_of
from ojak.ledger import Entry, Ledger, request_key
from ojak.model.request import Completion, Request

WINDOW = (
    512  # texts that are read together and kept as one: as many as the native engine puts into its batches
)
Told = Callable[[int, bool], None]


@contextmanager
def remembering(
    engine: Engine, path: Path, told: Told = lambda _count, _fresh: None
) -> Iterator[Remembering]:
    """`engine` with the ledger `path`, which goes again once the work is done, and stays if an error ends it.

    `told` is called with the number of requests that are finished, and whether they are new. Raises what `Ledger` does.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Ledger(path) as ledger:
        try:
            yield Remembering(engine, ledger, told)
        except BaseException:
            ledger.discard_empty()
            raise
    for suffix in ("", "-wal", "-shm"):  # the last two where another process does the same work
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class Remembering:
    """An engine and the ledger of what it has finished. Requests must not wait for completions (no None among them)."""

    def __init__(self, engine: Engine, ledger: Ledger, told: Told) -> None:
        self.engine, self.ledger, self.told = engine, ledger, told
        self.capabilities: Capabilities = engine.capabilities
        self._numbers = count()

    @property
    def identity(self) -> dict[str, Any]:
        return self.engine.identity

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.engine.special_tokens

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.engine.stop_ids

    @property
    def context_tokens(self) -> int | None:
        return self.engine.context_tokens

    @property
    def drawn_tokens(self) -> int:
        return self.engine.drawn_tokens

    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        return self.engine.chat_prefix(system, turns=turns)

    def count_tokens(self, text: str) -> int:
        return self.engine.count_tokens(text)

    def first_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        return self.engine.first_tokens(texts)

    def provenance(self) -> dict[str, Any]:
        return self.engine.provenance()

    def stats(self) -> dict[str, Any]:
        return self.engine.stats()

    def forget(self) -> None:
        """Empties the ledger: the caller has what follows from it."""
        self.ledger.clear()

    # -- texts to be written ------------------------------------------------------------------------------------------

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        """As the protocol has it. The engine is not made ready where nothing is left for it. Failures are not kept."""
        known: deque[Completion] = deque()
        fresh = self._fresh(requests, known)
        for first in fresh:
            for completion in self.engine.generate(chain([first], fresh), longest=longest):
                self._keep(completion)
                yield from _drained(known)
                yield completion
        yield from _drained(known)

    def _fresh(
        self, requests: Iterator[Request | None], known: deque[Completion]
    ) -> Iterator[Request | None]:
        """The requests that are not in the ledger; the completions of the others go into `known`."""
        for request in requests:
            entry = self.ledger.get(self._key(request), request.max_tokens) if request else None
            if request is None or entry is None:
                yield request
            else:
                known.append(completion_of(entry, request))
                self.told(1, False)

    def _keep(self, completion: Completion) -> None:
        if completion.error is None:
            self.ledger.put(entry_of(self._key(completion.request), completion, next(self._numbers)))
        self.told(1, True)

    def _key(self, request: Request) -> str:
        return key_of(request, self.identity)

    # -- texts to be read ---------------------------------------------------------------------------------------------

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        """As the protocol has it. Whole windows are kept: what an engine reads together may share rounding errors."""
        stream = iter(texts)
        while window := list(islice(stream, WINDOW)):
            key = request_key(read=[(text.prompt, text.continuation) for text in window], **self.identity)
            entry = self.ledger.get(key, 0)
            found = entry.payload["logprobs"] if entry else list(self.engine.score(window))
            if entry is None and all(math.isfinite(value) for values in found for value in values):
                self.ledger.put(_window_entry(key, found, next(self._numbers)))
            self.told(_prompts(window), entry is None)
            yield from map(tuple, found)


def _window_entry(key: str, found: Sequence[Sequence[float]], number: int) -> Entry:
    return Entry(
        key=key,
        row=number,
        kind="score",
        state="ok",
        max_tokens=0,
        finish_reason=None,
        text="",
        token_count=0,
        prompt_tokens=0,
        payload={"logprobs": found},
    )


def _prompts(window: Sequence[Scored]) -> int:
    """Labels of one question count as one request: they are read at once."""
    return 1 + sum(text.prompt != before.prompt for before, text in pairwise(window))


def _drained(known: deque[Completion]) -> Iterator[Completion]:
    while known:
        yield known.popleft()
