"""Drawing tokens: random numbers, inversion, cuts and edits, each against a slow and independent calculation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ojak.model.request import GREEDY, Sampling
from ojak.model.sampling import (
    BLOCK,
    BROKEN,
    CANDIDATES,
    CHUNK_ROWS,
    argmax,
    cut,
    draw,
    invert,
    token_logprobs,
    uniform,
)

ONE = 1 - 2.0**-53  # the largest number that `uniform` gives
WIDTHS = (1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5)
SEEDS = st.integers(-(2**63), 2**63 - 1)


def random_logits(seed: int, rows: int, width: int, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def draw_one(logits: Sequence[float], sampling: Sampling, u: float = 0.5, **more: object) -> int:
    """One row drawn alone. more: first (a flag), seen (ids)."""
    seen = more.get("seen")
    ids = torch.tensor(seen) if seen else None
    return int(
        draw(torch.tensor([logits]), [sampling], torch.tensor([u]).double(), [bool(more.get("first"))], [ids])
    )


def chi_square(drawn: Tensor, probabilities: np.ndarray) -> float:
    """How many standard deviations the statistic lies above what is expected (normal approximation)."""
    counts = np.bincount(drawn.numpy(), minlength=len(probabilities))
    assert not counts[probabilities == 0].any()
    expected = (probabilities * len(drawn))[probabilities > 0]
    statistic = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


# -- uniform ------------------------------------------------------------------------------------------------------------


def splitmix64(seed: int, counter: int) -> float:
    """The published algorithm in whole numbers of any size: state after counter + 1 steps, finalised."""
    mask = 2**64 - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / 2**53


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2**31)), min_size=1, max_size=20))
def test_uniform_is_splitmix64_of_each_pair_alone(pairs: list[tuple[int, int]]) -> None:
    seeds, counters = torch.tensor(pairs).unbind(-1)
    assert uniform(seeds, counters).tolist() == [splitmix64(*pair) for pair in pairs]


def test_splitmix64_gives_its_published_values() -> None:
    """The first outputs for the seeds 0 and 1234567, from the reference implementation's test vectors."""
    first = uniform(torch.tensor([0, 1234567]), torch.tensor([0, 0]))
    assert first.tolist() == [(value >> 11) / 2**53 for value in (0xE220A8397B1DCDAF, 6457827717110365317)]


@pytest.mark.parametrize("along", ["counters", "seeds"])
def test_uniform_looks_uniform(along: str) -> None:
    count = 20_000
    for start in (0, 1, 12345, -(2**62)):
        many, one = torch.arange(count), torch.zeros(count, dtype=torch.int64)
        values = uniform(start + one, many) if along == "counters" else uniform(start + many, one)
        steps = torch.arange(count + 1).double() / count
        ordered = values.sort().values
        distance = torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max()
        assert distance < 1.95 / count**0.5  # Kolmogorov-Smirnov at 0.1 %
        pairs = torch.stack([values[:-1], values[1:]])
        assert torch.corrcoef(pairs)[0, 1].abs() < 4 / count**0.5


# -- argmax -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from(WIDTHS), st.integers(1, 5), st.sampled_from([2, 50, 10**6]))
def test_argmax_is_the_first_of_the_largest(seed: int, width: int, rows: int, values: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits_NV = torch.randint(-values, values, (rows, width), generator=random).float()
    wanted = logits_NV.numpy().argmax(-1).tolist()
    assert argmax(logits_NV).tolist() == wanted
    assert argmax(logits_NV.bfloat16()).tolist() == logits_NV.bfloat16().float().numpy().argmax(-1).tolist()


# -- invert -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from(WIDTHS), st.floats(0, 1), st.data())
def test_invert_equals_a_search_in_the_running_sum(
    seed: int, width: int, zeros: float, data: st.DataObject
) -> None:
    """Weights are whole numbers, so every sum is exact and the answer is one, also just on the border of a token."""
    random = np.random.default_rng(seed)
    weights = random.integers(1, 9, width) * (random.random(width) >= zeros)
    weights[random.integers(width)] = 4
    ends = weights.cumsum()
    total = 1 << int(ends[-1]).bit_length()  # so that border / total is exact
    weights[np.flatnonzero(weights)[-1]] += total - ends[-1]
    ends = weights.cumsum()
    border = data.draw(st.sampled_from(sorted({0, *ends[:-1].tolist()} - {total})))
    us = [0.0, ONE, border / total, np.nextafter(border / total, 1), data.draw(st.floats(0, ONE))]
    tokens = invert(torch.tensor(weights).float().expand(len(us), -1), torch.tensor(us).double())
    for u, token in zip(us, tokens.tolist(), strict=True):
        assert weights[token] > 0
        assert token == np.searchsorted(ends, u * total, side="right")


@pytest.mark.parametrize("width", [5, BLOCK, 700])
def test_the_edges_give_the_first_and_the_last_possible_token(width: int) -> None:
    weights = torch.zeros(2, width)
    weights[:, 2:4] = torch.tensor([1e-30, 0.3])
    assert invert(weights, torch.tensor([0.0, ONE]).double()).tolist() == [2, 3]
    weights = torch.rand(2, width, generator=torch.Generator().manual_seed(1)) + 0.1
    assert invert(weights, torch.tensor([0.0, ONE]).double()).tolist() == [0, width - 1]


def test_rounded_sums_lead_to_no_token_without_weight() -> None:
    """A block's sum is float32: rounded up, its end lies beyond the block's last weight."""
    weights = torch.rand(400, 2 * BLOCK, generator=torch.Generator().manual_seed(2)) + 0.1
    weights[:, 0::BLOCK] = weights[:, -9:] = 0
    for u, place in ((0.0, 1), (ONE, 2 * BLOCK - 10)):
        assert invert(weights, torch.full((400,), u).double()).unique().tolist() == [place]
    # Two blocks with one weight each, and the uniforms around the border between them.
    small = torch.rand(400, generator=torch.Generator().manual_seed(3)) * 2.0**-30
    weights = torch.zeros(400, 2 * BLOCK)
    weights[:, 5], weights[:, BLOCK + 5] = 1.0, small
    border = 1.0 / (1.0 + small.double())
    for step in range(-3, 4):
        drawn = invert(weights, (border + step * 2.0**-53).clamp(max=ONE))
        assert set(drawn.tolist()) <= {5, BLOCK + 5}


@pytest.mark.parametrize("width", [3, 40, 1000])
def test_invert_draws_with_the_exact_frequencies(width: int) -> None:
    weights = random_logits(width, 1, width, 1.0).exp()
    weights[0, ::5] = 0
    probabilities = (weights.double() / weights.double().sum())[0].numpy()
    us = uniform(torch.full((40_000,), 7), torch.arange(40_000))
    drawn = torch.cat([invert(weights.expand(len(part), -1), part) for part in us.split(2000)])
    assert chi_square(drawn, probabilities) < 4


# -- cuts ---------------------------------------------------------------------------------------------------------------


def kept_by_hand(weights: np.ndarray, sampling: Sampling, slack: float) -> np.ndarray:
    """What top-k, top-p, min-p leave, in float64. slack: a share by which top_p and min_p are moved, for rounding."""
    values = weights.astype(np.float64)
    ranked = np.sort(values)[::-1]
    floor = 0.0
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
        floor = ranked[-1]
    if sampling.top_p < 1:
        wanted = sampling.top_p * (1 + slack) * ranked.sum()
        floor = ranked[min(int((ranked.cumsum() < wanted).sum()), len(ranked) - 1)]
    return values >= max(floor, sampling.min_p * (1 - slack))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    width=st.sampled_from([2, 50, 300, 2 * CANDIDATES, 3 * CANDIDATES + 7]),
    scale=st.sampled_from([0.0, 0.01, 1.0, 3.0, 20.0]),
    rows=st.lists(
        st.builds(
            Sampling,
            temperature=st.just(1.0),
            top_p=st.one_of(st.just(1.0), st.floats(0.001, 1.0)),
            top_k=st.one_of(st.just(0), st.integers(1, 60), st.sampled_from([CANDIDATES, CANDIDATES + 900])),
            min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_cuts_equal_a_slow_calculation(seed: int, width: int, scale: float, rows: list[Sampling]) -> None:
    logits = random_logits(seed, len(rows), width, scale)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    left = cut(weights.clone(), rows)
    for before, after, sampling in zip(weights.numpy(), left.numpy(), rows, strict=True):
        kept = after > 0
        at_least = kept_by_hand(before, sampling, -1e-5) & kept_by_hand(before, sampling, 1e-5)
        at_most = kept_by_hand(before, sampling, 1e-5) | kept_by_hand(before, sampling, -1e-5)
        positive = before > 0
        assert (at_least & positive <= kept).all()
        assert (kept <= at_most).all()
        assert (after[kept] == before[kept]).all()


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_p=0.9), 3600),
        (Sampling(top_k=2000), 2000),
        (Sampling(top_k=2000, top_p=0.75), 1500),
        (Sampling(top_k=400, top_p=0.75), 300),
        (Sampling(top_p=0.1), 400),
    ],
)
def test_a_nucleus_may_hold_more_than_the_first_candidates(sampling: Sampling, kept: int) -> None:
    """4000 almost equal weights, each one a little smaller than the one before it."""
    weights = 1 - torch.arange(4000) * 1e-6
    left = cut(weights[None].clone(), [sampling])[0]
    count = int((left > 0).sum())
    assert abs(count - kept) <= 6
    assert (left[:count] > 0).all()


def test_what_is_as_probable_as_the_last_one_kept_is_kept() -> None:
    weights = torch.tensor([[1.0, 0.5, 0.5, 0.25]])
    assert cut(weights.clone(), [Sampling(top_k=2)]).tolist() == [[1.0, 0.5, 0.5, 0.0]]
    assert cut(weights.clone(), [Sampling(top_p=0.5)]).tolist() == [[1.0, 0.5, 0.5, 0.0]]
    assert cut(weights.clone(), [Sampling(min_p=0.5)]).tolist() == [[1.0, 0.5, 0.5, 0.0]]


def test_top_k_one_is_greedy_and_what_is_cut_is_never_drawn() -> None:
    logits = [0.0, 2.0, 1.0, 1.5]
    for u in (0.0, 0.3, ONE):
        assert draw_one(logits, Sampling(temperature=5.0, top_k=1), u) == 1
        assert draw_one(logits, Sampling(temperature=1.0, top_k=2), u) in (1, 3)
        assert draw_one(logits, Sampling(temperature=1.0, min_p=0.5), u) in (1, 3)


# -- draw ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draw_follows_the_softmax_at_its_temperature(temperature: float) -> None:
    logits = random_logits(3, 1, 30, 1.5)
    count = 6000
    us = uniform(torch.full((count,), 5), torch.arange(count))
    many = [Sampling(temperature=temperature)] * count
    drawn = draw(logits.expand(count, -1), many, us, [False] * count, [None] * count)
    probabilities = (logits[0].double() / temperature).softmax(-1).numpy()
    assert chi_square(drawn, probabilities) < 4


@pytest.mark.parametrize(("penalty", "wanted"), [(1.0, 2), (1.2, 2), (1.6, 0), (2.1, 3)])
def test_repetition_penalty_divides_what_is_positive(penalty: float, wanted: int) -> None:
    logits = [2.0, -4.0, 3.0, 1.45]
    assert (
        draw_one(logits, Sampling(repetition_penalty=penalty), seen=[1, 2, 0] if penalty > 2 else [2])
        == wanted
    )


def test_repetition_penalty_multiplies_what_is_negative() -> None:
    assert draw_one([-1.0, -1.5], Sampling(repetition_penalty=1.6), seen=[0]) == 1
    assert draw_one([-1.0, -1.5], Sampling(repetition_penalty=0.6), seen=[1]) == 1
    assert draw_one([-1.0, -1.5], Sampling(repetition_penalty=1.4), seen=[0]) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_holds_for_the_first_token_alone(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, banned_first=(1, 3))
    logits = [0.0, 60.0, 30.0, 59.0]
    assert draw_one(logits, sampling, first=True) == 2
    assert draw_one(logits, sampling, first=False) == 1
    for u in (0.0, ONE):
        assert draw_one([0.0, 0.0, 0.0, 0.0], sampling, u, first=True) in (0, 2)


def test_the_first_temperature_holds_for_the_first_token_alone() -> None:
    logits = [1.0, 0.0]  # at temperature 1 the second begins at u = 0.73, at 100 at 0.5025
    for u, hot in ((0.7, 1), (0.4, 0)):
        assert draw_one(logits, Sampling(temperature=1.0, first_temperature=99.0), u, first=True) == hot
        assert draw_one(logits, Sampling(temperature=1.0, first_temperature=99.0), u, first=False) == 0
    assert draw_one(logits, Sampling(temperature=1.0, first_temperature=0.0), 0.99, first=True) == 0
    assert draw_one(logits, Sampling(temperature=1.0, first_temperature=0.0), 0.99, first=False) == 1
    assert draw_one(logits, Sampling(temperature=0.0, first_temperature=1.0), 0.99, first=True) == 1


def test_logits_stay_as_they_are() -> None:
    logits = random_logits(1, 3, 40)
    before = logits.clone()
    sampling = Sampling(temperature=1.0, top_k=3, repetition_penalty=1.5, banned_first=(2,))
    draw(logits, [sampling] * 3, torch.rand(3).double(), [True] * 3, [torch.arange(9)] * 3)
    assert torch.equal(logits, before)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.3]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    top_k=st.sampled_from([0, 5, CANDIDATES + 1]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    first_temperature=st.sampled_from([None, 0.0, 2.0]),
    banned_first=st.sampled_from([(), (0, 1, 2)]),
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    width=st.sampled_from([3, 300, 4 * BLOCK, 1500]),
    rows=st.lists(st.tuples(SAMPLINGS, st.booleans()), min_size=2, max_size=3 * CHUNK_ROWS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_draw_depends_on_neither_neighbours_nor_chunk(
    seed: int, width: int, rows: list[tuple[Sampling, bool]], dtype: torch.dtype
) -> None:
    logits = random_logits(seed, len(rows), width).to(dtype)
    us = uniform(torch.full((len(rows),), seed), torch.arange(len(rows)))
    seen = [torch.tensor([i % width]) if s.repetition_penalty != 1 else None for i, (s, _) in enumerate(rows)]

    def drawn(order: Sequence[int]) -> list[int]:
        picked = [rows[i] for i in order]
        return draw(
            logits[list(order)], [s for s, _ in picked], us[list(order)], [f for _, f in picked], [seen[i] for i in order]
        ).tolist()  # fmt: skip

    together = drawn(range(len(rows)))
    assert together == [drawn([i])[0] for i in range(len(rows))]
    assert together[::-1] == drawn(range(len(rows) - 1, -1, -1))


@pytest.mark.parametrize("convert", [torch.Tensor.float, torch.Tensor.bfloat16])
def test_logprobs_are_those_of_the_unedited_logits(convert: Callable[[Tensor], Tensor]) -> None:
    logits = convert(random_logits(0, 4, 50))
    tokens = torch.tensor([0, 7, 49, 3])
    wanted = logits.double().log_softmax(-1)[torch.arange(4), tokens]
    assert torch.allclose(token_logprobs(logits, tokens).double(), wanted, atol=1e-5)


def test_settings_as_a_record() -> None:
    assert GREEDY.to_dict() == {"temperature": 0.0, "top_p": 1.0}
    changed = {"temperature": 1.0, "top_p": 0.5, "top_k": 3, "banned_first": (4,)}
    assert Sampling(temperature=1.0, top_p=0.5, top_k=3, banned_first=(4,)).to_dict() == changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [BLOCK - 1, 3 * BLOCK])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=0.7, top_k=3),
        Sampling(repetition_penalty=1.2),
    ],
)
def test_nothing_is_drawn_where_logits_are_no_numbers(
    sampling: Sampling, width: int, dtype: torch.dtype
) -> None:
    logits = random_logits(3, 5, width).to(dtype)
    logits[1, width // 2] = float("nan")
    logits[2] = float("-inf")
    logits[3, width - 1] = float("inf")
    seen = [torch.tensor([0, 1])] * 5

    def drawn(rows: list[int]) -> list[int]:
        us = torch.full((len(rows),), 0.3).double()
        return draw(logits[rows], [sampling] * len(rows), us, [False] * len(rows), seen[: len(rows)]).tolist()

    together = drawn([0, 1, 2, 3, 4])
    assert together[1:4] == [BROKEN] * 3
    assert [together[0], together[4]] == drawn([0, 4])
    assert min(together[0], together[4]) >= 0


def test_a_few_impossible_tokens_break_nothing() -> None:
    assert draw_one([float("-inf"), 1.0], Sampling(temperature=1.0)) == 1
    assert draw_one([float("-inf"), 1.0], GREEDY) == 1
