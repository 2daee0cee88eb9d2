"""Several workers (`worker.py`), and the documents in the order in which they came, whoever was first.

A worker that dies takes one document with it, the one that it was at; it is replaced, and the rest of its batch is
sent again. So what becomes of a document depends on nothing but the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ojak._child import Child, Ended, in_turn
from ojak.corpus.config import CorpusConfig
from ojak.corpus.profiles import languages
from ojak.corpus.reading import Raw

MODULE = "ojak.corpus.worker"
BATCH_DOCUMENTS, BATCH_BYTES = 64, 2**19
MOST_CHARACTERS = 8 * 2**20  # of a text
CPU_S = 60.0  # for one document: eight million characters take half of it
MEMORY_BYTES = 3 * 2**30  # for one document, beside the libraries

Reply = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decided:
    """A raw document and what became of it: `text`, `title`, `language`, `reason` ("" if it stays), `detail`."""

    raw: Raw
    reply: Reply


class Crew:
    """The workers of one run. A context manager."""

    def __init__(
        self, config: CorpusConfig, *, cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._settings = {
            "profile": config.profile,
            "languages": languages(config),
            "most_characters": MOST_CHARACTERS,
        }
        self._cpu_s, self._memory_bytes = cpu_s, memory_bytes
        self._size = config.processes()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def decided(self, raws: Iterable[Raw]) -> Iterator[Decided]:
        """What becomes of each, in order."""
        workers = [_Worker(self._started) for _ in range(self._size)]
        for worker in workers:
            self._stack.callback(worker.close)
        yield from in_turn(workers, _batches(raws))

    def _started(self) -> Child:
        return Child(MODULE, self._settings, cpu_s=self._cpu_s, memory_bytes=self._memory_bytes)


class _Worker:
    """One place in the crew: a process, started when there is work and again when it has died, and its batch."""

    def __init__(self, start: Callable[[], Child]) -> None:
        self._start = start
        self._child: Child | None = None
        self._batch: Sequence[Raw] = ()

    def give(self, batch: Sequence[Raw]) -> None:
        """Send it work."""
        self._batch = batch
        try:
            self._send(batch)
        except Ended:
            self.close()  # `replies` finds it gone, and sends the batch to another

    def _send(self, batch: Sequence[Raw]) -> None:
        waiting = [raw for raw in batch if not raw.reason]
        if not waiting:
            return
        if self._child is None:
            self._child = self._start()
        header = {"items": [{"kind": raw.kind, "bytes": len(raw.data)} for raw in waiting]}
        self._child.send(header, b"".join(raw.data for raw in waiting))

    def replies(self) -> Iterator[Decided]:
        """What became of the batch."""
        for at, raw in enumerate(self._batch):
            yield Decided(raw, self._reply(raw, self._batch[at + 1 :]))
        self._batch = ()

    def _reply(self, raw: Raw, rest: Sequence[Raw]) -> Reply:
        if raw.reason:
            return _none(raw.reason, raw.detail)
        try:
            if self._child is None:
                self._send([raw, *rest])
            assert self._child is not None
            return self._child.line()
        except Ended as error:
            self.close()
            return _none(f"parse_{error.reason}", error.detail)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _none(reason: str, detail: str) -> Reply:
    return {"text": "", "title": "", "language": "", "reason": reason, "detail": detail}


def _batches(raws: Iterable[Raw]) -> Iterator[list[Raw]]:
    """Some at a time; one that is large is a batch of its own."""
    batch: list[Raw] = []
    size = 0
    for raw in raws:
        batch.append(raw)
        size += len(raw.data)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
