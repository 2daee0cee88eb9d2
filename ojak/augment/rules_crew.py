"""Several processes that make pairs by rules (`rules_worker.py`), and the documents in the order in which they came.

What becomes of a document depends on nothing but the document, and not on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeAlias

from ojak._child import Child, Ended, in_turn, workers
from ojak.augment.rounds import Work
from ojak.augment.rules_worker import make, take
from ojak.augment.verify import VerifyConfig
from ojak.errors import OjakError
from ojak.rules.rule import MAX_CHARACTERS

MODULE = "ojak.augment.rules_worker"
BATCH = 32  # documents that are sent together
FEW = 256  # documents that are done before a process has started
MEMORY_BYTES = 3 * 2**30  # of a process, beside the libraries
CPU_S = 60.0  # for one document: far more than the first `MAX_CHARACTERS` take

_Sent: TypeAlias = tuple[Work, bytes]  # a document, and its text as it is sent
Told = Callable[[int, int], None]  # hears of documents that are done with, and tokens


class RulesCrew:
    """The processes of one run, started when there is work for them. A context manager.

    seed, most: see `make_pairs`. thresholds: of the check by rules, None for no check. size: how many processes; 1 is
    this one alone.
    """

    def __init__(self, seed: int, most: int, thresholds: VerifyConfig | None, size: int | None) -> None:
        self._seed, self._most, self._thresholds = seed, most, thresholds
        self._size = workers(size)
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.close()
        self._children = []

    def work(self, works: Sequence[Work], told: Told = lambda documents, tokens: None) -> None:
        """Makes the pairs of the documents; `told` hears of each that is done. Raises OjakError if a process ends."""
        here, sent = list(works), list[_Sent]()
        if self._size > 1 and len(works) >= FEW:
            found = [(work, _encoded(work)) for work in works]
            here = [work for work, text in found if text is None]
            sent = [(work, text) for work, text in found if text is not None]
        for work in here:
            make(work, seed=self._seed, most=self._most, thresholds=self._thresholds)
            told(1, 0)
        while sent and len(self._children) < self._size:
            self._children.append(self._started())
        batches = (sent[begin : begin + BATCH] for begin in range(0, len(sent), BATCH))
        for _ in in_turn([_Maker(child) for child in self._children], batches):
            told(1, 0)

    def _started(self) -> Child:
        thresholds = None if self._thresholds is None else self._thresholds.model_dump(mode="json")
        settings = {"seed": self._seed, "most": self._most, "thresholds": thresholds}
        return Child(MODULE, settings, cpu_s=CPU_S, memory_bytes=MEMORY_BYTES)


class _Maker:
    """A process, and the batch that it is at."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._batch: Sequence[_Sent] = ()

    def give(self, batch: Sequence[_Sent], /) -> None:
        """Send it work. Raises OjakError."""
        self._batch = batch
        items = [{"id": work.document.id, "bytes": len(text)} for work, text in batch]
        try:
            self._child.send({"items": items}, b"".join(text for _, text in batch))
        except Ended as error:
            raise _died(batch[0][0], error) from error

    def replies(self) -> Iterator[Work]:
        """The documents of the batch, with what was made of them. Raises OjakError."""
        for work, _ in self._batch:
            try:
                take(work, self._child.line())
            except Ended as error:
                raise _died(work, error) from error
            yield work


def _encoded(work: Work) -> bytes | None:
    """What rules read of the text; None where it or the id is not Unicode, as JSON lines can hold half a character."""
    try:
        work.document.id.encode()
        return work.document.text[:MAX_CHARACTERS].encode()
    except UnicodeEncodeError:
        return None


def _died(work: Work, error: Ended) -> OjakError:
    return OjakError(
        f"the process that makes pairs of document {work.document.id!r} ended",
        why=error.detail,
        fix="run the same command again: it goes on; if it ends there again, leave the document out",
    )
