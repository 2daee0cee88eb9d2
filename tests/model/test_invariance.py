"""The checks at start-up see a kernel whose bits depend on the batch, and generation then keeps rows independent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.model import cache as cache_module
from ojak.model.cache import LEAST_COLUMNS, PREFILL_TOKENS, CacheShape, SlotCache
from ojak.model.decoder import Decoder
from ojak.model.generate import Generator
from ojak.model.invariance import Invariance, check_invariance
from ojak.model.request import Request, Sampling

SIZES = (1, 2, 4, 8, 16)
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def found_with(decoder: Decoder, *, slots: int = 16, capacity: int = 100, pool: int = 0) -> Invariance:
    shape = CacheShape(slots=slots, capacity=capacity, prefix_capacity=pool)
    cache = SlotCache(decoder.config, shape, decoder.model.embed_tokens.weight.dtype, torch.device("cpu"))
    return check_invariance(decoder, cache, SIZES)


def patch(
    monkeypatch: pytest.MonkeyPatch, rule: Callable[[int], float], only: Callable[[Tensor], bool]
) -> None:
    """Linear layers whose result is off by a factor that depends on the number of rows."""
    plain: Linear = F.linear

    def off(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = plain(x, weight, bias)
        return out * (1 + rule(x.numel() // x.shape[-1])) if only(weight) else out

    monkeypatch.setattr(F, "linear", off)


def every(_weight: Tensor) -> bool:
    return True


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_well_behaved_products_may_be_used_at_all_sizes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row by itself: what is the same whatever the shape. Attention's own products stay as they are."""
    monkeypatch.setattr(
        F, "linear", lambda x, w, b=None: (x[..., None, :] * w).sum(-1) + (0 if b is None else b)
    )
    found = found_with(tiny.decoder(family))
    assert found.tiled
    assert found.sizes == {size for size in SIZES if LEAST_COLUMNS <= size < 16}


def test_a_size_whose_bits_differ_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch, lambda rows: 1e-6 * (rows == 8), every)
    found = found_with(tiny.decoder("llama"))
    assert found.tiled
    assert 8 not in found.sizes
    assert 4 in found.sizes


def test_tiles_that_differ_rule_out_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch, lambda rows: 1e-6 * (rows == PREFILL_TOKENS), every)
    assert found_with(tiny.decoder("llama")) == Invariance()


def test_a_prompt_and_a_step_that_differ_rule_out_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token's keys fed in a prompt are then not those of the token fed alone; tiles may still be used."""
    patch(monkeypatch, lambda rows: 1e-6 * (rows <= 16), every)
    found = found_with(tiny.decoder("llama", dtype=torch.float32))
    assert found.tiled
    assert not found.reusable


def test_output_layers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch, lambda rows: 1e-6 * (rows == 8), lambda weight: weight.shape[0] == tiny.VOCAB)
    assert 8 not in found_with(tiny.decoder("llama")).sizes


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_large_output_layer_is_probed_once_at_each_size(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small model with a large vocabulary it costs far more than all the rest."""
    large = 1 << 16
    counted: list[int] = []

    def rule(rows: int) -> float:
        counted.append(rows)
        return 1e-6 * (rows == 8)

    patch(monkeypatch, rule, lambda weight: weight.shape[0] == large)
    found = found_with(tiny.decoder(family, vocab_size=large))
    assert found.tiled
    assert found.sizes == {4}
    assert sorted(counted) == [4, 8, 16]


def test_a_seldom_seen_bit_behind_a_residual_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 one output in thousands shows another order of sums; a single row of a small layer hides it."""
    plain: Linear = F.linear

    def seldom(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = plain(x, weight, bias)
        if weight.shape[-1] == tiny.COMMON["intermediate_size"] and x.numel() // x.shape[-1] == 8:
            hit = (x.float().sum(-1, keepdim=True) * 1e4).abs().long() % 300 == 0
            out = torch.where(hit, out * 1.01, out)
        return out

    monkeypatch.setattr(F, "linear", seldom)
    assert 8 not in found_with(tiny.decoder("llama", dtype=torch.bfloat16)).sizes


def test_attention_that_changes_with_the_caches_length_rules_out_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend = cache_module.attend_rows

    def off(q: Tensor, kv: tuple[Tensor, Tensor], *rest: object) -> Tensor:
        return attend(q, kv, *rest) * (1 + 1e-6 * (kv[0].shape[2] > 64))  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(cache_module, "attend_rows", off)
    assert found_with(tiny.decoder("llama")) == Invariance()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prefixes_may_be_shared_where_the_pool_changes_nothing(family: str) -> None:
    assert found_with(tiny.decoder(family), pool=512).shares
    assert not found_with(tiny.decoder(family), pool=0).shares


@pytest.mark.parametrize(
    "rule",
    [
        lambda q, pool: pool > 64,
        lambda q, pool: pool > 0,
        lambda q, pool: pool > 0 and q.shape[0] == 8,
        lambda q, pool: pool > 0 and q.shape[:1] == (2,),
    ],
    ids=["long pools", "any pool", "a smaller size with a pool", "tiles of two rows with a pool"],
)
def test_attention_that_changes_with_the_pool_rules_out_sharing(
    rule: Callable[[Tensor, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = cache_module.attend_rows

    def off(q: Tensor, kv: tuple[Tensor, Tensor], prefix: tuple[Tensor, Tensor], *rest: object) -> Tensor:
        out = attend(q, kv, prefix, *rest)  # pyright: ignore[reportArgumentType]
        return out * (1 + 1e-6 * rule(q, prefix[0].shape[1]))

    monkeypatch.setattr(cache_module, "attend_rows", off)
    found = found_with(tiny.decoder("llama"), pool=512)
    assert found.tiled
    assert not found.shares


def test_the_probe_leaves_the_pool_empty() -> None:
    decoder = tiny.decoder("gemma3")
    shape = CacheShape(slots=4, capacity=100, prefix_capacity=512)
    cache = SlotCache(decoder.config, shape, torch.float32, torch.device("cpu"))
    check_invariance(decoder, cache, SIZES)
    assert cache.prefix_used == 0
    assert {pool.shape[1] for pool in (*cache.prefix_k, *cache.prefix_v)} == {0}


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("capacity", [2, 7, 40])
def test_small_shapes_can_be_checked(slots: int, capacity: int) -> None:
    found_with(tiny.decoder("gemma3"), slots=slots, capacity=capacity, pool=96)


@pytest.mark.parametrize("rule", [lambda rows: rows * 1e-3, lambda rows: 1e-3 * (rows == PREFILL_TOKENS)])
def test_texts_stay_independent_where_products_are_not(
    rule: Callable[[int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With products that change with each batch size by far more than a bit, texts are still those of a row alone."""
    patch(monkeypatch, rule, every)
    decoder = tiny.decoder("llama")

    def texts(asked: list[Request]) -> dict[int, tuple[tuple[int, ...], tuple[float, ...] | None]]:
        shape = CacheShape(slots=8, capacity=100, prefix_capacity=0)
        made = Generator(decoder, tiny.tokenizer(), lambda _text: (), shape)
        assert made.sizes == [8]
        return {d.request.tag: (d.token_ids, d.logprobs) for d in made.run(iter(asked))}

    asked = [
        Request(
            prompt=tuple(range(n, n + 2 + 5 * n)),
            max_tokens=20,
            sampling=Sampling(temperature=1.0),
            seed=n,
            logprobs=True,
            tag=n,
        )
        for n in range(11)
    ]
    together = texts(asked)
    for one in asked:
        assert texts([one]) == {one.tag: together[one.tag]}
