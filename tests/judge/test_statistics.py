"""Estimates against brute force, scipy and scikit-learn, and their intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ojak.judge.statistics import auroc, auroc_interval, mean_auroc, pearson, ranks, share, spearman


def drawn(seed: int, good: int = 30, bad: int = 40, shift: float = 0.8) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(seed)
    return list(random.normal(shift, 1, good).round(1)), list(random.normal(0, 1, bad).round(1))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_won(seed: int) -> None:
    good, bad = drawn(seed)
    wins = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    assert any(win == 0.5 for win in wins)
    assert auroc(good, bad) == pytest.approx(np.mean(wins))
    assert auroc(good, bad) == pytest.approx(1 - auroc(bad, good))


def test_auroc_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    good, bad = drawn(11)
    expected = metrics.roc_auc_score([1] * len(good) + [0] * len(bad), [*good, *bad])
    assert auroc(good, bad) == pytest.approx(expected)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = 0.5 * (1 + math.erf(0.8 / 2))  # P(N(0.8, 1) > N(0, 1))
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        _, low, high = auroc_interval(list(random.normal(0.8, 1, 40)), list(random.normal(0, 1, 40)))
        hits += low <= truth <= high
    assert 0.91 <= hits / 400 <= 0.99


def test_the_interval_is_about_that_of_delong() -> None:
    good, bad = drawn(5, 60, 60)
    wins = (np.sign(np.subtract.outer(good, bad)) + 1) / 2
    spread = math.sqrt(wins.mean(1).var(ddof=1) / 60 + wins.mean(0).var(ddof=1) / 60)
    value, low, high = auroc_interval(good, bad)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert low < value < high


def test_a_perfect_separation_is_not_certain() -> None:
    value, low, high = auroc_interval([1.0] * 20, [0.0] * 20)
    assert (value, high) == (1.0, 1.0)
    assert 0.75 < low < 0.95
    assert auroc_interval([1.0] * 200, [0.0] * 200)[1] > low
    assert auroc_interval([0.0] * 20, [1.0] * 20) == pytest.approx((0.0, 0.0, 1 - low))


def test_ties_alone_are_chance() -> None:
    value, low, high = auroc_interval([3.0] * 25, [3.0] * 25)
    assert value == 0.5
    assert low == pytest.approx(1 - high)


def test_what_is_empty_is_no_number() -> None:
    assert all(map(math.isnan, auroc_interval([], [1.0])))
    assert all(map(math.isnan, mean_auroc([])))
    assert math.isnan(pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])[0])
    assert math.isnan(share(0, 0)[0])


def test_the_mean_resamples_sources_and_not_rows() -> None:
    """Ten copies of each row are no more evidence than one."""
    good, bad = drawn(7, 30, 30)
    sources = list(range(30))
    once = mean_auroc([(good, sources, bad, sources)], seed=1)
    copies = mean_auroc([(good * 10, sources * 10, bad * 10, sources * 10)], seed=1)
    assert once == pytest.approx(copies)
    assert once[0] == pytest.approx(auroc(good, bad))
    assert once[1] < once[0] < once[2]


def test_ranks_and_correlations_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = drawn(9, 50, 50)
    y = [a + b for a, b in zip(x, y, strict=True)]
    assert list(ranks(x)) == list(stats.rankdata(x))
    value, low, high = pearson(x, y)
    theirs = stats.pearsonr(x, y)
    assert value == pytest.approx(theirs.statistic)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert spearman(x, y)[0] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_share_has_wilsons_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(13, 40).proportion_ci(method="wilson")
    assert share(13, 40) == pytest.approx((13 / 40, theirs.low, theirs.high))
