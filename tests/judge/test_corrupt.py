"""Planted rows: made by rules, the same for the same seed, bad in the way that their name says, no longer than good ones."""

from __future__ import annotations

import random

import pytest

from ojak.judge import corrupt
from ojak.judge.calibrate import bundled, plant
from ojak.judge.corrupt import CORRUPTIONS, corrupted, matched
from ojak.judge.labels import TASK_CATEGORY
from ojak.judge.language import language
from ojak.judge.prompts import Row
from ojak.judge.statistics import auroc

ROWS = [sample.row for sample in bundled()]


def pairs(name: str, seed: int = 0) -> list[tuple[Row, Row]]:
    made = corrupted(name, ROWS, seed)
    return [(row, bad) for row, bad in zip(ROWS, made, strict=True) if bad is not None]


def test_the_bundled_rows_are_varied() -> None:
    samples = bundled()
    assert len(samples) >= 60
    assert {sample.category for sample in samples} == set(TASK_CATEGORY)
    assert {sample.level for sample in samples} == {"easy", "hard"}
    assert len({sample.row.instruction for sample in samples}) == len(samples)
    assert all(sample.row.response == sample.row.response.strip() != "" for sample in samples)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_gives_the_same_rows(name: str) -> None:
    assert corrupted(name, ROWS, 3) == corrupted(name, ROWS, 3)
    if name != "copied":
        assert corrupted(name, ROWS, 3) != corrupted(name, ROWS, 4)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_most_rows_can_be_corrupted_and_none_stays_as_it_was(name: str) -> None:
    found = pairs(name)
    assert len(found) >= 35
    assert all(good.response != bad.response and good.instruction == bad.instruction for good, bad in found)


def test_each_corruption_is_what_it_says() -> None:
    answers = {row.response for row in ROWS}
    assert all(bad.response in answers for _, bad in pairs("shuffled"))
    assert all(good.response.startswith(bad.response) for good, bad in pairs("truncated"))
    assert all(bad.response[-1].isalnum() for _, bad in pairs("truncated"))
    assert all(bad.response == bad.instruction for _, bad in pairs("copied"))
    assert all(good.response in bad.response for good, bad in pairs("padded"))
    long = [bad for _, bad in pairs("wrong_language") if len(bad.response) > 40]
    assert len(long) > 30
    assert all(language(bad.response) != "en" for bad in long)


def test_a_contradiction_changes_every_number() -> None:
    row = Row("How far is it?", "It is 12 km, and the path rises by 305 m.")
    for seed in range(50):
        bad = corrupt.contradicting(row, random.Random(seed))
        assert bad is not None
        assert "12" not in bad.split()
        assert "305" not in bad.split()
        assert "falls" in bad


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_length_tells_nothing(name: str) -> None:
    planted = plant(ROWS, 0)
    lengths = [len(row.response) for row in planted.rows]
    good, bad = [lengths[i] for i in planted.good], [lengths[i] for i in planted.places[name]]
    found = matched(good, bad, random.Random(0))
    assert len(found) >= 20
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    assert 0.42 <= auroc([good[i] for i, _ in found], [bad[j] for _, j in found]) <= 0.58


def test_shuffling_keeps_the_length_about() -> None:
    ratios = [len(bad.response) / len(good.response) for good, bad in pairs("shuffled")]
    assert sum(0.6 < ratio < 1.7 for ratio in ratios) > 0.8 * len(ratios)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_rows_are_no_error(count: int) -> None:
    for name in CORRUPTIONS:
        assert len(corrupted(name, ROWS[:count], 0)) == count


def test_hostile_texts_are_corrupted_like_others() -> None:
    texts = [
        "",
        "\ud800",
        "a" * 50_000,
        "0" * 5_000,
        "<|im_end|>\n\n" * 100,
        "\u0661\u0662 \u202e",
        ". . . . . . . . . .",
    ]
    rows = [Row(text or "?", text) for text in texts]
    for name in CORRUPTIONS:
        assert len(corrupted(name, rows, 0)) == len(rows)
