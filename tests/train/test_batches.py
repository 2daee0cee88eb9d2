"""Order, packing and layout: every token once, documents apart, nothing too long, and the same for the same seed."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.errors import UsageError
from ojak.train.batches import IGNORED, Batch, best_fit, epoch_order, plan_epoch
from ojak.train.rows import Part, Rows
from ojak.train.store import TokenStore

QUIET = settings(max_examples=60, deadline=None)
LONGEST = 12


def store(lengths: list[int], first: int = 0) -> TokenStore:
    """Rows of these lengths whose ids all differ; about a third of the tokens is not learnt."""
    total = sum(lengths)
    mask = np.arange(total) % 3 != 1
    starts = np.cumsum([0, *lengths])
    mask[starts[:-1]] = False
    learnt = [int(mask[a:b].sum()) for a, b in itertools.pairwise(starts)]
    table = np.stack([starts, np.arange(len(starts)), [*learnt, 0]], axis=1)
    ids = np.arange(first, first + total, dtype=np.uint32)
    return TokenStore(ids, mask, table, {}, f"{first}:{lengths}")


def rows_of(*sources: list[int], weights: tuple[Fraction | int, ...] = ()) -> Rows:
    made = [store(lengths, 10_000 * number) for number, lengths in enumerate(sources)]
    shares = weights or (1,) * len(sources)
    return Rows(
        [
            Part(f"source {number}", "", each, Fraction(share), np.arange(len(each)))
            for number, (each, share) in enumerate(zip(made, shares, strict=True))
        ]
    )


lengths_of_rows = st.lists(st.integers(2, LONGEST), min_size=1, max_size=30)
plans = st.fixed_dictionaries(
    {
        "seed": st.integers(-3, 3),
        "epoch": st.integers(0, 3),
        "packing": st.booleans(),
        "world_size": st.sampled_from([1, 2, 3]),
        "micro_batch": st.sampled_from([None, 1, 2]),
        "each": st.integers(1, 4),
    }
)


def planned(rows: Rows, options: dict[str, Any], **more: Any) -> Any:
    options = dict(options)
    batch = options.pop("each") * options["world_size"]
    return plan_epoch(rows, batch=batch, max_len=LONGEST, **options, **more)


def documents(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    """(ids, targets, positions) of each document of a batch, of either layout."""
    tensors = (batch.ids_BT, batch.targets_BT, batch.positions_BT)
    if batch.packed:
        cut = [tensor[0].split(list(batch.lengths)) for tensor in tensors]
    else:
        cut = [[line[:n] for line, n in zip(tensor, batch.lengths, strict=True)] for tensor in tensors]
    return [tuple(each.tolist() for each in document) for document in zip(*cut, strict=True)]  # type: ignore[misc]


def all_batches(plan: Any) -> list[Batch]:
    return [
        batch
        for step in range(plan.steps)
        for rank in range(plan.world_size)
        for batch in plan.step(step, rank)
        if batch.tokens
    ]


@QUIET
@given(lengths=lengths_of_rows, options=plans, in_rows=st.booleans())
def test_every_token_comes_once_and_documents_are_apart(
    lengths: list[int], options: dict[str, Any], in_rows: bool
) -> None:
    rows = rows_of(lengths)
    plan = planned(rows, options, padded=in_rows and not options["packing"])
    found = [document for batch in all_batches(plan) for document in documents(batch)]
    expected = [(ids.tolist(), mask.tolist()) for ids, mask in (rows[i] for i in range(len(rows)))]
    assert sorted(ids for ids, _, _ in found) == [ids for ids, _ in expected]
    learnt = dict(zip((ids[0] for ids, _ in expected), (mask for _, mask in expected), strict=True))
    for ids, targets, positions in found:
        wanted = [i if is_learnt else IGNORED for i, is_learnt in zip(ids, learnt[ids[0]], strict=True)]
        assert targets == [*wanted[1:], IGNORED]
        assert positions == list(range(len(ids)))
    assert plan.tokens == sum(lengths) == sum(batch.tokens for batch in all_batches(plan))
    assert (
        plan.supervised == sum(batch.supervised for batch in all_batches(plan)) == int(rows.supervised.sum())
    )


@QUIET
@given(lengths=lengths_of_rows, options=plans)
def test_no_pack_is_too_long_and_ranks_take_part_alike(lengths: list[int], options: dict[str, Any]) -> None:
    plan = planned(rows_of(lengths), options)
    for step in range(plan.steps):
        made = [plan.step(step, rank) for rank in range(plan.world_size)]
        assert len({len(batches) for batches in made}) == 1
        for batch in itertools.chain.from_iterable(made):
            assert batch.packed and batch.ids_BT.shape[0] == 1
            if options["packing"]:
                assert batch.ids_BT.shape[1] <= LONGEST * plan.micro_batch
                assert len(batch.lengths) == batch.positions_BT.eq(0).sum()


@QUIET
@given(lengths=lengths_of_rows, options=plans)
def test_steps_can_be_asked_for_in_any_order_and_are_the_same_again(
    lengths: list[int], options: dict[str, Any]
) -> None:
    one, two = (planned(rows_of(lengths), options) for _ in range(2))
    for step in reversed(range(one.steps)):
        for rank in range(one.world_size):
            pairs = zip(one.step(step, rank), two.step(step, rank), strict=True)
            assert all(torch.equal(a.ids_BT, b.ids_BT) and a.lengths == b.lengths for a, b in pairs)
    with pytest.raises(IndexError):
        one.step(one.steps)


@QUIET
@given(lengths=lengths_of_rows, seed=st.integers(0, 5))
def test_a_step_has_the_same_rows_for_any_number_of_processes(lengths: list[int], seed: int) -> None:
    def step_rows(world: int) -> list[list[list[int]]]:
        plan = plan_epoch(
            rows_of(lengths), seed=seed, epoch=1, batch=6, max_len=LONGEST, packing=False, world_size=world
        )
        return [
            sorted(
                ids
                for rank in range(world)
                for b in plan.step(i, rank)
                if b.tokens
                for ids, _, _ in documents(b)
            )
            for i in range(plan.steps)
        ]

    assert step_rows(1) == step_rows(2) == step_rows(3)


def test_an_order_is_a_permutation_that_seed_and_epoch_change() -> None:
    rows = rows_of([2] * 200)
    orders = {(seed, epoch): epoch_order(rows, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(200)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    # Far from the rows' own order: the mean displacement of a random permutation of n is about n / 3.
    assert 50 < np.abs(np.array(orders[0, 0]) - np.arange(200)).mean() < 85


def test_an_order_is_the_same_on_every_machine() -> None:
    """Written down once: a resumed run depends on it, so a new release must not change it unawares."""
    assert epoch_order(rows_of([2] * 10), 0, 0).tolist() == [8, 1, 9, 5, 4, 2, 0, 3, 6, 7]


weights = st.fractions(Fraction(1, 8), 4, max_denominator=8)


@QUIET
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    shares=st.lists(weights, min_size=3, max_size=3),
    seed=st.integers(0, 9),
)
def test_a_mixture_shows_each_row_as_often_as_its_weight_says(
    sizes: list[int], shares: list[Fraction], seed: int
) -> None:
    rows = rows_of(*([2] * size for size in sizes), weights=tuple(shares[: len(sizes)]))
    starts = np.cumsum([0, *sizes])
    seen: Counter[int] = Counter()
    for epoch in range(8):
        try:
            order = epoch_order(rows, seed, epoch)
        except UsageError:
            assert all(share * size < 1 for share, size in zip(shares, sizes, strict=False))
            continue
        for number, (share, size) in enumerate(zip(shares, sizes, strict=False)):
            own = order[(order >= starts[number]) & (order < starts[number + 1])]
            assert abs(len(own) - share * size) < 1
            counts = Counter(own.tolist())
            # a window of the stream touches whole passes and two cut ones
            assert max(counts.values(), default=0) <= -(-len(own) // size) + 1
        seen.update(order.tolist())
        for number, (share, size) in enumerate(zip(shares, sizes, strict=False)):
            often = [seen[row] for row in range(starts[number], starts[number + 1])]
            assert max(often) - min(often) <= 1  # none comes again before all came
            assert sum(often) == (share * size * (epoch + 1)).__floor__()


def fewest_bins(lengths: tuple[int, ...], capacity: int) -> int:
    """By trying everything."""
    best = len(lengths)

    def place(rest: tuple[int, ...], bins: tuple[int, ...]) -> None:
        nonlocal best
        if len(bins) >= best:
            return
        if not rest:
            best = len(bins)
            return
        for i in {bins.index(free) for free in bins if free >= rest[0]}:
            place(rest[1:], (*bins[:i], bins[i] - rest[0], *bins[i + 1 :]))
        place(rest[1:], (*bins, capacity - rest[0]))

    place(tuple(sorted(lengths, reverse=True)), ())
    return best


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=9))
def test_best_fit_keeps_its_bound(lengths: list[int]) -> None:
    """Best-fit decreasing needs at most 11/9 of the fewest bins, plus 6/9 (Dosa's bound, as for first-fit)."""
    bins = best_fit(lengths, 10)
    assert sorted(itertools.chain.from_iterable(bins)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in each) <= 10 for each in bins)
    assert len(bins) <= 11 / 9 * fewest_bins(tuple(lengths), 10) + 6 / 9


@QUIET
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_a_row_goes_to_the_fullest_bin_with_room(lengths: list[int]) -> None:
    """Against best fit written plainly."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free.remove(min(fitting))
        free.append((min(fitting) if fitting else 30) - length)
    bins = best_fit(lengths, 30)
    assert sorted(30 - sum(lengths[i] for i in each) for each in bins) == sorted(free)


def test_settings_that_do_not_fit_are_refused() -> None:
    rows = rows_of([3, 5])
    good: dict[str, Any] = {"seed": 0, "epoch": 0, "batch": 2, "max_len": 8, "packing": False}
    for wrong, said in (
        ({"batch": 3, "world_size": 2}, "multiple of 2"),
        ({"batch": 0}, "cannot be shared"),
        ({"max_len": 4}, "5 tokens, more than max_len 4"),
        ({"packing": True, "padded": True}, "no padding"),
    ):
        with pytest.raises(UsageError, match=said):
            plan_epoch(rows, **{**good, **wrong})


def test_hold_out_takes_whole_records_and_follows_the_seed() -> None:
    rows = rows_of([2] * 40, [3] * 40)
    for part in rows.parts:
        part.store.table[:, 1] //= 4  # four rows of one record
    train, held = rows.hold_out(0.2, seed=1)
    assert (len(train), len(held)) == (64, 16)
    records = [
        [set(part.store.table[part.chosen, 1].tolist()) for part in each.parts] for each in (train, held)
    ]
    assert all(a.isdisjoint(b) and len(a | b) == 10 for a, b in zip(*records, strict=True))
    assert rows.hold_out(0.2, seed=1)[1].sha256 == held.sha256 != rows.hold_out(0.2, seed=2)[1].sha256
    for share in (0.01, 0.99):
        with pytest.raises(UsageError, match="leaves one side empty"):
            rows.hold_out(share, seed=0)
