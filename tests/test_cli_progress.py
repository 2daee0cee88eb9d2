"""Progress on stderr: drawn on a terminal, a line every few seconds elsewhere, and harmless whatever it is told."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from ojak import _progress
from ojak.cli import progress as module
from ojak.cli import terminal
from ojak.cli.progress import Progress, clock, line, top_reasons


@dataclass
class State(_progress.Progress):
    """A run in the middle, if nothing else is said."""

    rows_total: int = 512
    rows_done: int = 128
    completion_tokens: int = 84_200
    tokens_per_s: float = 712.4
    accepted: int = 101
    rejected: Counter[str] = field(default_factory=lambda: Counter(duplicate_near=12, too_short=4))
    eta_s: float | None = 41.2
    phase: str = "answering"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which a test sets."""
    moment = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: moment[0])
    return moment


def on(monkeypatch: pytest.MonkeyPatch, **options: bool) -> io.StringIO:
    """Replace the console by one that writes into the buffer given back."""
    buffer = io.StringIO()
    console = Console(file=buffer, highlight=False, markup=False, width=100, **options)  # pyright: ignore[reportArgumentType]
    for place in (terminal, module):
        monkeypatch.setattr(place, "console", lambda: console)
    return buffer


def test_a_line_says_all() -> None:
    assert line(State()) == (
        "answering  128/512 rows  84,200 tokens  712 tok/s  accepted 101 (79%)  ETA 0:41  "
        "rejected: duplicate_near 12, too_short 4"
    )


def test_a_line_at_the_start() -> None:
    assert line(_progress.Progress(512)) == "sampling  0/512 rows  0 tokens  0 tok/s  accepted 0 (-)  ETA ?"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (3723, "1:02:03"),
        (None, "?"),
        (float("inf"), "?"),
        (float("nan"), "?"),
        (-1, "?"),
    ],
)
def test_clock(seconds: float | None, shown: str) -> None:
    assert clock(seconds) == shown


def test_only_the_most_frequent_reasons() -> None:
    assert top_reasons({f"r{i}": i for i in range(9)}) == "r8 8, r7 7, r6 6, r5 5, r4 4"


def test_a_line_every_five_seconds_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    buffer = on(monkeypatch, force_terminal=False)
    with Progress() as shown:
        for second in range(12):
            now[0] = 100.0 + second
            shown.update(State(rows_done=second))
    lines = buffer.getvalue().splitlines()
    assert [re.findall(r"(\d+)/512", text)[0] for text in lines] == ["0", "5", "10", "11"]
    assert "\x1b" not in buffer.getvalue()


def test_nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = on(monkeypatch, force_terminal=True)
    with Progress():
        pass
    assert buffer.getvalue() == ""


def test_a_terminal_is_redrawn(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    buffer = on(monkeypatch, force_terminal=True)
    with Progress() as shown:
        for tenth in range(20):
            now[0] = 100.0 + tenth / 10
            shown.update(State(rows_done=tenth))
        drawn = buffer.getvalue().count("tok/s")
    assert 8 <= drawn <= 11
    assert "19/512 rows" in buffer.getvalue()
    assert "\x1b[" in buffer.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    monkeypatch.setenv("TERM", "dumb")
    buffer = on(monkeypatch, force_terminal=True)
    with Progress() as shown:
        shown.update(State())
        now[0] += 1
        shown.update(State())
    assert len(buffer.getvalue().splitlines()) == 2
    assert "\x1b[2K" not in buffer.getvalue()


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    buffer = on(monkeypatch, force_terminal=True)
    terminal.say("it broke", "red", "error: ")
    assert "\x1b[31m" not in buffer.getvalue()
    assert buffer.getvalue().endswith("it broke\n")


def test_words_of_others_cannot_act(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    hostile = State(rejected=Counter({"\x1b]0;x\x07[bold]a\nb": 1}), phase="p\x1b[2J\n")
    for live in (False, True):
        monkeypatch.setenv("TERM", "xterm")
        buffer = on(monkeypatch, force_terminal=live)
        with Progress() as shown:
            shown.update(hostile)
        assert "\x1b]0;" not in buffer.getvalue()
        assert "\x1b[2J" not in buffer.getvalue()
        assert "[bold]a b 1" in buffer.getvalue()
