from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.errors import UsageError
from ojak.similarity import Duplicate, DuplicateIndex, bands_for, jaccard, normalize, shingles

WORDS = [
    "".join(random.Random(seed).choices("etaoinshrdlucmfw", k=2 + seed % 8)) for seed in range(3000)
]  # made-up words: texts of them share next to nothing by chance


def _text(rng: random.Random, count: int) -> list[str]:
    return rng.choices(WORDS, k=count)


def _varied(rng: random.Random, words: list[str], share: float) -> list[str]:
    """`words` with about `share` of them replaced."""
    return [rng.choice(WORDS) if rng.random() < share else word for word in words]


def _gram_sets(text: str, size: int = 5) -> set[str]:
    """The shingles of `text`, computed the plain way."""
    padded = f" {normalize(text)} "
    return {padded[i : i + size] for i in range(max(1, len(padded) - size + 1))}


def _brute_force(a: str, b: str) -> float:
    first, second = _gram_sets(a), _gram_sets(b)
    return len(first & second) / len(first | second)


def _decide(texts: list[str], threshold: float = 0.7) -> list[Duplicate | None]:
    index = DuplicateIndex(threshold)
    return [index.add(row, text) for row, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do birds sleep?", "how do  birds\nsleep"),
        ("Don't panic!", "dont panic"),
        ("Don\u2019t panic", "Don't panic"),
        ("**How** do *birds* sleep", "How do birds sleep"),
        ("- apples\n- pears", "apples, pears."),
        ("# Birds\nList them", "Birds: list them"),
        ("\uff28\uff4f\uff57 do birds sleep", "how do birds sleep"),
        ("STRASSE", "stra\u00dfe"),
        ("a well-known bird", "a well known bird"),
        ("zero\u200bwidth", "zerowidth"),
    ],
)
def test_texts_that_differ_in_form_only_are_equal(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)
    assert _decide([one, other])[1] == Duplicate("exact", 0, 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2+3?", "What is 2-3?"),
        ("What is 2 * 3?", "What is 2 / 3?"),
        ("What is 3.5?", "What is 35?"),
        ("What is 3.5?", "What is 3, 5?"),
        ("What is -3?", "What is 3?"),
        ("Explain C", "Explain C#"),
        ("Explain C", "Explain C++"),
        ("\u0915\u093f", "\u0915\u0940"),
        ("?", "!"),
        ("\U0001f600", "\U0001f680"),
    ],
)
def test_signs_that_change_the_meaning_are_kept(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_jaccard_of_hashed_shingles_is_that_of_the_strings(one: str, other: str) -> None:
    got = jaccard(shingles(normalize(one)), shingles(normalize(other)))
    assert got == pytest.approx(_brute_force(one, other))


def test_shingles_are_sorted_distinct_and_cover_short_texts() -> None:
    grams = shingles("abcabcabcabc", 3)
    assert grams.dtype == np.uint64
    assert len(grams) == len({" ab", "abc", "bca", "cab", "bc "})
    assert (np.diff(grams.astype(object)) > 0).all()
    assert len(shingles("")) == len(shingles("a")) == 1
    assert shingles("a") != shingles("b")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.7, 0.9]))
def test_no_false_near_duplicate_and_the_score_is_the_true_one(seed: int, threshold: float) -> None:
    rng = random.Random(seed)
    base = _text(rng, rng.randint(1, 40))
    texts = [" ".join(_varied(rng, base, rng.random() * 0.4)) for _ in range(12)]
    kept: list[int] = []
    for row, found in enumerate(_decide(texts, threshold)):
        if found is None:
            kept.append(row)
            continue
        assert found.of_row in kept
        assert found.score == pytest.approx(_brute_force(texts[row], texts[found.of_row]))
        assert found.score >= threshold


def test_planted_near_duplicates_are_found() -> None:
    """At most 2 % of pairs at the threshold and above are missed, and hardly any well above it."""
    rng = random.Random(5)
    found = {"at": [0, 0], "above": [0, 0]}
    index = DuplicateIndex(0.7)
    for row in range(0, 3000, 2):
        words = _text(rng, rng.randint(12, 60))
        varied = _varied(rng, words, rng.random() * 0.12)
        if index.add(row, " ".join(words)) is not None:
            continue
        score = _brute_force(" ".join(words), " ".join(varied))
        duplicate = index.add(row + 1, " ".join(varied))
        if score >= 0.7:
            counts = found["above" if score >= 0.8 else "at"]
            counts[0] += duplicate is not None and duplicate.of_row == row
            counts[1] += 1
    print(found)
    assert found["at"][1] >= 100
    assert found["above"][1] >= 500
    assert found["at"][0] >= 0.97 * found["at"][1]
    assert found["above"][0] >= 0.999 * found["above"][1]


@pytest.mark.parametrize(("changed", "nearest"), [(4, 0), (8, 1)])
def test_the_nearest_of_two_kept_rows_is_named(changed: int, nearest: int) -> None:
    rng = random.Random(1)
    first, other = _text(rng, 40), _text(rng, 12)
    second = [*first[:-12], *other]
    between = [*first[:-12], *other[:changed], *first[-12 + changed :]]
    found = _decide([" ".join(words) for words in (first, second, between)], 0.6)
    assert found[1] is None
    assert found[2] is not None
    assert found[2].of_row == nearest
    assert _brute_force(" ".join(between), " ".join((second, first)[nearest])) >= 0.6, "both were near enough"


def test_a_dropped_row_pulls_nothing_with_it() -> None:
    """Each step is near the one before, yet the end is far from the start: some are kept between."""
    rng = random.Random(1)
    drift = [_text(rng, 40)]
    for _ in range(12):
        drift.append(_varied(rng, drift[-1], 0.06))
    found = _decide([" ".join(words) for words in drift])
    assert {duplicate and duplicate.kind for duplicate in found} >= {None, "near"}
    assert found[1:].count(None) >= 1
    assert all(duplicate is None or found[duplicate.of_row] is None for duplicate in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 29))
def test_more_rows_never_change_an_earlier_decision(seed: int, cut: int) -> None:
    rng = random.Random(seed)
    bases = [_text(rng, rng.randint(1, 15)) for _ in range(4)]
    texts = [" ".join(_varied(rng, rng.choice(bases), 0.15)) for _ in range(30)]
    assert _decide(texts[:cut]) == _decide(texts)[:cut]


@pytest.mark.parametrize(
    "text", ["", " ", "hi", "?!", "\ud800", "\u4f60\u597d", "a" * 100_000, "word " * 10_000]
)
def test_any_length_is_kept_once_and_then_a_duplicate(text: str) -> None:
    assert _decide(["something else entirely", text, text])[1:] == [None, Duplicate("exact", 1, 1.0)]


def test_a_long_text_with_a_changed_paragraph_is_near() -> None:
    rng = random.Random(3)
    words = _text(rng, 10_000)
    changed = [*words[:5000], *_text(rng, 500), *words[5500:]]
    found = _decide([" ".join(words), " ".join(changed)])[1]
    assert found is not None
    assert found.kind == "near"
    assert 0.85 < found.score < 0.95


def test_rows_must_rise() -> None:
    index = DuplicateIndex()
    index.add(5, "one text")
    index.add(7, "quite another matter")
    with pytest.raises(UsageError, match="row 6 comes after row 7"):
        index.add(6, "a third")
    assert len(index) == 2


@pytest.mark.parametrize(
    "bad", [{"threshold": 0.0}, {"threshold": 1.1}, {"shingle_size": 0}, {"permutations": 8}]
)
def test_settings_that_cannot_work_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        DuplicateIndex(**bad)  # pyright: ignore[reportArgumentType]


def test_a_threshold_of_one_still_tells_equal_sets() -> None:
    looped, longer = "abcdefgh " * 5, "abcdefgh " * 6
    assert _decide([looped, longer], 1.0)[1] == Duplicate("near", 0, 1.0)
    assert _decide(["how do birds sleep", "how do birds sleep now"], 1.0)[1] is None


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_reach_the_recall_asked_for(threshold: float) -> None:
    bands, values = bands_for(threshold, 128)
    assert bands * values <= 128
    assert 1 - (1 - threshold**values) ** bands >= 0.98


PINNED = [2762462893004098505, 6342610005850887281, 13586764391854809136]
PROBE = """
from ojak.similarity import DuplicateIndex, shingles
index = DuplicateIndex()
texts = [f"tell me about the {a} and the {b} of the north in winter" for a in "abcdefghij" for b in "klmnopqrst"]
print([index.add(row, text) for row, text in enumerate(texts)])
print(shingles(texts[0]).tolist(), index._signatures[: len(index)].tolist())
"""


def test_decisions_do_not_depend_on_the_process() -> None:
    runs = {
        subprocess.run(
            [sys.executable, "-c", PROBE],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert "near" in runs.pop()


def test_hashes_are_pinned() -> None:
    """An index of one machine must decide as that of another: these may never change unnoticed."""
    assert shingles("birds").tolist() == PINNED


def test_import_takes_no_numpy() -> None:
    code = "import sys, ojak.similarity, ojak.rules; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_short_row_costs_well_under_a_millisecond() -> None:
    """Measured at 0.2 ms; the bound leaves room for a busy machine. CPU time of this thread."""
    rng = random.Random(2)
    texts = ["I'm planning to " + " ".join(_text(rng, 20)) for _ in range(1500)]
    index = DuplicateIndex()
    index.add(-1, "warm")
    start = time.thread_time()
    for row, text in enumerate(texts):
        index.add(row, text)
    assert (time.thread_time() - start) / len(texts) < 0.6e-3


def test_rows_that_share_most_of_their_text_stay_affordable() -> None:
    """Below the threshold but alike: each is every other's candidate, and the number checked is bounded."""
    rng = random.Random(4)
    shared = " ".join(_text(rng, 20))
    index = DuplicateIndex(0.9)
    start = time.thread_time()
    for row in range(700):
        index.add(row, f"{shared} {' '.join(_text(rng, 5))}")
    assert len(index) == 700
    assert time.thread_time() - start < 15
