"""Continuous batching: what a row gets depends on the row alone, and on what was asked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.errors import InputRefused, OjakError, UsageError
from ojak.model import generate as generate_module
from ojak.model.cache import CacheShape
from ojak.model.decoder import Decoder
from ojak.model.fuse import fuse
from ojak.model.generate import Generator
from ojak.model.request import Completion, Request, Sampling

TOKENIZER = tiny.tokenizer()
KINDS = (
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=1.0, repetition_penalty=1.3, banned_first=(65, 66)),
)


def encode(text: str) -> list[int]:
    return [tiny.BOS, *TOKENIZER.encode(text)]


def generator(
    decoder: Decoder, *, slots: int = 4, lanes: int = 1, strict: bool = False, **shape: int
) -> Generator:
    sizes = {"capacity": 160, "prefix_capacity": 128, **shape}
    return Generator(decoder, TOKENIZER, encode, CacheShape(slots=slots, **sizes), lanes=lanes, strict=strict)


def request(prompt: Sequence[int] | str, max_tokens: int = 12, **fields: Any) -> Request:
    prompt = prompt if isinstance(prompt, str) else tuple(prompt)
    return Request(prompt=prompt, max_tokens=max_tokens, **fields)


def texts(generator_: Generator, requests: Sequence[Request]) -> dict[Any, tuple[int, ...]]:
    """Token ids of each request by its tag."""
    found = {done.request.tag: done.token_ids for done in generator_.run(iter(requests))}
    assert len(found) == len(requests)
    return found


def greedy_without_cache(
    decoder: Decoder, prompt: Sequence[int], count: int, stops: Sequence[int] = ()
) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


# -- a row by itself ---------------------------------------------------------------------------------------------------

FLOATS = {family: tiny.decoder(family) for family in ("llama", "gemma2", "gemma3", "qwen2_sliding")}
BFLOATS = {family: tiny.decoder(family, dtype=torch.bfloat16) for family in ("llama", "gemma3")}
fuse(BFLOATS["llama"])
MODELS = {
    f"{name}-{d.model.embed_tokens.weight.dtype}": d for part in (FLOATS, BFLOATS) for name, d in part.items()
}
ALONE: dict[tuple[str, Any], tuple[int, ...]] = {}


@st.composite
def rows(draw: st.DrawFn) -> tuple[Any, ...]:
    """(prompt length, prompt seed, prefix number or None, kind of sampling, seed, max_tokens)"""
    return (
        draw(st.sampled_from([1, 2, 5, 9, 10, 20, 40, 70])),
        draw(st.integers(0, 3)),
        draw(st.sampled_from([None, None, 0, 1])),
        draw(st.integers(0, len(KINDS) - 1)),
        draw(st.integers(0, 5)),
        draw(st.sampled_from([1, 2, 10, 30])),
    )


PREFIXES = [tuple(range(40, 57)), tuple(range(100, 140))]


def of_row(row: tuple[Any, ...], tag: Any) -> Request:
    length, prompt_seed, prefix, kind, seed, max_tokens = row
    random = torch.Generator().manual_seed(prompt_seed * 100 + length)
    own = tuple(torch.randint(0, 256, (length,), generator=random).tolist())
    head = () if prefix is None else PREFIXES[prefix]
    shared = None if prefix is None else (*head, own[0])
    return request(
        head + own,
        max_tokens,
        sampling=KINDS[kind],
        seed=seed,
        stop_ids=(tiny.EOS,),
        shared_prefix=shared,
        tag=tag,
    )


def alone(name: str, row: tuple[Any, ...]) -> tuple[int, ...]:
    """The row's text when it has a generator of its own, with one prefix at most in the pool."""
    if (name, row) not in ALONE:
        ALONE[name, row] = texts(generator(MODELS[name], slots=4), [of_row(row, 0)])[0]
    return ALONE[name, row]


@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(rows(), min_size=1, max_size=14),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 2]),
)
@settings(max_examples=18, derandomize=True, deadline=None)
def test_any_batch_gives_a_row_the_same_text(
    name: str, batch: list[tuple[Any, ...]], random: Any, lanes: int
) -> None:
    order = list(range(len(batch)))
    random.shuffle(order)
    found = texts(generator(MODELS[name], lanes=lanes), [of_row(batch[i], i) for i in order])
    assert [found[i] for i in range(len(batch))] == [alone(name, row) for row in batch]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_strict_generator_is_as_independent(name: str) -> None:
    """One size and length, prompts by the decode step: what happens where the checks find nothing usable."""
    batch = [of_row((length, 0, prefix, kind, 7, 9), (length, prefix, kind)) for length in (1, 12, 50)
             for prefix in (None, 1) for kind in (0, 1)]  # fmt: skip
    made = generator(MODELS[name], slots=3, strict=True)
    assert made.sizes == [3]
    together = texts(made, batch)
    apart = {r.tag: texts(generator(MODELS[name], slots=3, strict=True), [r])[r.tag] for r in reversed(batch)}
    assert together == apart


@pytest.mark.parametrize("family", sorted(FLOATS))
def test_greedy_text_is_that_of_the_decoder_without_cache(family: str) -> None:
    decoder = FLOATS[family]
    prompts = [list(range(n, n + length)) for n, length in ((0, 1), (7, 8), (9, 9), (50, 33), (90, 100))]
    asked = [request(prompt, 25, tag=i) for i, prompt in enumerate(prompts)]
    found = texts(generator(decoder, slots=2), asked)
    for i, prompt in enumerate(prompts):
        assert list(found[i]) == greedy_without_cache(decoder, prompt, 25)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_over_several_tiles(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 tokens, so that prompts are cut, and what is left over of one is as short as it can be."""
    for module in ("cache", "generate", "invariance"):
        monkeypatch.setattr(f"ojak.model.{module}.PREFILL_TOKENS", 32)
    decoder = FLOATS[family]
    lengths = (33, 34, 35, 40, 65, 97, 30, 2, 20)
    asked = [request([(n * 7 + i) % 256 for i in range(n)], 12, tag=n, logprobs=True) for n in lengths]
    together = {
        d.request.tag: (d.token_ids, d.logprobs) for d in generator(decoder, slots=6).run(iter(asked))
    }
    for one in asked:
        done = next(generator(decoder, slots=6).run(iter([one])))
        assert together[one.tag] == (done.token_ids, done.logprobs)
        assert list(done.token_ids) == greedy_without_cache(decoder, list(one.prompt), 12)  # pyright: ignore[reportArgumentType]


# -- prefixes, kept contexts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FLOATS))
def test_a_shared_prefix_changes_nothing_but_is_computed_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        request((*PREFIXES[1], *range(n, n + 5)), 15, shared_prefix=(*PREFIXES[1], 9), tag=n)
        for n in range(6)
    ]
    made = generator(FLOATS[family])
    calls: list[tuple[int, ...]] = []
    compute = made.lanes[0].prefixes._compute
    monkeypatch.setattr(made.lanes[0].prefixes, "_compute", lambda ids: (calls.append(ids), compute(ids))[1])
    found = texts(made, asked)
    assert calls == [PREFIXES[1]]
    for one in asked:
        assert list(found[one.tag]) == greedy_without_cache(FLOATS[family], one.prompt, 15)  # pyright: ignore[reportArgumentType]


def test_a_prefix_that_the_prompt_does_not_have_or_that_has_no_room_is_left_alone() -> None:
    decoder = FLOATS["llama"]
    other, long = tuple(range(200, 220)), tuple(range(150))
    asked = [
        request(range(30), 8, shared_prefix=other, tag=0),
        request((*long[:130], 5), 8, shared_prefix=long, tag=1),
        request(range(3), 8, shared_prefix=(0,), tag=2),
    ]
    found = texts(generator(decoder), asked)
    for one in asked:
        assert list(found[one.tag]) == greedy_without_cache(decoder, list(one.prompt), 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_full_pool_takes_no_rows_prefix_away(name: str) -> None:
    """More prefixes than there is room for: those that nobody uses give way, a row waits for its own."""
    heads = [tuple(range(n, n + 20 + n)) for n in range(9)]
    asked = [
        request(
            (*heads[n % 9], n, 7), 6 + n % 5, shared_prefix=(*heads[n % 9], n), tag=n, seed=n, logprobs=True
        )
        for n in range(27)
    ]
    made = generator(MODELS[name], prefix_capacity=64)
    assert made.found.shares
    spans = []
    reuse = made.lanes[0]._reuse
    made.lanes[0]._reuse = lambda index, slot: (
        spans.append(len(slot.prefix)),
        reuse(index, slot),
    )[1]
    found = {done.request.tag: done for done in made.run(iter(asked))}
    assert spans == [len(heads[n % 9]) for n in range(27)]
    assert made.lanes[0].cache.prefix_used <= 64
    for one in asked:
        alone = (
            next(generator(MODELS[name], prefix_capacity=64).run(iter([one]))) if one.tag % 9 == 8 else None
        )
        if alone:
            assert (found[one.tag].token_ids, found[one.tag].logprobs) == (alone.token_ids, alone.logprobs)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_kept_context_gives_the_same_text_as_none(name: str) -> None:
    """Second requests that begin with the text of the first ones, in full, in part, and not at all."""
    first = [request(range(n, n + 20), 10, keep=n, tag=n, seed=n, sampling=KINDS[1]) for n in range(6)]
    made = generator(MODELS[name], slots=8)
    got = texts(made, first)
    second = [
        request(
            (*range(n, n + 20), *got[n], 1, 2, 3) if n % 3 else range(n, n + 15), 10, tag=n, reuse=n, seed=n
        )
        for n in range(6)
    ] + [request(range(60, 80), 10, tag=9, reuse=0), request(range(9), 10, tag=10, reuse="never kept")]
    plain = [request(r.prompt, 10, tag=r.tag, seed=r.seed) for r in second]
    assert texts(made, second) == texts(generator(MODELS[name], slots=8), plain)


def test_kept_contexts_are_used_where_they_may_be() -> None:
    made = generator(MODELS["llama-torch.bfloat16"], slots=8)
    assert made.found.reusable
    texts(made, [request(range(30), 5, keep="a", tag=0)])
    seen = []
    lane = made.lanes[0]
    copy_in = lane.cache.copy_in
    lane.cache.copy_in = lambda slot, entries, length: (seen.append(length), copy_in(slot, entries, length))[
        1
    ]
    texts(made, [request(range(30), 5, reuse="a", tag=0)])
    assert seen == [29]
    texts(made, [request(range(30), 5, reuse="a", tag=0)])
    assert seen == [29], "a context is taken out when it is used"


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_slots_are_refilled_at_once() -> None:
    """Steps are what the longest chain of rows needs, not rounds of whole batches."""
    made = generator(FLOATS["llama"], slots=4)
    lengths = [20, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    asked = [request(range(n, n + 10), length, tag=n) for n, length in enumerate(lengths)]
    done = list(made.run(iter(asked)))
    assert [len(d.token_ids) for d in sorted(done, key=lambda d: d.request.tag)] == lengths
    assert made.steps <= 22
    assert made.drawn == sum(lengths)
    assert done[0].request.tag != 0, "a short row is handed out before a long one ends"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_in_flight_move_to_a_lane_that_runs_dry_and_keep_their_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "FAR_FEWER", 1)
    carried: list[Any] = []
    adopt = generate_module.Lane.adopt
    monkeypatch.setattr(
        generate_module.Lane, "adopt", lambda lane, row: (carried.append(row), adopt(lane, row))[1]
    )
    prefix = tuple(range(2, 11))
    lengths = [2, 60, 2, 60, 2, 60, 2, 60]  # every other row ends at once: one of the lanes runs dry
    wanted = [
        request(
            (*prefix, 20 + i, 30),
            lengths[i],
            shared_prefix=prefix,
            tag=i,
            seed=i,
            sampling=Sampling(temperature=1.0),
        )
        for i in range(8)
    ]
    alone_ = texts(generator(FLOATS[name], lanes=1, slots=8), wanted)
    assert not carried
    assert texts(generator(FLOATS[name], lanes=2, slots=4), wanted) == alone_
    assert carried
    assert any(row.slot.own for row in carried)


def test_requests_may_come_later() -> None:
    """None: ask again after another completion. The second row's request depends on the first row's answer."""
    answers: list[Completion] = []

    def asked() -> Iterator[Request | None]:
        yield request(range(10), 6, tag="first")
        yield request(range(30, 40), 12, tag="slow")
        while not any(done.request.tag == "first" for done in answers):
            yield None
        first = next(done for done in answers if done.request.tag == "first")
        yield request((*range(10), *first.token_ids), 6, tag="second")

    for done in generator(FLOATS["llama"]).run(asked()):
        answers.append(done)
    assert sorted(done.request.tag for done in answers) == ["first", "second", "slow"]
    found = {done.request.tag: list(done.token_ids) for done in answers}
    assert found["first"] + found["second"] == greedy_without_cache(FLOATS["llama"], list(range(10)), 12)


def test_waiting_for_nothing_is_an_error() -> None:
    made = generator(FLOATS["llama"])
    with pytest.raises(OjakError, match="waits"):
        list(made.run(itertools.chain([request(range(5), 3)], itertools.repeat(None))))
    assert list(made.run(iter([]))) == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_closing_early_leaves_the_generator_usable(lanes: int) -> None:
    made = generator(FLOATS["llama"], lanes=lanes)
    asked = [request(range(n, n + 12), 3 + n, tag=n) for n in range(12)]
    running = made.run(iter(asked))
    first = next(running)
    running.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(lane.busy == 0 for lane in made.lanes)
    again = texts(made, asked)
    assert again[first.request.tag] == first.token_ids
    assert again == texts(generator(FLOATS["llama"]), asked)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_while_requests_are_read_leaves_it_usable(error: type[BaseException]) -> None:
    made = generator(FLOATS["llama"], lanes=2)
    asked = [request(range(n, n + 12), 5, tag=n) for n in range(10)]

    def stopping() -> Iterator[Request]:
        yield from asked[:9]
        raise error

    with pytest.raises(error):
        list(made.run(stopping()))
    assert texts(made, asked) == texts(generator(FLOATS["llama"]), asked)


def test_an_interrupt_while_waiting_for_a_step_leaves_it_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator(FLOATS["llama"], lanes=2)
    asked = [request(range(n, n + 12), 5, tag=n) for n in range(10)]
    wait, calls = generate_module.wait, itertools.count()

    def interrupted(*args: Any, **options: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return wait(*args, **options)

    monkeypatch.setattr(generate_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(made.run(iter(asked)))
    assert texts(made, asked) == texts(generator(FLOATS["llama"]), asked)


def test_lanes_share_the_cores() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        made = generator(FLOATS["llama"], lanes=4, strict=True)
        together = threading.Barrier(4)

        def threads() -> int:
            together.wait(20)
            return torch.get_num_threads()

        assert [task.result() for task in [made.pool.submit(threads) for _ in range(4)]] == [2, 2, 2, 2]
    finally:
        torch.set_num_threads(before)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_prompts_that_cannot_be_fed_are_refused_and_the_rest_goes_on() -> None:
    made = generator(FLOATS["llama"])
    with pytest.raises(InputRefused, match="without a single token"):
        list(made.run(iter([request((), 3)])))
    with pytest.raises(InputRefused, match="does not fit"):
        list(made.run(iter([request(range(150), 11)])))
    with pytest.raises(UsageError, match="max_tokens"):
        request(range(3), 0)
    assert len(texts(made, [request(range(150), 10, tag=0)])[0]) == 10


# -- ends of a text ----------------------------------------------------------------------------------------------------


def spelling(text: str) -> Decoder:
    """A decoder that, whatever token it sees, continues the text: byte n+1 follows byte n (all bytes distinct)."""
    ids = [*text.encode(), tiny.EOS]
    made = tiny.decoder(
        "llama", hidden_size=tiny.VOCAB, num_hidden_layers=1, num_attention_heads=2, intermediate_size=2
    )
    for name, parameter in made.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    made.model.embed_tokens.weight.copy_(torch.eye(tiny.VOCAB))
    for before, after in itertools.pairwise(ids):
        made.lm_head.get_parameter("weight")[after, before] = 1.0
    return made


def finish(text: str, **fields: Any) -> Completion:
    """What `text` becomes, its first byte being the prompt."""
    prompt = text.encode()[:1]
    return next(generator(spelling(text)).run(iter([request(tuple(prompt), **{"max_tokens": 40, **fields})])))


def test_the_whole_text_up_to_the_stop_id() -> None:
    done = finish("abcdé 漢!", stop_ids=(tiny.EOS,))
    assert done.text == "bcdé 漢!"
    assert done.token_ids == (*"bcdé 漢!".encode(), tiny.EOS)
    assert (done.finish_reason, done.prompt_tokens, done.logprobs) == ("stop", 1, None)


def test_max_tokens() -> None:
    done = finish("abcdefgh", max_tokens=3, stop_ids=(tiny.EOS,))
    assert (done.text, len(done.token_ids), done.finish_reason) == ("bcd", 3, "length")
    exact = finish("abcd", max_tokens=4, stop_ids=(tiny.EOS,))
    assert (exact.text, len(exact.token_ids), exact.finish_reason) == ("bcd", 4, "stop")


def test_the_end_token_ends_only_where_it_is_asked_to() -> None:
    done = finish("abcd", max_tokens=6)
    assert (done.text[:7], done.finish_reason) == ("bcd</s>", "length")


@pytest.mark.parametrize(
    ("stops", "text", "tokens"),
    [
        (("ef",), "bcd", 5),  # over two tokens
        (("g",), "bcdef", 6),
        (("fgh", "de"), "bc", 4),
        (("bcdefgh",), "", 7),
        (("漢",), "bcdefghé", 12),  # three bytes, three tokens
        (("zz", "é"), "bcdefgh", 9),
        (("nowhere",), "bcdefghé漢", 13),
    ],
)
def test_stop_strings(stops: tuple[str, ...], text: str, tokens: int) -> None:
    done = finish("abcdefghé漢", stop_strings=stops, stop_ids=(tiny.EOS,))
    assert (done.text, len(done.token_ids), done.finish_reason) == (text, tokens, "stop")


def test_a_stop_string_in_the_prompt_stops_nothing() -> None:
    made = generator(spelling("abcdef"))
    done = next(made.run(iter([request("ab", 40, stop_strings=("ab", "bc"), stop_ids=(tiny.EOS,))])))
    assert done.text == "cdef"
    assert done.prompt_tokens == 3


def test_a_stop_string_that_ends_with_the_last_token_is_a_stop() -> None:
    done = finish("abcdef", max_tokens=3, stop_strings=("cd",))
    assert (done.text, done.finish_reason) == ("b", "stop")


# -- log-probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-torch.float32", "gemma2-torch.float32", "gemma3-torch.bfloat16"])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_logprobs_are_those_of_the_decoder(name: str, kind: int) -> None:
    """Before temperature, cuts, bans and penalties. Rows that ask for none get none."""
    decoder, prompt = MODELS[name], list(range(20))
    asked = [
        request(prompt, 15, sampling=KINDS[kind], seed=3, logprobs=True, tag="with"),
        request(prompt, 15, sampling=KINDS[kind], seed=3, tag="without"),
    ]
    found = {done.request.tag: done for done in generator(decoder).run(iter(asked))}
    assert found["without"].logprobs is None
    assert found["without"].token_ids == found["with"].token_ids
    ids = [*prompt, *found["with"].token_ids]
    logits = decoder(torch.tensor([ids]))[0, len(prompt) - 1 : -1].float()
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(ids[len(prompt) :])[:, None])[:, 0]
    tolerance = 1e-4 if "float32" in name else 0.2
    torch.testing.assert_close(torch.tensor(found["with"].logprobs), wanted, rtol=tolerance, atol=tolerance)


def test_sampled_text_goes_by_its_seed() -> None:
    asked = [
        request(range(10), 20, sampling=KINDS[1], seed=seed, tag=(seed, n))
        for seed in (0, 1, 2**64 - 1)
        for n in (0, 1)
    ]
    found = texts(generator(FLOATS["llama"]), asked)
    assert all(found[seed, 0] == found[seed, 1] for seed in (0, 1, 2**64 - 1))
    assert len(set(found.values())) == 3


def test_the_first_token_is_banned_and_the_penalty_counts_prompt_and_text() -> None:
    decoder = spelling("abcdefgh")
    banned = Sampling(banned_first=(ord("b"),))
    done = next(generator(decoder).run(iter([request((ord("a"),), 1, sampling=banned)])))
    assert done.token_ids != (ord("b"),)
    loop = tiny.decoder("llama", seed=5)
    plain = greedy_without_cache(loop, range(5), 60)
    punished = texts(
        generator(loop), [request(range(5), 60, sampling=Sampling(repetition_penalty=3.0), tag=0)]
    )[0]
    assert len(set(punished)) > len(set(plain))
    ids = list(range(5))
    for token in punished:
        logits = loop(torch.tensor([ids]))[0, -1]
        old = logits[sorted(set(ids))]
        logits[sorted(set(ids))] = torch.where(old > 0, old / 3, old * 3)
        assert logits[token] >= logits.max() - 1e-4
        ids.append(token)
