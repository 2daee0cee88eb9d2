"""Drawing tokens: against brute force in float64 and exact probabilities, with fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ojak.errors import UsageError
from ojak.model import sampling
from ojak.model.request import GREEDY, Sampling
from ojak.model.sampling import CHUNK_ROWS, argmax, cut, draw, invert, token_logprobs, uniform

PLAIN = Sampling(temperature=1.0)


def logits_of(rows: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def drawn(
    logits: Tensor,
    settings_: Sequence[Sampling],
    uniforms: Tensor,
    *,
    first: bool = False,
    seen: Sequence[Tensor | None] | None = None,
) -> list[int]:
    rows = len(settings_)
    return draw(logits, settings_, uniforms, [first] * rows, seen or [None] * rows).tolist()


# -- random numbers ----------------------------------------------------------------------------------------------------


def splitmix64(seed: int, counter: int) -> float:
    """Stafford's mix 13 over seed + (counter + 1) * 2^64 / phi, as in Steele et al., in whole numbers."""
    mask = (1 << 64) - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1 << 20))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_random_number_is_a_function_of_seed_and_counter(seed: int, counter: int) -> None:
    got = uniform(torch.tensor([5, seed]), torch.tensor([9, counter]))[1].item()
    assert got == splitmix64(seed, counter)
    assert 0 <= got < 1


def test_splitmix64_gives_its_published_values() -> None:
    """The first outputs for seed 0 and for seed 1234567, from the reference implementation's test vectors."""
    assert uniform(torch.tensor([0]), torch.tensor([0])).item() == (0xE220A8397B1DCDAF >> 11) * 2.0**-53
    assert uniform(torch.tensor([1234567]), torch.tensor([0])).item() == (6457827717110365317 >> 11) * 2.0**-53


def test_random_numbers_are_even() -> None:
    """Over the counters of one row, and over rows at one counter; seed 0 and counter 0 are nothing special."""
    ten = torch.arange(20000)
    for seeds, counters in ((torch.zeros_like(ten), ten), (ten, torch.zeros_like(ten)), (ten, ten)):
        found = torch.histc(uniform(seeds, counters).float(), 50, 0, 1)
        assert ((found - 400).square() / 400).sum() < 100  # chi-square, 49 degrees: 1 in 30,000
    assert uniform(torch.tensor([0]), torch.tensor([0])).item() > 0.01


# -- inversion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [7, 256, 300, 1024, 2000])
def test_inversion_gives_each_token_its_share(vocabulary: int) -> None:
    """At evenly spaced numbers each token is taken as often as its probability says, to one step."""
    weights = logits_of(1, vocabulary).exp()
    weights[0, 1] = 0
    steps = 20000
    uniforms = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    tokens = torch.cat([invert(weights.expand(500, -1), some) for some in uniforms.split(500)])
    counts = torch.bincount(tokens, minlength=vocabulary).double()
    exact = weights[0].double() / weights[0].double().sum() * steps
    assert (counts - exact).abs().max() <= 1.01
    assert tokens.diff().min() >= 0


def test_draws_follow_the_probabilities() -> None:
    """Chi-square over draws by the generator's own numbers."""
    rows, vocabulary = 20000, 40
    logits = logits_of(1, vocabulary, spread=1.5)
    uniforms = uniform(torch.arange(rows), torch.full((rows,), 3))
    tokens = drawn(logits.expand(rows, -1), [Sampling(temperature=0.8)] * rows, uniforms)
    expected = (logits[0].double() / 0.8).softmax(-1) * rows
    counts = torch.bincount(torch.tensor(tokens), minlength=vocabulary)
    assert ((counts - expected).square() / expected).sum() < 85  # 39 degrees of freedom: 1 in 30,000


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_a_token_without_weight_is_never_taken(u: float) -> None:
    weights = torch.zeros(1, 1000)
    weights[0, [300, 301, 700]] = torch.tensor([1e-30, 1.0, 1e-12])
    token = invert(weights, torch.tensor([u], dtype=torch.float64)).item()
    assert weights[0, int(token)] > 0


# -- greedy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [5, 256, 700, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_is_torchs_and_the_first_of_equals(vocabulary: int, dtype: torch.dtype) -> None:
    logits = logits_of(64, vocabulary).to(dtype)
    logits[5] = 1.0
    logits[6, vocabulary // 2 :] = 9.0
    assert torch.equal(argmax(logits), logits.argmax(-1))
    assert argmax(logits)[5:7].tolist() == [0, vocabulary // 2]
    assert drawn(logits, [GREEDY] * 64, torch.zeros(64).double()) == logits.argmax(-1).tolist()


# -- cuts --------------------------------------------------------------------------------------------------------------


def kept_by_brute_force(logits: np.ndarray, setting: Sampling) -> tuple[np.ndarray, list[float]]:
    """Which tokens remain, in float64; and by how little the cuts decided (relative gaps to the thresholds)."""
    weights = np.exp((logits - logits.max()) / setting.temperature)
    floor, close = 0.0, []
    ranked = np.sort(weights)[::-1]
    if setting.top_k:
        ranked = ranked[: setting.top_k]
        floor = ranked[-1]
    if setting.top_p < 1:
        running = np.cumsum(ranked)
        target = setting.top_p * running[-1]
        close = list(np.abs(running - target) / target)
        floor = ranked[min(int(np.searchsorted(running, target)), len(ranked) - 1)]
    close += list(np.abs(weights - setting.min_p)) if setting.min_p else []
    return weights >= max(floor, setting.min_p), close


@given(
    st.integers(0, 10**6),
    st.sampled_from([3, 40, 257, 1500]),
    st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    st.sampled_from([0, 1, 5, 60, 1100, 5000]),
    st.sampled_from([0.0, 0.001, 0.2, 1.0]),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0.1, 1.0, 6.0]),
    st.booleans(),
)
@settings(max_examples=250, derandomize=True, deadline=None)
def test_cuts_keep_what_brute_force_keeps(
    seed: int, vocabulary: int, top_p: float, top_k: int, min_p: float, heat: float, spread: float, tied: bool
) -> None:
    logits = logits_of(1, vocabulary, seed, spread)
    if tied:
        logits = logits.round()
    setting = Sampling(temperature=heat, top_p=top_p, top_k=top_k, min_p=min_p)
    kept, close = kept_by_brute_force(logits[0].double().numpy(), setting)
    weights = cut(((logits - logits.max()) / heat).exp(), [setting])[0]
    if min(close, default=1.0) > 1e-5:  # nearer, float32 may fall on the other side
        assert (weights > 0).numpy().tolist() == kept.tolist()
    assert weights.max() == 1
    uniforms = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    tokens = drawn(logits.expand(50, -1), [setting] * 50, uniforms)
    assert (weights[tokens] > 0).all()


def test_equals_of_the_last_kept_token_are_kept() -> None:
    weights = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.1]])
    assert cut(weights.clone(), [Sampling(temperature=1.0, top_k=2)])[0].tolist() == [1.0, 0.5, 0.5, 0.5, 0.0]
    assert cut(weights.clone(), [Sampling(temperature=1.0, top_p=0.5)])[0].tolist() == [1.0, 0.5, 0.5, 0.5, 0.0]


def test_cuts_one_after_another() -> None:
    """top-p counts from what top-k kept: of 0.5, 0.3 (0.2 is gone) the first alone makes 0.6."""
    weights = torch.tensor([[0.5, 0.3, 0.2]]) / 0.5
    both = Sampling(temperature=1.0, top_k=2, top_p=0.6)
    assert (cut(weights.clone(), [both])[0] > 0).tolist() == [True, False, False]
    assert (cut(weights.clone(), [Sampling(temperature=1.0, top_p=0.6)])[0] > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("top_k", [0, 17, 3000])
def test_a_nucleus_of_nearly_everything(top_k: int) -> None:
    """Sums rounded in another order must not leave a nucleus without an end."""
    for seed in range(40):
        weights = (logits_of(1, 1500, seed) - 12).exp()
        weights /= weights.max()
        setting = Sampling(temperature=1.0, top_p=1 - 2.0**-53, top_k=top_k)
        assert (cut(weights.clone(), [setting]) > 0).sum() >= (top_k or 1500) * 0.9 * (top_k < 1500)


def test_a_nucleus_wider_than_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(3, 900, spread=0.2)
    setting = Sampling(temperature=1.0, top_p=0.9)
    whole = cut(logits.exp() / logits.amax(-1, keepdim=True).exp(), [setting] * 3)
    monkeypatch.setattr(sampling, "CANDIDATES", 8)
    assert torch.equal(cut(logits.exp() / logits.amax(-1, keepdim=True).exp(), [setting] * 3), whole)
    assert 600 < (whole > 0).sum(-1).min() < 900


# -- edits of logits ---------------------------------------------------------------------------------------------------


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = torch.tensor([[4.0, 3.0, -1.0, -1.1]])
    seen = [torch.tensor([0, 2])]
    strong, weak = (Sampling(temperature=0.0, repetition_penalty=p) for p in (2.0, 1.2))
    zero = torch.zeros(1).double()
    assert drawn(logits, [strong], zero, seen=seen) == [1]
    assert drawn(logits, [weak], zero, seen=seen) == [0]
    wanted = torch.tensor([2.0, 3.0, -2.0, -1.1]).softmax(-1).double()
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    hot = Sampling(temperature=1.0, repetition_penalty=2.0)
    tokens = drawn(logits.expand(4000, -1), [hot] * 4000, steps, seen=seen * 4000)
    counts = torch.bincount(torch.tensor(tokens), minlength=4)
    assert (counts / 4000 - wanted).abs().max() < 1e-3
    assert logits.tolist() == torch.tensor([[4.0, 3.0, -1.0, -1.1]]).tolist()


def test_banned_tokens_are_banned_at_first_only() -> None:
    logits = logits_of(200, 30)
    for heat in (0.0, 1.0):
        banned = Sampling(temperature=heat, banned_first=(3, int(logits[0].argmax())))
        uniforms = uniform(torch.arange(200), torch.zeros(200, dtype=torch.int64))
        at_first = drawn(logits[:1].expand(200, -1), [banned] * 200, uniforms, first=True)
        later = drawn(logits[:1].expand(200, -1), [banned] * 200, uniforms)
        assert not set(at_first) & set(banned.banned_first)
        assert set(later) & set(banned.banned_first)


def test_the_first_temperature_holds_for_the_first_token_only() -> None:
    logits = logits_of(1, 30, spread=1.0).expand(100, -1)
    uniforms = uniform(torch.arange(100), torch.zeros(100, dtype=torch.int64))
    cold_start = Sampling(temperature=1.0, first_temperature=0.0)
    hot_start = Sampling(temperature=0.0, first_temperature=1.0)
    best = int(logits[0].argmax())
    assert set(drawn(logits, [cold_start] * 100, uniforms, first=True)) == {best}
    assert len(set(drawn(logits, [cold_start] * 100, uniforms))) > 3
    assert len(set(drawn(logits, [hot_start] * 100, uniforms, first=True))) > 3
    assert set(drawn(logits, [hot_start] * 100, uniforms)) == {best}


# -- rows by themselves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [61, 512, 1300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_draw_does_not_depend_on_its_neighbours(vocabulary: int, dtype: torch.dtype) -> None:
    kinds = [
        GREEDY,
        PLAIN,
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.3, top_k=7),
        Sampling(temperature=1.0, min_p=0.05),
        Sampling(temperature=1.0, repetition_penalty=1.3),
        Sampling(temperature=0.9, top_p=0.8, top_k=50, first_temperature=0.0),
    ]
    rows = 3 * CHUNK_ROWS + 5
    random = np.random.default_rng(0)
    logits = logits_of(rows, vocabulary).to(dtype)
    setting = [kinds[i % len(kinds)] for i in range(rows)]
    uniforms = uniform(torch.arange(rows), torch.arange(rows))
    seen = [torch.tensor([1, 4]) if s.repetition_penalty != 1 else None for s in setting]
    together = drawn(logits, setting, uniforms, seen=seen)
    for _ in range(6):
        some = random.permutation(rows)[: random.integers(1, rows)].tolist()
        alone = drawn(logits[some], [setting[i] for i in some], uniforms[some], seen=[seen[i] for i in some])
        assert alone == [together[i] for i in some]


def test_log_probabilities() -> None:
    logits = logits_of(9, 700).bfloat16()
    tokens = torch.arange(9) * 11
    wanted = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(token_logprobs(logits, tokens).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"first_temperature": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Sampling(**values)  # pyright: ignore[reportArgumentType]


def test_settings_as_a_record() -> None:
    assert GREEDY.to_dict() == {"temperature": 0.0, "top_p": 1.0}
    assert Sampling(temperature=1.0, top_k=3, banned_first=(4,)).to_dict() == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 3,
        "banned_first": (4,),
    }
