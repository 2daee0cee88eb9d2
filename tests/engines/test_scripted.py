"""The engine without a model: answers in any order, the same for the same request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.errors import OjakError, UsageError
from ojak.model.request import Completion, Request


def request(n: int, max_tokens: int = 50, prompt: str = "say") -> Request:
    return Request(prompt=f"{prompt} {n}", max_tokens=max_tokens, seed=n, tag=n)


def run(engine: ScriptedEngine, requests: Iterator[Request | None]) -> list[Completion]:
    return list(engine.generate(requests, longest=100))


def test_each_request_is_answered_once_whatever_the_order() -> None:
    orders = []
    for shuffle_seed in (0, 1):
        engine = ScriptedEngine(lambda r: f"answer to {r.tag}", slots=5, shuffle_seed=shuffle_seed)
        done = run(engine, (request(n) for n in range(40)))
        assert {d.request.tag: d.text for d in done} == {n: f"answer to {n}" for n in range(40)}
        assert engine.sent == 40
        orders.append([d.request.tag for d in done])
        assert all(place <= tag + 200 and tag <= place + 5 for place, tag in enumerate(orders[-1]))
    assert orders[0] != orders[1] != sorted(orders[1])


def test_no_more_are_in_flight_than_there_are_slots() -> None:
    taken = itertools.count()

    def asked() -> Iterator[Request]:
        for n in range(20):
            next(taken)
            yield request(n)

    for answered, _ in enumerate(ScriptedEngine(lambda _r: "x", slots=3).generate(asked(), longest=9), 1):
        assert int(repr(taken)[6:-1]) <= answered + 2


def test_texts_are_used_one_after_another_and_their_end_is_said() -> None:
    engine = ScriptedEngine(["one", "two"], slots=1)
    assert [d.text for d in run(engine, iter([request(0), request(1)]))] == ["one", "two"]
    with pytest.raises(UsageError, match="no answers left"):
        run(engine, iter([request(2)]))


def test_words_are_tokens() -> None:
    engine = ScriptedEngine(["a b c", "a b c", "a b c"], slots=1)
    done = run(engine, iter([request(0, 2), request(1, 3), request(2, 4)]))
    assert [(d.text, d.finish_reason) for d in done] == [
        ("a b", "length"),
        ("a b c", "length"),
        ("a b c", "stop"),
    ]
    assert [len(d.token_ids) for d in done] == [2, 3, 4]
    assert done[0].prompt_tokens == 2


def test_later_requests_and_a_deadlock() -> None:
    answers: list[Completion] = []

    def asked() -> Iterator[Request | None]:
        yield request(0)
        while not answers:
            yield None
        yield request(1)

    for done in ScriptedEngine().generate(asked(), longest=9):
        answers.append(done)
    assert [done.request.tag for done in answers] == [0, 1]
    with pytest.raises(OjakError, match="waits"):
        run(ScriptedEngine(), iter([None]))


def test_its_own_texts_depend_on_prompt_and_seed_alone() -> None:
    engine = ScriptedEngine()
    prefix = engine.chat_prefix()
    question = Request(prompt=prefix.pre_query, max_tokens=50, seed=4)
    assert scripted_text(question) == scripted_text(question)
    different = {scripted_text(Request(prompt=prefix.pre_query, max_tokens=50, seed=n)) for n in range(50)}
    assert len(different) > 45
    reply = Request(prompt=f"{prefix.pre_query}Hi{prefix.post_query}", max_tokens=50, seed=4)
    assert scripted_text(reply).startswith("Here is")
    assert "You are" in engine.chat_prefix("You are").pre_query
