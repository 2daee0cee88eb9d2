"""The arithmetic of merging against its definitions, in float64, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from merging import ties_of

from ojak.merge import methods

REAL = st.floats(-8, 8, width=32)
WEIGHT = st.floats(0.0625, 4, width=32)
VECTORS = st.integers(2, 4).flatmap(lambda m: arrays(np.float64, (m, 6), elements=REAL))


def sum_of(shares: methods.Shares, base: np.ndarray, models: np.ndarray) -> np.ndarray:
    return shares.base * base + np.asarray(shares.models) @ models


def arc(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    angle = math.acos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))
    return (math.sin((1 - share) * angle) * u + math.sin(share * angle) * v) / math.sin(angle)


def is_sound(u: np.ndarray, v: np.ndarray) -> bool:
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    return bool(lengths > 1e-3 and abs(u @ v) / lengths < 0.99)


# ------------------------------------------------------------------------------------- acceptance test 8: identities


@given(VECTORS, st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_liti_and_slerp_begin_and_end_where_they_should(models: np.ndarray, eta: float) -> None:
    assert methods.liti(0.0) == methods.Shares(1.0, (0.0,))
    assert methods.liti(1.0) == methods.Shares(0.0, (1.0,))
    gram = models[:2] @ models[:2].T
    assert methods.slerp(gram, (1, 0)) == methods.Shares(0.0, (1.0, 0.0))
    assert methods.slerp(gram, (0, 1)) == methods.Shares(0.0, (0.0, 1.0))
    one_way = methods.liti(eta)
    assert one_way.base + sum(one_way.models) == pytest.approx(1)
    assert sum_of(one_way, models[0], models[1:2]) == pytest.approx((1 - eta) * models[0] + eta * models[1])


@given(VECTORS, st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_the_arc_between_equal_lengths_keeps_the_length(models: np.ndarray, share: float) -> None:
    u, v = models[:2]
    if not is_sound(u, v):
        return
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    both = np.stack([u, v])
    made = sum_of(methods.slerp(both @ both.T, (1 - share, share)), np.zeros(6), both)
    assert np.linalg.norm(made) == pytest.approx(1, abs=1e-9)
    assert made == pytest.approx(arc(u, v, share), abs=1e-9)


def test_at_a_right_angle_half_way_is_0_707_of_each() -> None:
    assert methods.slerp(np.eye(2), (1, 1)).models == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


@given(VECTORS)
@settings(deadline=None, max_examples=25)
def test_more_than_two_go_one_after_the_other(models: np.ndarray) -> None:
    """WARP's rule: the arc made of the first m - 1 goes 1 / m of the way to model m."""
    made = models[0]
    for place in range(1, len(models)):
        if not is_sound(made, models[place]):
            return
        made = arc(made, models[place], 1 / (place + 1))
    found = sum_of(methods.slerp(models @ models.T, (1.0,) * len(models)), np.zeros(6), models)
    assert found == pytest.approx(made, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.0, -1.0], ids=["same", "parallel", "zero", "opposite"])
def test_where_there_is_no_angle_the_straight_line_takes_its_place(factor: float) -> None:
    u = np.array([1.0, 2.0, -0.5])
    both = np.stack([u, factor * u])
    shares = methods.slerp(both @ both.T, (0.75, 0.25))
    assert shares.models == pytest.approx((0.75, 0.25))
    assert all(map(math.isfinite, shares.models))


@given(VECTORS, st.lists(WEIGHT, min_size=4, max_size=4), st.permutations(range(4)), st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_the_order_of_models_matters_where_it_should_alone(
    models: np.ndarray, weights: list[float], order: list[int], mu: float
) -> None:
    count = len(models)
    weights, order = weights[:count], [place for place in order if place < count]
    base = np.ones(6)
    moved, moved_weights = models[order], [weights[place] for place in order]
    for shares in (methods.linear, methods.task):
        straight = sum_of(shares(weights), base, models)
        assert sum_of(shares(moved_weights), base, moved) == pytest.approx(straight, abs=1e-9)
    running, from_base = models[0], base
    for place, model in enumerate(models):
        running = (1 - mu) * running + mu * model if place else running
        from_base = (1 - mu) * from_base + mu * model
    assert sum_of(methods.ema(count, mu, from_base=False), base, models) == pytest.approx(running, abs=1e-9)
    assert sum_of(methods.ema(count, mu, from_base=True), base, models) == pytest.approx(from_base, abs=1e-9)


# -------------------------------------------------------------------------------------------------------- ties, dare


def cut_of(delta: torch.Tensor, kept: int) -> float:
    above, n = methods.nth_from_top(methods.magnitude_counts(delta), kept)
    return methods.magnitude(above, methods.nth_from_top(methods.magnitude_counts(delta, above), n)[0])


@given(arrays(np.float32, 40, elements=st.floats(-(2.0**99), 2.0**99, width=32)), st.integers(1, 40))
@settings(deadline=None, max_examples=25)
def test_counting_bits_finds_the_nth_largest_magnitude(values: np.ndarray, n: int) -> None:
    assert cut_of(torch.from_numpy(values.copy()), n) == np.sort(np.abs(values))[::-1][n - 1]


@given(VECTORS, st.lists(WEIGHT, min_size=4, max_size=4), st.floats(0.05, 1), st.permutations(range(4)))
@settings(deadline=None, max_examples=25)
def test_ties_is_its_definition_and_does_not_care_for_the_order(
    models: np.ndarray, weights: list[float], density: float, order: list[int]
) -> None:
    models = models.astype(np.float32).astype(np.float64)
    weights = weights[: len(models)]
    expected = ties_of(list(models), weights, density)

    def found(places: list[int]) -> np.ndarray:
        deltas = [torch.from_numpy(models[place].astype(np.float32)) for place in places]
        cuts = [cut_of(delta, max(1, int(density * 6))) for delta in deltas]
        return methods.ties(deltas, [weights[place] for place in places], cuts).numpy()

    assert found(list(range(len(models)))) == pytest.approx(expected, abs=1e-5)
    if len(models) == 2:  # a sum of two floats does not depend on their order; one of more can change a sign
        assert found([1, 0]) == pytest.approx(expected, abs=1e-5)


def test_dare_keeps_the_mean_and_drops_its_share() -> None:
    delta = torch.full((200_000,), 0.5)
    made = methods.dare(delta.clone(), 0.8, np.random.default_rng(0))
    assert set(made.tolist()) == {0.0, 2.5}
    assert float((made == 0).float().mean()) == pytest.approx(0.8, abs=0.005)
    assert float(made.mean()) == pytest.approx(0.5, rel=0.01)
    assert torch.equal(methods.dare(delta.clone(), 0.0, np.random.default_rng(0)), delta)
