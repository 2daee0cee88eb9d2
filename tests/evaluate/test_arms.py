"""Intervals over seeds and rows, and differences between arms, against tables, sums and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ojak.evaluate.arms import (
    Figure,
    Rowwise,
    compare,
    difference,
    over_rows,
    over_seeds,
    summary,
    t_between,
    t_quantile,
)


def rowwise(values: list[float], below: list[float] | None = None, ids: list[int] | None = None) -> Rowwise:
    return Rowwise(tuple(ids or range(len(values))), tuple(values), tuple(below or [1.0] * len(values)))


@pytest.mark.parametrize(
    ("freedom", "expected"),  # of any table of Student's t at 0.975
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (29, 2.045), (120, 1.980)],
)  # fmt: skip
def test_quantiles_of_t_are_those_of_the_table(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 7, 20])
def test_the_distribution_of_t_is_the_integral_of_its_density(freedom: int) -> None:
    grid = np.linspace(-1.7, 1.7, 200_001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = scale * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    assert t_between(1.7, freedom) == pytest.approx(float(np.trapezoid(density, grid)), abs=1e-8)


def test_the_interval_over_seeds_is_the_t_interval() -> None:
    found = over_seeds([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert found == pytest.approx((3 - half, 3 + half), rel=1e-5)
    assert over_seeds([1.0]) is None


def test_the_interval_over_rows_is_the_bootstrap_s() -> None:
    random = np.random.default_rng(3)
    above, below = random.exponential(5, 400), random.integers(1, 40, 400).astype(float)
    low, high = over_rows([rowwise(list(above), list(below))]) or (0, 0)
    # The delta method: the variance of a ratio of means.
    value = above.sum() / below.sum()
    spread = math.sqrt(((above - value * below) ** 2).mean() / 400) / below.mean()
    assert (low, high) == pytest.approx((value - 1.96 * spread, value + 1.96 * spread), rel=0.03)


def test_rows_are_paired_by_their_ids() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(0, 10, 200)
    ours, theirs = hard + 0.5 + random.normal(0, 0.1, 200), hard
    order = random.permutation(200)
    shuffled = rowwise(list(theirs[order]), ids=[int(i) for i in order])
    low, high = over_rows([rowwise(list(ours))], [shuffled]) or (0, 0)
    assert 0.46 < low < 0.5 < high < 0.54  # unpaired it would be wider than 2


def test_only_rows_that_all_have_count() -> None:
    ours = rowwise([1.0, 2.0, 50.0], ids=[0, 1, 2])
    theirs = rowwise([0.0, 1.0, -70.0], ids=[0, 1, 3])
    assert over_rows([ours], [theirs]) == pytest.approx((1.0, 1.0))
    assert over_rows([ours], [rowwise([1.0], ids=[9])]) is None
    assert over_rows([ours], [3.0]) is None


def test_a_summary_covers_both_kinds_of_chance_and_says_which() -> None:
    tables: list[Figure] = [rowwise([0.0, 1.0] * 20), rowwise([0.5] * 40), rowwise([1.0, 0.6] * 20)]
    found = summary(tables)
    seeds, rows = over_seeds([0.5, 0.5, 0.8]), over_rows(tables)
    assert seeds is not None and rows is not None
    assert found["mean"] == pytest.approx(0.6)
    assert found["values"] == pytest.approx([0.5, 0.5, 0.8])
    assert (found["low"], found["high"]) == (min(seeds[0], rows[0]), max(seeds[1], rows[1]))
    assert found["over"] == "seeds and rows"
    assert summary(tables[:1])["over"] == "rows"
    assert summary([1.0, 2.0])["over"] == "seeds"
    assert summary([1.0]) == {"mean": 1.0, "low": None, "high": None, "over": "", "values": [1.0]}


def test_a_difference_is_decided_where_no_interval_reaches_zero() -> None:
    assert difference([5.0, 5.1, 5.2], [1.0, 1.0, 1.1])["decided"]
    assert not difference([5.0, 1.0, 3.0], [4.0, 2.0, 2.9])["decided"]
    assert not difference([5.0], [1.0])["decided"]  # one number against one: nothing says how sure it is
    steady = [rowwise([1.0] * 30) for _ in range(3)]
    noisy = [rowwise([0.0, 2.1] * 15) for _ in range(3)]  # the same for each seed, but not for each row
    found = difference(noisy, steady)
    assert (found["over"], found["decided"]) == ("seeds and rows", False)


def test_seeds_are_paired_and_one_base_stands_against_all() -> None:
    found = difference([1.1, 2.1, 3.1], [1.0, 2.0, 3.0])
    assert found["value"] == pytest.approx(0.1) and found["decided"]
    assert difference([1.0, 2.0, 3.0], [1.0])["value"] == pytest.approx(1.0)


def test_true_differences_of_nothing_are_seldom_decided() -> None:
    random = np.random.default_rng(0)
    decided = 0
    for _ in range(300):
        seeds = random.normal(0, 1, (2, 3))
        decided += difference(list(seeds[0]), list(seeds[1]))["decided"]
    assert decided <= 30  # 5 % of 300, and room for chance


def test_arms_are_compared_with_one_of_them() -> None:
    arms: dict[str, list[dict[str, Figure]]] = {
        "base": [{"chrf": rowwise([1.0, 3.0])}],
        "a": [{"chrf": rowwise([3.0, 5.0]), "val_loss": 2.0}, {"chrf": rowwise([3.0, 5.0]), "val_loss": 2.2}],
        "b": [{"chrf": rowwise([9.0, 9.0]), "val_loss": 1.0}, {"chrf": rowwise([9.0, 9.0]), "val_loss": 1.1}],
    }
    found = compare(arms, "a")
    assert (found["metrics"], found["against"]) == (["chrf", "val_loss"], "a")
    assert found["arms"]["base"].keys() == {"chrf"}
    assert found["differences"].keys() == {"base", "b"}
    assert found["differences"]["base"]["chrf"]["value"] == pytest.approx(-2)
    assert found["differences"]["b"]["val_loss"]["value"] == pytest.approx(-1.05)
    of = {"val_loss": {"a": "alpaca", "b": "phi-3"}}
    assert compare(arms, "a", comparable=of)["differences"]["b"].keys() == {"chrf"}
