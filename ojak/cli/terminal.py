"""Output: data to stdout, talk to stderr. What models, files and manifests say is shown with nothing hidden in it."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def prepare_streams() -> None:
    """Let characters that the terminal's encoding lacks be written as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def visible(text: object) -> str:
    """`text` with all that shows nothing, or acts on a terminal or on the order of its text, as signs.

    Line ends and tabs stay.
    """
    from ojak._visible import plain

    return plain(text, keep="")


def one_line(text: object, length: int = 200) -> str:
    """`text` on one line, cut to `length` characters."""
    shown = " ".join(visible(text).split())
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _put(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def write(text: object) -> None:
    """A line of data to stdout."""
    _put(visible(text))
    sys.stdout.flush()


def write_styled(parts: Iterable[tuple[str, str]]) -> None:
    """A line of data to stdout from pieces (text, style); plain where stdout has no colours."""
    from rich.console import Console
    from rich.text import Text

    pieces = [(visible(text), style) for text, style in parts]
    out = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    out.print(Text.assemble(*pieces))


def write_part(text: object) -> None:
    """A piece of data to stdout, at once; the line goes on after it."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON object to stdout, in ASCII: no character of it can act on a terminal."""
    _put(json.dumps(value, indent=2, default=str))
    sys.stdout.flush()


def write_pages(lines: Iterable[str]) -> None:
    """Lines of data: in a pager where a person reads, straight through otherwise. They must be `visible` already."""
    if sys.stdout.isatty():
        import pydoc

        pydoc.pager("\n".join(lines) + "\n")
        return
    for line in lines:
        _put(line)


def write_table(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values in two columns; a value of several lines keeps to its column."""
    shown = [(name, visible(value).split("\n")) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    for name, (first, *more) in shown:
        _put(f"{name:<{width}}  {first}".rstrip())
        for line in more:
            _put(" " * (width + 2) + line)
    sys.stdout.flush()


def say(text: object, style: str = "", label: str = "") -> None:
    """Talk to stderr; `label` is put before it in `style`, if the terminal has colours."""
    from rich.text import Text

    shown = visible(text)
    console().print(Text.assemble((label, style), shown) if label else Text(shown, style), soft_wrap=True)


@functools.lru_cache(maxsize=1)
def _console(stream: object) -> Console:
    from rich.console import Console

    # rich itself heeds NO_COLOR, FORCE_COLOR and TERM=dumb.
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def console() -> Console:
    """The console on stderr; a new one when `sys.stderr` was replaced."""
    return _console(sys.stderr)


def is_live() -> bool:
    """Whether stderr is a terminal that can redraw lines."""
    found = console()
    return found.is_terminal and not found.is_dumb_terminal
