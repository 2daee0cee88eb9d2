"""How far a stage is, and whoever wants to know it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Progress:
    """Where a run stands. Tokens and rows are counts, `eta_s` is None while nothing is known of it.

    `unit`: what `rows_total` and `rows_done` count. `reads`: whether they are looked at alone, none is written or kept.
    """

    rows_total: int
    rows_done: int = 0
    accepted: int = 0
    completion_tokens: int = 0
    tokens_per_s: float = 0.0
    eta_s: float | None = None
    phase: str = "sampling"
    rejected: Counter[str] = field(default_factory=Counter)
    unit: str = "rows"
    reads: bool = False


class Listener(Protocol):
    """Is told at every step, from the thread that works; what it raises ends the run."""

    def update(self, state: Progress) -> None: ...


def silent(_line: str) -> None:
    """The listener to single lines, for those who do not listen."""
