"""Reading probabilities on many workers: texts go out in bundles, numbers come back in the order of the texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ojak.engines.base import Scored
from ojak.engines.ray_crew import Crew

BUNDLE = 32  # texts
BUNDLES_AHEAD = 2  # for each worker: one that is read, one that waits


@dataclass
class _Bundle:
    texts: list[Scored]
    call: Any = None
    worker: int = 0


def scores(crew: Crew, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
    """The log-probabilities of each text. A worker that dies lives again, and its bundles are sent again."""
    source = iter(texts)
    out: deque[_Bundle] = deque()
    sent = 0
    while True:
        while len(out) < BUNDLES_AHEAD * len(crew.members) and (texts_ := list(islice(source, BUNDLE))):
            out.append(_Bundle(texts_, worker=sent % len(crew.members)))
            out[-1].call = crew.send_scores(out[-1].worker, texts_)
            sent += 1
        if not out:
            return
        first = out[0]
        found = crew.receive_scores(first.worker, first.call)
        if found is None:  # it died, and with it every bundle that it had
            for bundle in out:
                if bundle.worker == first.worker:
                    bundle.call = crew.send_scores(bundle.worker, bundle.texts)
            continue
        out.popleft()
        yield from found
