"""The sums, samples, figures and words that the report page is drawn from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojak.report import charts, text
from ojak.report.measures import Cell, Lengths, Measures, Reservoir
from ojak.report.openings import Opening, opening


@given(st.lists(st.integers(0, 5000), min_size=1), st.sampled_from([0.01, 0.25, 0.5, 0.9, 1.0]))
def test_quantiles_are_exact(values: list[int], share: float) -> None:
    lengths = Lengths(Counter(values))
    expected = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert lengths.quantile(share) == expected


@given(st.lists(st.integers(0, 8_000), min_size=1))
def test_histogram_holds_every_row(values: list[int]) -> None:
    drawn = charts.histogram(Lengths(Counter(values)), "Length")
    assert drawn is not None
    assert sum(rows for _, rows in drawn.table) == len(values) and len(drawn.bars) <= charts.MAX_BARS + 1
    for x, y, width, height in drawn.bars:
        assert drawn.left <= x and x + width <= drawn.right + 0.1
        assert drawn.top - 0.1 <= y and abs(y + height - drawn.base) < 0.1


@given(
    st.integers(0, 400),
    st.dictionaries(st.text(min_size=1), st.integers(1, 300), max_size=25),
    st.integers(0, 9),
)
def test_funnel_adds_up(accepted: int, reasons: dict[str, int], failed: int) -> None:
    measures = Measures(accepted=accepted)
    for i, (reason, rows) in enumerate(reasons.items()):
        measures.reasons[(("instruction", "response")[i % 2], reason)] += rows
    total = accepted + sum(reasons.values()) + failed
    steps = charts.funnel(measures, total, failed)
    bites = [step for step in steps if step.kind not in ("total", "accepted")]
    assert steps[0].count == total and steps[-1].count == accepted
    assert sum(step.count for step in bites) == total - accepted
    edge = 100.0 if total else 0.0
    for bite in bites:
        assert bite.x + bite.width == pytest.approx(edge, abs=0.01)
        edge = bite.x


def test_outliers_share_the_last_bin() -> None:
    drawn = charts.histogram(Lengths(Counter({10: 100, 20: 100, 30: 100, 9000: 2})), "Length")
    assert drawn is not None and drawn.overflow
    assert drawn.table[-1] == ("30 or more", 102) and "to 9,000 tokens" in drawn.summary


def test_reservoir_is_uniform_and_repeatable() -> None:
    def draw(seed: int) -> list[int]:
        sample: Reservoir[int] = Reservoir(5, seed)
        for item in range(50):
            sample.add(item)
        return sample.items()

    assert draw(3) == draw(3) == sorted(draw(3)) and draw(3) != draw(4)
    hits = Counter(item for seed in range(2000) for item in draw(seed))
    assert all(140 < hits[item] < 265 for item in range(50))  # 200 expected, standard deviation 13


def test_heat_levels_span_the_table() -> None:
    cells = {(1.0, 1.0): Cell(10, 0, 0), (1.2, 1.0): Cell(10, 5, 5), (1.2, 0.9): Cell(10, 2, 2)}
    table = charts.heat(cells, "Duplicates", lambda cell: cell.duplicates)
    levels = [[cell.level if cell else None for cell in row] for _, row in table.rows]
    assert table.columns == ["0.9", "1.0"] and levels == [[None, 0], [2, 5]]


def test_opening_bars_fill_to_their_share() -> None:
    openings = Counter(
        {Opening("verb", "write", "story"): 6, Opening("verb", "write", ""): 2, Opening("other"): 9}
    )
    (bar,) = charts.opening_bars(openings, "verb", charts.commonest_opening(openings), 17)
    assert (bar.word, bar.count, bar.nouns, bar.rest) == ("write", 8, [("story", 6)], 2)
    assert bar.segments == [(0.0, 75.0, 0), (75.0, 25.0, charts.MAX_NOUNS)]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Write a compelling short story about a fox.", ("verb", "write", "story")),
        ("Can you please write a Python function that sorts names?", ("verb", "write", "function")),
        ("I have a list of prices. Design a table for them.", ("verb", "design", "table")),
        ("List the main differences between cats and dogs", ("verb", "list", "difference")),
        ("What's the capital of Peru?", ("question", "what", "capital")),
        ("How do I make bread?", ("question", "how", "bread")),
        ("Explain how photosynthesis works.", ("verb", "explain", "photosynthesis")),
        ("Describe your family briefly.", ("verb", "describe", "family")),
        ("Summarize:", ("verb", "summarize", "")),
        ("\ud55c\uad6d\uc5b4 \ubb38\uc7a5", ("other", "", "")),
        ("", ("other", "", "")),
        ("12 + 30 = ?", ("other", "", "")),
    ],
)
def test_openings(instruction: str, expected: tuple[str, str, str]) -> None:
    assert opening(instruction) == Opening(*expected)


@given(st.text(max_size=300))
def test_openings_take_any_text(instruction: str) -> None:
    found = opening(instruction)
    assert found.kind in ("verb", "question", "other") and len(found.noun) <= 24


def test_code_blocks_keep_their_white_space() -> None:
    source = "Look:\n\n```python\nif x:\n    y()\n\n\n```\nDone.\n~~~\nopen ``` end"
    found = text.blocks(source)
    assert [(block.code, block.language, block.text) for block in found] == [
        (False, "", "Look:\n"),
        (True, "python", "if x:\n    y()\n\n"),
        (False, "", "Done."),
        (True, "", "open ``` end"),
    ]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.percent(0), "0 %"),
        (text.percent(1 / 100_000), "< 0.1 %"),
        (text.percent(0.031), "3.1 %"),
        (text.percent(0.7412), "74 %"),
        (text.percent(0.9996), "100 %"),
        (text.percent(0.996), "99.6 %"),
        (text.duration(2.04), "2.0 s"),
        (text.duration(59.9), "1 min 00 s"),
        (text.duration(200), "3 min 20 s"),
        (text.duration(9660), "2 h 41 min"),
        (text.duration(900_000), "10.4 days"),
        (text.number(12345.4), "12,345"),
        (text.number(7.46), "7.5"),
        (text.size(999), "999 bytes"),
        (text.size(48_210), "48.2 kB"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown.replace("\u00a0", " ") == expected
