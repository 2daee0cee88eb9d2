"""Clusters of near duplicates, against Jaccard similarities of plain sets and a plain union-find."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak._grams import characters_of, grams_of, words_of
from ojak.errors import ResourceExhausted, UsageError
from ojak.similarity import minhash, normalize
from ojak.similarity.minhash import Unit, near_duplicates
from ojak.similarity.unite import alone, unite

WORDS = ["".join(random.Random(seed).choices("etaoinshrdlucmfw", k=2 + seed % 8)) for seed in range(3000)]


def text_of(rng: random.Random, count: int) -> list[str]:
    return rng.choices(WORDS, k=count)


def varied(rng: random.Random, words: list[str], share: float) -> list[str]:
    return [rng.choice(WORDS) if rng.random() < share else word for word in words]


def gram_set(text: str, unit: str, size: int) -> set[Any]:
    """The n-grams of a text, the plain way."""
    values = normalize(text).split() if unit == "word" else list(f" {normalize(text)} ")
    return {tuple(values[i : i + size]) for i in range(max(1, len(values) - size + 1))}


def similarity(a: str, b: str, unit: str, size: int) -> float:
    one, other = gram_set(a, unit, size), gram_set(b, unit, size)
    return len(one & other) / len(one | other)


def plain_clusters(texts: list[str], threshold: float, unit: str, size: int) -> list[int]:
    """Every pair compared; the first row of each connected component, found by walking."""
    first = list(range(len(texts)))
    changed = True
    while changed:
        changed = False
        for i in range(len(texts)):
            for j in range(i):
                joined = first[i] != first[j] and similarity(texts[i], texts[j], unit, size) >= threshold
                if joined:
                    low, high = sorted((first[i], first[j]))
                    first = [low if each == high else each for each in first]
                    changed = True
    return first


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["word", "character"]), st.sampled_from([0.5, 0.7, 0.9]))
def test_clusters_are_those_of_comparing_every_pair(seed: int, unit: Unit, threshold: float) -> None:
    """Candidates are a matter of chance near the threshold, so the threshold of the oracle leaves a gap around it."""
    rng = random.Random(seed)
    bases = [text_of(rng, rng.randint(1, 40)) for _ in range(5)]
    texts = [" ".join(varied(rng, rng.choice(bases), rng.choice([0, 0, 0.02, 0.1, 0.9]))) for _ in range(20)]
    every = [similarity(a, b, unit, 5) for i, a in enumerate(texts) for b in texts[:i]]
    found = near_duplicates(texts, threshold=threshold, unit=unit)
    if not any(threshold <= each < min(threshold + 0.15, 1) for each in every):
        assert found.first.tolist() == plain_clusters(texts, threshold, unit, 5)
    for row, first in enumerate(found.first.tolist()):  # never joined without reason, and the first stays
        assert first <= row
        assert found.first[first] == first
        others = [i for i in range(20) if found.first[i] == first and i != row]
        assert not others or max(similarity(texts[row], texts[i], unit, 5) for i in others) >= threshold


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.integers(1, 6))
def test_grams_of_many_texts_are_those_of_the_strings(texts: list[str], size: int) -> None:
    """As many different hashes as there are different n-grams, and equal where these are equal."""
    texts = [normalize(text) for text in texts]
    plain = [" ".join(text.split()) for text in texts]
    for unit, (values, counts) in (("word", words_of(plain)), ("character", characters_of(plain))):
        hashes, many = grams_of(values, counts, size)
        rows = np.split(hashes, np.cumsum(many)[:-1])
        named: dict[int, Any] = {}
        for text, row in zip(plain, rows, strict=True):
            wide = any(
                "\u3040" <= c <= "\u30ff" or "\u3400" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff"
                for c in text
            )
            if unit == "word" and wide:
                continue
            tokens = text.split() if unit == "word" else list(f" {text} ")
            grams = [tuple(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1))]
            assert len(grams) == len(row)
            for gram, value in zip(grams, row.tolist(), strict=True):
                assert named.setdefault(value, gram) == gram
        assert len(set(named.values())) == len(named)


def test_words_of_the_same_letters_differ() -> None:
    values, _ = words_of(["listen silent", "tinsel", "aab aba"])
    assert len(set(values.tolist())) == 5


def test_signs_of_scripts_without_spaces_are_words() -> None:
    values, counts = words_of(["北京abc大 x", "", "北"])
    assert counts.tolist() == [5, 0, 1]
    assert values[0] == values[-1]
    one = "北京是中华人民共和国的首都和政治文化中心，人口超过两千万，历史悠久而且名胜古迹很多"
    found = near_duplicates([one, one.replace("两", "三")], threshold=0.6)
    assert found.first.tolist() == [0, 0]


def test_planted_duplicates_are_found_and_others_left() -> None:
    """Of pairs at or just above the threshold at most some 2 % are missed, and no other row is dropped."""
    rng = random.Random(7)
    texts, pairs = [], []
    for _ in range(600):
        words = text_of(rng, rng.randint(40, 80))
        other = varied(rng, words, rng.random() * 0.08)
        texts += [" ".join(words), " ".join(other)]
        pairs.append(similarity(texts[-2], texts[-1], "word", 5))
    found = near_duplicates(texts, threshold=0.7)
    joined = [bool(found.first[2 * i + 1] == 2 * i) for i in range(600)]
    assert all(score >= 0.7 for score, one in zip(pairs, joined, strict=True) if one)
    reach = [one for score, one in zip(pairs, joined, strict=True) if score >= 0.7]
    assert len(reach) > 300
    assert sum(reach) >= 0.99 * len(reach)
    assert found.stays[::2].all()


def test_signatures_agree_as_often_as_sets_do() -> None:
    """The chance that two sets have the same least n-gram is their Jaccard similarity (Broder 1997)."""
    rng = random.Random(11)
    errors = []
    for share in (0.02, 0.05, 0.1, 0.2):
        words = text_of(rng, 200)
        one, other = " ".join(words), " ".join(varied(rng, words, share))
        signer = minhash._Signer(4000, 1)
        keys, sketches = signer.sign(*minhash._gram_sets([one, other], "word", 5))
        true = similarity(one, other, "word", 5)
        # Bytes of sketches agree where the values do, and by chance elsewhere, once in 256.
        expected = true + (1 - true) / 256
        apart = abs((sketches[0] == sketches[1]).mean() - expected)
        assert apart < 5 * (expected * (1 - expected) / 4000) ** 0.5
        errors.append(abs((keys[:, 0] == keys[:, 1]).mean() - true) / (true * (1 - true) / 4000) ** 0.5)
    assert max(errors) < 5, "in standard deviations"


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.7, 0.95, 1.0])
def test_sketches_let_no_alike_rows_go(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are joined are the same without sketches, and most of those that are not are never compared."""
    rng = random.Random(12)
    bases = [text_of(rng, 40) for _ in range(30)]
    texts = [" ".join(varied(rng, rng.choice(bases), rng.random() * 0.2)) for _ in range(300)]
    template = text_of(rng, 24)  # a third of their word 5-grams is the same
    texts += [" ".join([*template, *text_of(rng, 18)]) for _ in range(150)]
    compared: list[int] = []
    jaccards = minhash._Sets._jaccards

    def counted(self: Any, one: Any, other: Any) -> Any:
        compared.append(len(one))
        return jaccards(self, one, other)

    monkeypatch.setattr(minhash._Sets, "_jaccards", counted)
    found = near_duplicates(texts, threshold=threshold).first.tolist()
    with_sketches = sum(compared)
    compared.clear()
    monkeypatch.setattr(
        minhash._Sets, "_may_be_alike", lambda _self, one, _other, _threshold: np.ones(len(one), dtype=bool)
    )
    assert near_duplicates(texts, threshold=threshold).first.tolist() == found
    assert with_sketches <= sum(compared)
    if threshold == 0.7:
        assert with_sketches < sum(compared) / 2


def test_exact_copies_are_told_from_near_ones() -> None:
    rng = random.Random(5)
    words = text_of(rng, 60)
    near = [*words[:-1], "other"]
    texts = [" ".join(words), " ".join(near), " ".join(words).upper() + "!", " ".join(near), "", "", "?"]
    found = near_duplicates(texts)
    assert found.first.tolist() == [0, 0, 0, 0, 4, 4, 6]
    assert found.exact.tolist() == [False, False, True, True, False, True, False]
    assert found.stays.tolist() == [True, False, False, False, True, False, True]
    assert (found.threshold, found.unit, found.size) == (0.7, "word", 5)
    assert found.recall >= 0.98


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    bases = [text_of(rng, 30) for _ in range(20)]
    texts = [" ".join(varied(rng, rng.choice(bases), 0.03)) for _ in range(200)]
    whole = near_duplicates(texts)
    assert len(set(whole.first.tolist())) < 150
    for name, value in (("_BLOCK_CHARACTERS", 1000), ("_BLOCK_ROWS", 7), ("_PAIR_GRAMS", 100), ("_PAIRS", 3)):
        monkeypatch.setattr(minhash, name, value)
    again = near_duplicates(iter(texts))
    assert again.first.tolist() == whole.first.tolist()


def test_rows_that_share_a_template_do_not_take_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    shared = text_of(rng, 30)
    texts = [" ".join([*shared, *text_of(rng, 12)]) for _ in range(600)]
    compared = 0
    alike = minhash._Sets.alike

    def counted(self: Any, one: Any, other: Any, threshold: float) -> Any:
        nonlocal compared
        compared += len(one)
        return alike(self, one, other, threshold)

    monkeypatch.setattr(minhash._Sets, "alike", counted)
    found = near_duplicates(texts, threshold=0.9)
    assert found.stays.all()
    assert compared <= 25 * 600 * (minhash._MOST_CHECKED + 1)


def test_a_million_copies_are_one_cluster_in_bounded_steps() -> None:
    first = alone(100_000)
    chain = np.arange(99_999)
    unite(first, chain, chain + 1)
    assert (first == 0).all()
    first = alone(6)
    unite(first, np.array([4, 5, 1]), np.array([5, 1, 3]))
    assert first.tolist() == [0, 1, 2, 1, 1, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30), st.integers(1, 30))
def test_uniting_in_parts_or_at_once_is_the_same(pairs: list[tuple[int, int]], cut: int) -> None:
    plain = list(range(20))
    for a, b in pairs:
        low, high = sorted((plain[a], plain[b]))
        plain = [low if each == high else each for each in plain]
    for parts in ([pairs], [pairs[:cut], pairs[cut:]]):
        first = alone(20)
        for part in parts:
            one, other = (np.array([pair[i] for pair in part], dtype=np.int64) for i in (0, 1))
            unite(first, one, other)
        assert first.tolist() == plain


def test_nothing_and_one_row() -> None:
    assert near_duplicates([]).first.tolist() == []
    assert near_duplicates(["one"]).first.tolist() == [0]
    assert near_duplicates(["\ud800", "\ud800", "a" * 100_000]).first.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    "bad", [{"threshold": 0.0}, {"threshold": 1.1}, {"size": 0}, {"permutations": 8}, {"unit": "line"}]
)
def test_settings_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        near_duplicates(["a"], **bad)


def test_texts_are_read_once_and_a_block_at_a_time() -> None:
    """When the last rows are asked for, the first ones are not held any more."""
    alive: list[int] = []

    class Text(str):
        def __del__(self) -> None:
            alive.pop()

    def rows() -> Iterator[str]:
        for number in range(3 * minhash._BLOCK_ROWS):
            alive.append(number)
            assert len(alive) <= minhash._BLOCK_ROWS + 2
            yield Text(f"row {number}")

    assert len(near_duplicates(rows()).first) == 3 * minhash._BLOCK_ROWS


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(ResourceExhausted, match="no space left"):
        near_duplicates(["one text", "another"])


PROBE = """
from ojak.similarity.minhash import near_duplicates
texts = [f"tell me about the {a} and the {b} of the north in the cold winter of the year" for a in "abcde" for b in "klmno"]
found = near_duplicates(texts, unit="character", threshold=0.93)
print(found.first.tolist())
"""


def test_clusters_do_not_depend_on_the_process() -> None:
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
    assert len(set(runs.pop().split())) > 1


def test_bands_that_are_given_find_as_many_pairs_as_their_formula_says() -> None:
    """FineWeb's 14 bands of 8: a pair at similarity s becomes a candidate with probability 1 - (1 - s^8)^14."""
    texts: list[str] = []
    for pair in range(300):
        words = [f"w{pair}x{place}" for place in range(104)]
        texts += [" ".join(words), " ".join([*words[:90], *(f"v{pair}x{place}" for place in range(14))])]
    similarity = 86 / 114  # of 100 5-grams each has 86 in common with the other
    found = near_duplicates(texts, threshold=0.7, bands=(14, 8))
    joined = int((~found.stays).sum()) / 300
    assert abs(joined - (1 - (1 - similarity**8) ** 14)) < 0.08  # three standard deviations
    assert found.recall == pytest.approx(1 - (1 - 0.7**8) ** 14)
    assert int((~near_duplicates(texts, threshold=0.7).stays).sum()) == 300
