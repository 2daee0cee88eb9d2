"""How far a run is: a live display on a terminal, a line every few seconds otherwise. All of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ojak.cli.terminal import console, is_live, one_line, say

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from ojak._progress import Progress as State

LINE_EVERY_S = 5.0
DRAW_EVERY_S = 0.2
TOP_REASONS = 5


class Progress:
    """A context manager to hand to a stage. `update` may be called at every step; it draws now and then."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._due = 0.0
        self._last: State | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def update(self, state: State) -> None:
        """Show `state`, unless the last one was shown a moment ago."""
        self._last = state
        now = time.monotonic()
        if now < self._due:
            return
        live = is_live()
        self._due = now + (DRAW_EVERY_S if live else LINE_EVERY_S)
        self._draw(state) if live else say(line(state))

    def stop(self) -> None:
        """Show the last state and end the display; `update` begins another one."""
        if self._last is not None:
            self._draw(self._last) if self._live else say(line(self._last))
        if self._live is not None:
            self._live.stop()
        self._live, self._last, self._due = None, None, 0.0

    def _draw(self, state: State) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=console(), auto_refresh=False)
            self._live.start()
        self._live.update(_panel(state), refresh=True)


def line(state: State) -> str:
    """The state on one line."""
    parts = [one_line(state.phase), _done(state)]
    if not state.reads:
        parts += [f"{state.completion_tokens:,} tokens", f"{state.tokens_per_s:,.0f} tok/s"]
        parts += [f"accepted {state.accepted:,} ({_rate(state)})"]
    parts += [f"ETA {clock(state.eta_s)}"]
    reasons = top_reasons(state.rejected)
    return "  ".join([*parts, *([f"rejected: {reasons}"] if reasons else [])])


def _done(state: State) -> str:
    return f"{state.rows_done:,}/{state.rows_total:,} {state.unit}"


def _rate(state: State) -> str:
    done = state.rows_done
    return f"{state.accepted / done:.0%}" if done else "-"


def clock(seconds: float | None) -> str:
    """`1:02:03` or `2:03`; a question mark for a time not known yet."""
    if seconds is None or not 0 <= seconds < 1e8:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def top_reasons(rejected: Mapping[str, int]) -> str:
    """The most frequent reasons for rejection with their counts."""
    ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
    return ", ".join(f"{one_line(reason, 40)} {number:,}" for reason, number in ordered)


def _panel(state: State) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    top = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(state.rows_total, 1), completed=state.rows_done, width=40)
    eta = Text(f"ETA {clock(state.eta_s)}")
    top.add_row(Text(one_line(state.phase, 40), "bold"), bar, Text(_done(state)), eta)
    if state.reads:
        return Group(top)
    numbers = Text(
        f"{state.completion_tokens:,} tokens   {state.tokens_per_s:,.0f} tok/s   "
        f"accepted {state.accepted:,} ({_rate(state)})"
    )
    reasons = top_reasons(state.rejected)
    return Group(top, numbers, *([Text(f"rejected: {reasons}", "dim")] if reasons else []))
