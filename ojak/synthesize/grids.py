"""Sampling grids for instructions: (temperature, top-p) pairs, one row of text drawn from each in turn.

The presets `air` and `pro` are those of the Magpie paper (arXiv 2406.08464, Table 7), with its shares of rows; heat
buys variety and costs quality (Figure 11 there).
"""

from __future__ import annotations

from ojak.errors import UsageError

Grid = tuple[tuple[float, float], ...]

_AIR = tuple((t, p) for t in (1.0, 1.1, 1.2) for p in (1.0, 0.995, 0.99) for _ in range(3))
PRESETS: dict[str, Grid] = {
    "default": ((0.7, 1.0), (0.8, 1.0), (0.9, 1.0), (1.0, 1.0)),
    "air": _AIR + tuple((1.25, p) for p in (1.0, 0.995, 0.99)),
    "pro": ((1.0, 1.0),) * 3 + ((1.1, 0.995),) * 3 + ((1.2, 0.995),) * 3 + ((1.25, 0.99),),
    "plain": ((1.0, 1.0),),
}


def parse_grid(text: str) -> Grid:
    """A preset's name, or pairs "T:P,T:P". Raises UsageError, saying what a grid looks like."""
    if text in PRESETS:
        return PRESETS[text]
    try:
        pairs = tuple((float(t), float(p)) for t, p in (item.split(":") for item in text.split(",")))
    except ValueError:
        raise UsageError(
            f"the grid {text[:100]!r} cannot be read",
            fix=f"give a preset ({', '.join(PRESETS)}) or pairs of temperature and top-p, such as 1.0:1.0,1.2:0.99",
        ) from None
    for temperature, top_p in pairs:
        if not (0 <= temperature < 100 and 0 < top_p <= 1):
            raise UsageError(
                f"the grid's pair {temperature:g}:{top_p:g} is out of range",
                fix="a temperature is at least 0 and below 100, a top-p above 0 and at most 1",
            )
    return pairs
