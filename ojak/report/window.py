"""A page about a window sweep: perplexity, memory and speed over what a model's local layers see.

It reads the artifact's manifest alone, leniently: a cell that lacks a number is left out. See `ojak.report.page` for
how text is kept from acting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ojak._files import disk_errors
from ojak.artifact import Artifact, write_atomic
from ojak.errors import InputRefused, TargetExists
from ojak.report import sources, text
from ojak.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Mark
from ojak.report.curves import MAX_ARMS, Axes, Curve
from ojak.report.html import environment, styled
from ojak.report.measures import as_number, dig

KIND = "window-sweep"
FILE_NAME = "index.html"
MAX_CELLS, MAX_SETTINGS = 200, 40
STEEP = 4.0  # largest value over smallest from which on an axis has powers of ten
MIB = 1 << 20
NUMBERS = ("perplexity", "difference", "cache_bytes", "memory_bytes", "prefill_tokens_s", "decode_tokens_s")


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to read the text. window: None where local layers see all of it; `own`: the model's own window."""

    context: int
    window: int | None
    own: bool
    softcaps: bool
    values: dict[str, float]
    interval: tuple[float, float]

    @property
    def window_name(self) -> str:
        return "all" if self.window is None else text.number(self.window)


@dataclass(frozen=True, slots=True)
class WindowFigure:
    """A measure over the window, a line for each context: (number of its colour, SVG path)."""

    what: str
    summary: str
    paths: list[tuple[int, str]]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    base: int = HEIGHT - BOTTOM


def write_window_page(folder: Path, out: Path | None = None, *, replace: bool = False) -> Path:
    """Writes `index.html` about the sweep in `folder` into it, or into `out`; gives its path.

    Raises TargetExists for a page that is there and not `replace`, InputRefused where there is no sweep.
    """
    page = (out or folder) / FILE_NAME
    with disk_errors(page):
        if page.exists() and not replace:
            raise TargetExists(f"{page} is there already", fix="name another folder, or pass --overwrite")
    write_atomic(page, render(Artifact.open(folder)).encode())
    return page


def render(artifact: Artifact) -> str:
    """The page as HTML text; the same artifact gives the same page."""
    cells = read_cells(artifact)
    if not cells:
        raise InputRefused(f"{artifact.path} holds no figures of a window sweep")
    stats = artifact.stats
    drawn = [cell for cell in cells if cell.softcaps] or cells
    contexts = list(dict.fromkeys(cell.context for cell in drawn))[:MAX_ARMS]
    values = {
        **styled("style.css", "compare.css"),
        "version": str(artifact.manifest.get("ojak_version", ""))[:64],
        "model": str(stats.get("model", ""))[:200],
        "facts": {
            name: as_number(stats.get(name)) for name in ("window", "layers", "local_layers", "tokens")
        },
        "cells": cells,
        "contexts": contexts,
        "figures": _figures(drawn, contexts),
        "uncapped": not drawn[0].softcaps,
        "mib": MIB,
        "lineage": [sources.lineage(artifact)],
        "max_files": len(artifact.files),
        "setting_tables": [("Settings", text.flatten(artifact.manifest.get("config"))[:MAX_SETTINGS])],
    }
    return environment().get_template("window.html.jinja").render(values)


def read_cells(artifact: Artifact) -> list[Cell]:
    """The cells of the manifest, in its order; at most MAX_CELLS."""
    found = artifact.stats.get("cells")
    each = found[:MAX_CELLS] if isinstance(found, list) else []
    return [cell for cell in map(_cell, each) if cell is not None]


def _cell(value: Any) -> Cell | None:
    numbers = {name: as_number(dig(value, name)) for name in NUMBERS}
    context, window = as_number(dig(value, "context")), as_number(dig(value, "window"))
    interval = dig(value, "perplexity_interval")
    ends = (
        [end for each in interval if (end := as_number(each)) is not None]
        if isinstance(interval, list)
        else []
    )
    known = {name: number for name, number in numbers.items() if number is not None}
    if len(known) < len(NUMBERS) or context is None or len(ends) != 2:
        return None
    low, high = ends
    own, caps = bool(dig(value, "trained")), dig(value, "softcaps") is not False
    return Cell(int(context), None if window is None else int(window), own, caps, known, (low, high))


def _figures(cells: Sequence[Cell], contexts: Sequence[int]) -> list[WindowFigure]:
    shown = [
        ("Perplexity", lambda cell: cell.values["perplexity"]),
        ("Cache of one text, MiB", lambda cell: cell.values["cache_bytes"] / MIB),
        ("Decoded tokens a second, one text", lambda cell: cell.values["decode_tokens_s"]),
        ("Prompt tokens read a second", lambda cell: cell.values["prefill_tokens_s"]),
    ]
    return [_figure(what, value, cells, contexts) for what, value in shown]


def _figure(
    what: str, value: Callable[[Cell], float], cells: Sequence[Cell], contexts: Sequence[int]
) -> WindowFigure:
    windows = sorted({cell.window or math.inf for cell in cells})
    curves: list[Curve] = [
        [(windows.index(cell.window or math.inf), value(cell)) for cell in cells if cell.context == context]
        for context in contexts
    ]
    axes, shift, y_ticks = _axes([point for curve in curves for point in curve])
    paths = [
        (color, axes.path([(x, shift(y)) for x, y in curve])) for color, curve in enumerate(curves) if curve
    ]
    names = ["all" if math.isinf(each) else text.number(each) for each in windows]
    x_ticks = [Mark(axes.place((at, axes.low))[0], name) for at, name in enumerate(names)]
    ends = [
        f"context {text.number(context)}: {text.number(curve[0][1])} to {text.number(curve[-1][1])}"
        for context, curve in zip(contexts, curves, strict=True)
        if curve
    ]
    return WindowFigure(what, "; ".join(ends), paths, x_ticks, y_ticks)


def _axes(points: Curve) -> tuple[Axes, Callable[[float], float], list[Mark]]:
    """Axes that hold all points, how a value is placed on them, their ticks; logarithmic for values far apart."""
    values = [y for _, y in points]
    if min(values) <= 0 or max(values) < STEEP * min(values):
        axes = Axes.of(points)
        return axes, float, axes.y_ticks()
    round_values = [
        step * 10.0**power
        for power in range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        for step in (1, 2, 5)
    ]
    low = max(each for each in round_values if each <= min(values))
    high = min(each for each in round_values if each >= max(values))
    axes = Axes(max(1.0, *(x for x, _ in points)), math.log10(low), math.log10(high), 0)
    ticks = [each for each in round_values if low <= each <= high]
    return axes, math.log10, [Mark(axes.place((0, math.log10(each)))[1], _tick(each)) for each in ticks]


def _tick(value: float) -> str:
    return text.tick(value, 0) if value >= 1000 else f"{value:g}"
