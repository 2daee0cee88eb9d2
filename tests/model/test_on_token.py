"""Hearing tokens as they are drawn, ending a row early, and waiting for requests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest
import tiny
import torch

from ojak.model.cache import CacheShape
from ojak.model.generate import Generator
from ojak.model.request import Completion, Drawn, Request, Sampling

TOKENIZER = tiny.tokenizer()
DECODER = tiny.decoder("llama")


def generator(slots: int = 3, lanes: int = 1) -> Generator:
    shape = CacheShape(slots=slots, capacity=120, prefix_capacity=0)
    return Generator(DECODER, TOKENIZER, TOKENIZER.encode, shape, lanes=lanes)


def asked(n: int, **fields: object) -> Request:
    sampling = Sampling(temperature=1.0) if n % 2 else Sampling()
    prompt = tuple(range(n, n + 3 + 5 * (n % 3)))
    return Request(prompt=prompt, max_tokens=4 + n, sampling=sampling, seed=n, tag=n, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes", [1, 2])
def test_every_token_is_heard_and_nothing_else_changes(lanes: int) -> None:
    plain = {d.request.tag: d for d in generator(lanes=lanes).run(asked(n, logprobs=True) for n in range(9))}
    heard: dict[int, list[Drawn]] = {n: [] for n in range(9)}

    def listening(n: int) -> Request:
        def hear(drawn: Drawn) -> bool:
            heard[n].append(drawn)
            return True

        return asked(n, logprobs=True, top_logprobs=n % 4, on_token=hear)

    for done in generator(lanes=lanes).run(map(listening, range(9))):
        n, before = done.request.tag, plain[done.request.tag]
        assert (done.token_ids, done.text) == (before.token_ids, before.text)
        assert done.logprobs == pytest.approx(before.logprobs, abs=1e-5)
        assert tuple(drawn.token_id for drawn in heard[n]) == done.token_ids
        assert tuple(drawn.logprob for drawn in heard[n]) == done.logprobs
        assert {len(drawn.likeliest) for drawn in heard[n]} == {n % 4}


def test_the_likeliest_tokens_are_the_models() -> None:
    heard: list[Drawn] = []
    one = asked(5, top_logprobs=4, on_token=lambda drawn: heard.append(drawn) is None)
    (done,) = generator().run(iter([one]))
    assert isinstance(one.prompt, tuple)
    logits = DECODER(torch.tensor([[*one.prompt, *done.token_ids]]))[0, len(one.prompt) - 1 : -1]
    largest = logits.log_softmax(-1).topk(4)
    assert [[token for token, _ in drawn.likeliest] for drawn in heard] == largest.indices.tolist()
    found = torch.tensor([[logprob for _, logprob in drawn.likeliest] for drawn in heard])
    assert torch.allclose(found, largest.values, atol=1e-4)


def test_more_alternatives_than_tokens() -> None:
    heard: list[Drawn] = []
    one = asked(1, top_logprobs=10_000, on_token=lambda drawn: heard.append(drawn) is None)
    list(generator().run(iter([one])))
    assert {len(drawn.likeliest) for drawn in heard} == {tiny.VOCAB}


def test_a_row_that_nobody_wants_ends_at_once_and_its_neighbours_go_on() -> None:
    counts = itertools.count(1)
    stopping = asked(20, on_token=lambda _drawn: next(counts) < 3)
    made = generator(slots=2)
    done = {d.request.tag: d for d in made.run(iter([stopping, asked(6), asked(7)]))}
    assert (done[20].finish_reason, len(done[20].token_ids)) == ("cancelled", 3)
    alone = {d.request.tag: d.token_ids for d in generator(slots=2).run(iter([asked(6), asked(7)]))}
    assert {n: done[n].token_ids for n in (6, 7)} == alone
    assert made.steps < 24, "its slot was free for the next one"


@pytest.mark.parametrize("lanes", [1, 2])
def test_requests_may_be_waited_for_where_nothing_is_in_flight(lanes: int) -> None:
    more, in_flight = threading.Semaphore(0), set[int]()

    def source() -> Iterator[Request | None]:
        for n in range(4):
            while not more.acquire(blocking=not in_flight):
                yield None
            in_flight.add(n)
            yield asked(n)

    found: list[Completion] = []
    run = generator(lanes=lanes).run(source())
    timer = threading.Timer(0.2, more.release, [2])
    timer.start()
    for done in run:
        found.append(done)
        in_flight.discard(done.request.tag)
        more.release()
    timer.join()
    assert sorted(done.request.tag for done in found) == [0, 1, 2, 3]
