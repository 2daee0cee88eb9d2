"""Contexts kept for reuse: found by name, once, and never more than there is room for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ojak.model.kept import Kept, KeptContexts


def context(length: int) -> Kept:
    return Kept((1,), list(range(length)), [(torch.zeros(1), torch.zeros(1))])


def test_what_is_put_is_taken_once() -> None:
    store = KeptContexts(10)
    kept = context(3)
    store.put("row", kept)
    assert store.take("row") is kept
    assert store.take("row") is None
    assert store.used == 0


def test_the_oldest_give_way() -> None:
    store = KeptContexts(10)
    for name in "abc":
        store.put(name, context(4))
    assert store.take("a") is None
    assert store.take("b") is not None
    assert store.take("c") is not None


def test_a_context_larger_than_the_room_is_not_kept() -> None:
    store = KeptContexts(10)
    store.put("small", context(2))
    store.put("large", context(11))
    assert store.take("large") is None
    assert store.used == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 9)), max_size=40))
def test_the_count_is_that_of_what_is_there(steps: list[tuple[bool, int, int]]) -> None:
    store, room = KeptContexts(20), 20
    for is_put, key, length in steps:
        if is_put:
            store.put(key, context(length))
        else:
            store.take(key)
        assert store.used <= room
    left = [kept for key in range(6) if (kept := store.take(key))]
    assert store.used == 0
    assert sum(len(kept.ids) for kept in left) <= room
