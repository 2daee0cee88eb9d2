"""Sampling grids: presets of the paper, pairs of one's own, and refusals."""

from __future__ import annotations

from collections import Counter

import pytest

from ojak.errors import UsageError
from ojak.synthesize.grids import PRESETS, parse_grid


def test_presets_have_the_shares_of_the_paper() -> None:
    """Magpie, Table 7: Air has 300K rows in each cell up to 1.2 and 100K at 1.25; Pro has four cells."""
    air = Counter(parse_grid("air"))
    assert {cell: count for cell, count in air.items() if cell[0] < 1.25} == {
        (t, p): 3 for t in (1.0, 1.1, 1.2) for p in (1.0, 0.995, 0.99)
    }
    assert {cell: count for cell, count in air.items() if cell[0] == 1.25} == {
        (1.25, p): 1 for p in (1.0, 0.995, 0.99)
    }
    assert Counter(parse_grid("pro")) == {(1.0, 1.0): 3, (1.1, 0.995): 3, (1.2, 0.995): 3, (1.25, 0.99): 1}
    assert parse_grid("plain") == ((1.0, 1.0),)
    assert parse_grid("default") == PRESETS["default"]


def test_pairs_keep_their_order() -> None:
    assert parse_grid("1.0:1.0,0:0.5, 1.2 : 0.99") == ((1.0, 1.0), (0.0, 0.5), (1.2, 0.99))


@pytest.mark.parametrize(
    "text", ["", "warm", "1.0", "1:1:1", "1:1,", "a:b", "-1:1", "1:0", "1:1.5", "nan:1", "1:nan", "inf:1"]
)
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_grid(text)
    assert caught.value.fix
