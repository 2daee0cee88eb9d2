"""Overlap with a test set, against the plain way: sets of tuples of words."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from ojak.errors import UsageError
from ojak.rules import contamination
from ojak.rules.contamination import Contamination

ITEM = "A farmer has seventeen sheep and all but nine of them run away. How many sheep are left?"


def plain_grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_thirteen_words_in_a_row_give_a_text_away() -> None:
    check = Contamination([ITEM])
    assert check.find(f"Solve this: {ITEM}") is not None
    assert check.find(ITEM.upper().replace(".", " -")) is not None
    found = check.find("Well, A farmer has seventeen sheep and all but nine of them run away! Then nothing.")
    assert found == "a farmer has seventeen sheep and all but nine of them run away"
    assert check.find("a farmer has seventeen sheep and all but nine of them run") is None, "twelve words"
    assert check.find("") is None


def test_random_texts_agree_with_sets_of_words() -> None:
    rng = random.Random(3)
    words = ["red", "Green", "blue", "don't", "3.5", "x_y", "Ünder", "ß"]
    for n in (2, 3, 8):
        tests = [" ".join(rng.choices(words, k=rng.randint(n * 2, 30))) for _ in range(5)]
        grams = set().union(*(plain_grams(text, n) for text in tests))
        check = Contamination(tests, n)
        assert len(check) == len(grams)
        for _ in range(100):
            text = " ".join(rng.choices(words, k=rng.randint(0, 12)))
            found = check.find(text)
            assert (found is not None) == bool(plain_grams(text, n) & grams), text
            if found:
                assert tuple(found.split()) in grams


def test_an_item_shorter_than_the_run_counts_when_it_stands_whole_in_the_row() -> None:
    check = Contamination(["Explain how a magpie finds its way home at night"])  # ten words
    assert check.find("Please explain how a magpie finds its way home at night, in verse.") is not None
    assert check.find("Please explain how a magpie finds its way home at noon, in verse.") is None


def test_a_very_short_item_must_be_all_of_the_row() -> None:
    check = Contamination(["Who wrote Hamlet?", "Hello"])
    assert check.find("who wrote hamlet") == "who wrote hamlet"
    assert check.find("Tell me who wrote Hamlet, and when.") is None
    assert check.find("Hello") == "hello"
    assert check.find("Hello there") is None


def test_scripts_without_spaces_are_counted_by_sign() -> None:
    item = "北京是中华人民共和国的首都和政治中心"
    check = Contamination([item])
    assert check.find(f"请问，{item}？") is not None
    assert check.find("北京是一个很大的城市，有很多人住在那里") is None


def test_many_items_are_merged_and_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ojak.rules.contamination._MERGED_AT", 50)
    rng = random.Random(4)
    vocabulary = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(400)]
    items = [" ".join(rng.choices(vocabulary, k=20)) for _ in range(200)]
    check = Contamination(iter(items))
    assert all(check.find(f"start {item} end") for item in items)
    assert not any(check.find(" ".join(rng.choices(vocabulary, k=40))) for _ in range(200))


@pytest.mark.parametrize("n", [1, 0, -3])
def test_a_run_must_be_longer_than_a_word(n: int) -> None:
    with pytest.raises(UsageError, match="contamination"):
        Contamination([], n)


def test_an_empty_test_set_finds_nothing() -> None:
    assert (
        Contamination([]).find("anything at all, however long it may be, or short, as one likes it") is None
    )


def test_import_takes_no_numpy() -> None:
    code = (
        "import sys, ojak.rules.contamination, ojak.rules.privacy, ojak.rules.secrets, ojak.similarity.minhash,"
        " ojak.similarity.embedding; sys.exit(bool({'numpy', 'torch', 'faiss'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_many_texts_at_once_are_found_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain windows of words, with runs of several lengths, short items, wide signs and empty texts."""
    rng = random.Random(4)
    words = [f"w{i}" for i in range(40)] + ["日本語", "Ünit"]
    tests = [" ".join(rng.choices(words, k=rng.choice([1, 3, 7, 8, 10, 13, 20]))) for _ in range(40)]
    texts = ["", "?!", *tests[:10]]
    for item in tests:
        around = rng.choices(words, k=rng.randint(0, 30))
        at = rng.randint(0, len(around))
        piece = item.split() if rng.random() < 0.6 else item.split()[1:]
        texts.append(" ".join([*around[:at], *piece, *around[at:]]))
    index = Contamination(tests, n=13)
    expected = [plain(text, tests, 13) for text in texts]
    assert 10 < sum(run is not None for run in expected) < len(texts)
    for size in (1 << 17, 50):
        monkeypatch.setattr(contamination, "_BLOCK_CHARACTERS", size)
        assert index.find_all(texts) == expected
    assert [index.find(text) for text in texts] == expected
    assert Contamination([]).find_all(texts) == [None] * len(texts)


def plain(text: str, tests: list[str], n: int) -> str | None:
    """The first run of the longest kind, by comparing lists of words."""
    said = contamination._words(text)
    items = [contamination._words(item) for item in tests]
    for size in range(n, 7, -1):
        runs = [item[i : i + n] for item in items for i in range(max(1, len(item) - n + 1))]
        known = [run for run in runs if len(run) == size]
        for at in range(len(said) - size + 1):
            if said[at : at + size] in known:
                return " ".join(said[at : at + size])
    return " ".join(said) if said and len(said) < 8 and said in items else None
