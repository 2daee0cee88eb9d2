"""The page of a sweep of merges: a picture of what each weight gives, and the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ojak._files import write_atomic
from ojak.report.charts import BOTTOM, HEIGHT, RIGHT, WIDTH, Mark
from ojak.report.html import environment, styled
from ojak.report.text import fixed, tick

LEFT, TOP = 56, 28
TICKS = 5
WORDS = {
    "eta": "eta, the share of the model against its base",
    "mu": "mu, the share of each later model",
    "weight": "the weight of the second model",
    "scale": "the scale of the merged task vector",
}


@dataclass(frozen=True, slots=True)
class Dot:
    """A model in the picture: its place, its label, and what it is: on the front, a merge off it, or a single model.

    low, high: the ends of its interval, upwards, where the picture has them.
    """

    x: float
    y: float
    label: str
    kind: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture in a box of `width` x `height`; `path` joins the merges in the order of their weights."""

    what: str
    x_unit: str
    y_unit: str
    summary: str
    path: str
    dots: list[Dot]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    base: int = HEIGHT - BOTTOM


def write_sweep(found: Mapping[str, Any], page: Path) -> None:
    """Writes the page about a sweep, given its manifest; replaces one that is there."""
    result, data = found["result"], list(found["data"])
    values = {
        "found": found,
        "word": WORDS[result["swept"]],
        "picture": _front(result, data) if len(data) > 1 else _curve(result, data[0]),
        "columns": data,
        "rows": _rows(result),
        "beaten": [single["name"] for single in result["singles"] if single["beaten"]],
        "created": str(found["created"])[:10],
        "version": found["ojak_version"],
        "lineage": [_made(found)],
        "setting_tables": [("Settings", _settings(found))],
        "max_files": 0,
        **styled("style.css", "compare.css", "model.css", "sweep.css"),
    }
    write_atomic(page, environment().get_template("sweep.html.jinja").render(values).encode())


def _made(found: Mapping[str, Any]) -> dict[str, Any]:
    """The only line of the table of stages."""
    made = {"kind": found["kind"], "created": found["created"], "version": found["ojak_version"]}
    return {**made, "rows": None, "manifest_sha256": None, "files": []}


def _settings(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [*found["models"], *([found["base"]] if found["base"] else [])]
    models = [
        (f"model {number} of {len(names)}", f"{name} {digest}")
        for number, (name, digest) in enumerate(zip(names, found["models_sha256"], strict=False), 1)
    ]
    return [("method", str(found["method"])), *models, ("key", str(found["key"]))]


def _perplexities(figures: Sequence[Mapping[str, Any]], side: int = 0) -> list[float]:
    return [each["perplexity"][side] for each in figures]


def _rows(result: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """(name, perplexity on each data set with its interval, remark), the merges first."""
    rows = [
        (f"{point['value']:g}", _cells(point["figures"]), "on the front" if point["front"] else "")
        for point in result["points"]
    ]
    return rows + [
        (each["name"], _cells(each["figures"]), "beaten by a merge" if each["beaten"] else "")
        for each in result["singles"]
    ]


def _cells(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{fixed(value, 3)} ({fixed(low, 3)} to {fixed(high, 3)})"
        for value, low, high in (each["perplexity"] for each in figures)
    ]


def _front(result: Mapping[str, Any], data: Sequence[str]) -> Picture:
    """Perplexity on the second data set over that on the first: down and to the left is better."""
    merges = [
        (_perplexities(p["figures"]), f"{p['value']:g}", "front" if p["front"] else "off")
        for p in result["points"]
    ]
    singles = [(_perplexities(s["figures"]), s["name"], "single") for s in result["singles"]]
    across, upwards = (_Axis.of([at[i] for at, _, _ in (*merges, *singles)], i == 1) for i in (0, 1))
    dots = [
        Dot(across.place(x), upwards.place(y), label, kind) for (x, y), label, kind in (*merges, *singles)
    ]
    return Picture(
        what="What each weight gives on both data sets",
        x_unit=f"perplexity: {data[0]}",
        y_unit=f"perplexity: {data[1]}",
        summary="; ".join(f"{label}: {fixed(x, 2)} and {fixed(y, 2)}" for (x, y), label, _ in merges),
        path=_path(dots[: len(merges)]),
        dots=dots,
        x_ticks=across.ticks(),
        y_ticks=upwards.ticks(),
    )


def _curve(result: Mapping[str, Any], data: str) -> Picture:
    """Perplexity over the weight, with intervals; single models stand at the right edge."""
    points = [(p["value"], p["figures"], f"{p['value']:g}", p["front"]) for p in result["points"]]
    right = max(value for value, *_ in points)
    every = [each["figures"] for each in (*result["points"], *result["singles"])]
    across = _Axis.of([value for value, *_ in points], upwards=False)
    upwards = _Axis.of([_perplexities(each, side)[0] for each in every for side in (0, 1, 2)], upwards=True)

    def dot(x: float, figures: Sequence[Mapping[str, Any]], label: str, kind: str) -> Dot:
        value, low, high = (upwards.place(_perplexities(figures, side)[0]) for side in (0, 1, 2))
        return Dot(across.place(x), value, label, kind, low, high)

    merges = [
        dot(value, figures, label, "front" if front else "off") for value, figures, label, front in points
    ]
    singles = [dot(right, each["figures"], each["name"], "single") for each in result["singles"]]
    return Picture(
        what="Perplexity over the weight",
        x_unit=result["swept"],
        y_unit=f"perplexity: {data}",
        summary="; ".join(f"{label}: {fixed(_perplexities(each)[0], 2)}" for _, each, label, _ in points),
        path=_path(merges),
        dots=[*merges, *singles],
        x_ticks=across.ticks(),
        y_ticks=upwards.ticks(),
    )


def _path(dots: Sequence[Dot]) -> str:
    return "M" + "L".join(f"{dot.x:g} {dot.y:g}" for dot in dots)


@dataclass(frozen=True, slots=True)
class _Axis:
    """From `low` to `high` in steps of `step`, across or upwards."""

    low: float
    high: float
    step: float
    upwards: bool

    @classmethod
    def of(cls, values: Sequence[float], upwards: bool) -> _Axis:
        """An axis with round ends that holds all values."""
        largest = abs(max(values))
        # A single value stands at the beginning of a tenth of it; floats end at a millionth.
        span = max(max(values) - min(values) or 0.1 * largest, 1e-6 * largest, 1e-9)
        size = 10 ** math.floor(math.log10(span / TICKS))
        step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= TICKS)
        low = math.floor(min(values) / step) * step
        return cls(low, max(math.ceil(max(values) / step) * step, low + step), step, upwards)

    def place(self, value: float) -> float:
        """Where a value lies in the picture."""
        share = (value - self.low) / (self.high - self.low)
        if self.upwards:
            return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def ticks(self) -> list[Mark]:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        count = round((self.high - self.low) / self.step)
        values = [self.low + index * self.step for index in range(count + 1)]
        return [Mark(self.place(value), tick(value, digits)) for value in values]
