"""The slots' cache against whole sequences without one: pieces, single tokens, rings, shared prefixes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from ojak.model import cache as cache_module
from ojak.model.cache import (
    LENGTH_STEP,
    CacheShape,
    DecodeAttend,
    Piece,
    PrefillAttend,
    PrefixAttend,
    SlotCache,
)
from ojak.model.decoder import Decoder

CPU = torch.device("cpu")
IDS = torch.randint(0, tiny.VOCAB, (150,), generator=torch.Generator().manual_seed(2)).tolist()
NO_PREFIX = (0, 0)


class Driver:
    """Feeds a decoder through a SlotCache, and says what a token's logits are."""

    def __init__(self, decoder: Decoder, **shape: int) -> None:
        sizes = {"slots": 3, "capacity": 160, "prefix_capacity": 100, **shape}
        self.decoder = decoder
        self.cache = SlotCache(decoder.config, CacheShape(**sizes), torch.float32, CPU)

    def prefix(self, ids: list[int]) -> tuple[int, int]:
        attend = PrefixAttend(self.cache, len(ids))
        self.decoder.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], attend)
        self.cache.prefix_used = self.cache.prefix_k[0].shape[1]
        return attend.begin, attend.end

    def prefill(self, *pieces: Piece, padding: int = 0) -> list[Tensor]:
        """The logits of each piece's tokens."""
        ids = [token for piece in pieces for token in piece.ids]
        positions = [
            p.start + p.span[1] - p.span[0] + i for p in pieces for i in range(len(p.ids))
        ] + [0] * padding  # fmt: skip
        self.cache.fit(max(piece.start + len(piece.ids) for piece in pieces))
        attend = PrefillAttend(self.cache, list(pieces))
        x_BTD = self.decoder.hidden(torch.tensor([ids + [0] * padding]), torch.tensor([positions]), attend)
        flat = self.decoder.logits(x_BTD)[0, : len(ids)]
        return list(flat.split([len(piece.ids) for piece in pieces]))

    def decode(self, tokens: list[int | None], own: list[int], spans: list[tuple[int, int]]) -> Tensor:
        """One token for each of the first slots; None for an empty one."""
        self.cache.fit(max(own) + 1, shrink=True)
        attend = DecodeAttend(
            self.cache,
            torch.tensor([-1 if t is None else o for t, o in zip(tokens, own, strict=True)]),
            torch.tensor(spans),
        )
        positions = [o + b - a for o, (a, b) in zip(own, spans, strict=True)]
        ids_BT = torch.tensor([[token or 0 for token in tokens]])
        return self.decoder(ids_BT, torch.tensor([positions]), attend)[0]


def whole(decoder: Decoder, ids: list[int]) -> Tensor:
    return decoder(torch.tensor([ids]))[0]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings are a window and a tile long: with tiles of 32 tokens they wrap within a short text."""
    monkeypatch.setattr(cache_module, "PREFILL_TOKENS", 32)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tokens_one_by_one_give_the_logits_of_the_whole_text(family: str) -> None:
    driver = Driver(tiny.decoder(family))
    logits = [driver.decode([None, IDS[i]], [0, i], [NO_PREFIX] * 2)[1] for i in range(110)]
    close(torch.stack(logits), whole(driver.decoder, IDS[:110]))


@pytest.mark.parametrize("cuts", [[20], [32, 32, 32, 4], [1, 7, 25, 3, 32, 1, 1, 30]])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pieces_of_a_prompt_give_the_logits_of_the_whole_text(family: str, cuts: list[int]) -> None:
    driver = Driver(tiny.decoder(family))
    ends = list(itertools.accumulate(cuts))
    pieces = [
        Piece(tuple(IDS[end - n : end]), 1, end - n, NO_PREFIX) for end, n in zip(ends, cuts, strict=True)
    ]
    close(torch.cat([driver.prefill(piece)[0] for piece in pieces]), whole(driver.decoder, IDS[: ends[-1]]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_of_a_tile_do_not_see_each_other(family: str) -> None:
    driver = Driver(tiny.decoder(family))
    first, second = IDS[:9], IDS[40:60]
    pieces = Piece(tuple(second), 2, 0, NO_PREFIX), Piece(tuple(first), 0, 0, NO_PREFIX)
    got = driver.prefill(*pieces, padding=3)
    close(got[0], whole(driver.decoder, second))
    close(got[1], whole(driver.decoder, first))
    both = driver.decode([7, None, 8], [9, 0, 20], [NO_PREFIX] * 3)
    close(both[0], whole(driver.decoder, [*first, 7])[-1])
    close(both[2], whole(driver.decoder, [*second, 8])[-1])


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "qwen2_sliding"])
def test_a_ring_holds_as_much_as_a_full_cache_would_show(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt in tiles, then single tokens, far past the window: the same with rings and with everything kept."""
    decoder = tiny.decoder(family)
    ring = Driver(decoder)
    outputs = [fed_in_tiles(ring)]
    assert min(k.shape[2] for k in ring.cache.k) < 64, "the ring never wrapped"
    monkeypatch.setattr(cache_module, "PREFILL_TOKENS", 1000)
    full = Driver(decoder)
    outputs.append(fed_in_tiles(full))
    assert min(k.shape[2] for k in full.cache.k) >= 120
    close(outputs[0], outputs[1])
    close(outputs[0], whole(decoder, IDS[:120])[64:])


def fed_in_tiles(driver: Driver) -> Tensor:
    for start in range(0, 96, 32):
        last = driver.prefill(Piece(tuple(IDS[start : start + 32]), 1, start, NO_PREFIX))[0]
    singles = [driver.decode([None, IDS[i]], [0, i], [NO_PREFIX] * 2)[1] for i in range(96, 120)]
    return torch.cat([last, torch.stack(singles)])  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("length", [1, 5, 31, 40])
def test_shared_prefixes(family: str, length: int) -> None:
    """Two prefixes in the pool; rows of one, of the other, and of none, by pieces and by single tokens."""
    driver = Driver(tiny.decoder(family))
    a, b = IDS[:length], IDS[60:77]
    spans = [driver.prefix(a), driver.prefix(b), NO_PREFIX]
    heads = [a, b, []]
    tails = [IDS[100:106], IDS[110:112], IDS[120:129]]
    pieces = [Piece(tuple(t), i, 0, s) for i, (t, s) in enumerate(zip(tails, spans, strict=True))]
    for got, head, tail in zip(driver.prefill(*pieces), heads, tails, strict=True):
        close(got, whole(driver.decoder, head + tail)[len(head) :])
    steps = list(zip(range(60, 70), range(70, 80), range(80, 90), strict=True))
    for n, step in enumerate(steps):
        got = driver.decode(list(step), [len(tail) + n for tail in tails], spans)
    for row in range(3):
        text = heads[row] + tails[row] + [step[row] for step in steps]
        close(got[row], whole(driver.decoder, text)[-1])  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_pools_entries_do_not_shift_each_other() -> None:
    """A row's bits are the same alone in the pool and behind another prefix."""
    for dtype_seed in range(3):
        decoder = tiny.decoder("llama", seed=dtype_seed)
        alone, behind = Driver(decoder), Driver(decoder)
        behind.prefix(IDS[:3])
        got = []
        for driver in (alone, behind):
            span = driver.prefix(IDS[20:37])
            driver.prefill(Piece(tuple(IDS[50:60]), 0, 0, span))
            got.append(driver.decode([5, None, None], [10, 0, 0], [span, NO_PREFIX, NO_PREFIX])[0])
        assert torch.equal(got[0], got[1])


def test_what_a_slot_held_before_is_not_seen() -> None:
    """A slot's new row sees nothing of the old one, and a step without any row yields numbers."""
    driver = Driver(tiny.decoder("gemma3"))
    driver.prefill(Piece(tuple(IDS[:30]), 0, 0, NO_PREFIX))
    got = driver.prefill(Piece(tuple(IDS[50:55]), 0, 0, NO_PREFIX))[0]
    close(got, whole(driver.decoder, IDS[50:55]))
    assert driver.decode([None, None], [0, 0], [NO_PREFIX] * 2).isfinite().all()


def test_growing_shrinking_and_moving_keep_the_entries() -> None:
    driver = Driver(tiny.decoder("llama"))
    cache = driver.cache
    driver.prefill(Piece(tuple(IDS[:20]), 2, 0, NO_PREFIX))
    assert [k.shape[2] for k in cache.k] == [LENGTH_STEP, LENGTH_STEP]
    cache.fit(150)
    assert cache.k[0].shape[2] == 160
    cache.fit(100, shrink=True)
    assert cache.k[0].shape[2] == 160, "only what is far too long is given back"
    cache.move(2, 0)
    cache.fit(21, shrink=True)
    assert cache.k[0].shape[2] == LENGTH_STEP
    close(driver.decode([9], [20], [NO_PREFIX])[0], whole(driver.decoder, [*IDS[:20], 9])[-1])


def test_contexts_are_copied_out_and_in() -> None:
    driver = Driver(tiny.decoder("gemma2"), capacity=64)
    driver.prefill(Piece(tuple(IDS[:25]), 1, 0, NO_PREFIX))
    entries = driver.cache.copy_out(1, 25)
    assert entries is not None
    driver.cache.copy_in(2, entries, 20)
    got = driver.decode([None, None, 77], [0, 0, 20], [NO_PREFIX] * 3)[2]
    close(got, whole(driver.decoder, [*IDS[:20], 77])[-1])


def test_a_context_that_a_ring_has_lost_is_not_handed_out() -> None:
    driver = Driver(tiny.decoder("gemma2"))  # ring: 9 + 31
    for start in range(0, 64, 32):
        driver.prefill(Piece(tuple(IDS[start : start + 32]), 0, start, NO_PREFIX))
    assert driver.cache.copy_out(0, 64) is None
    assert driver.cache.copy_out(0, 30) is not None


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bytes_of_a_slot_are_what_the_cache_takes(family: str) -> None:
    config = tiny.decoder(family).config
    shape = CacheShape(slots=5, capacity=100, prefix_capacity=0)
    cache = SlotCache(config, shape, torch.bfloat16, CPU)
    taken = sum(
        room.nbytes for name, rooms in vars(cache).items() if name.endswith("_room") for room in rooms
    )
    assert taken == 5 * shape.bytes_per_slot(config, torch.bfloat16)
    windowed: dict[str, Any] = {"mistral": 12, "gemma2": 9, "gemma3": 10, "qwen2_sliding": 7}
    assert [shape.ring(window) for window in cache.windows] == [
        100 if window is None else windowed[family] + 31 for window in cache.windows
    ]
