"""Work that is ended early: between two tiles of the prompts, and amid the start-up check."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import tiny

from ojak.errors import OjakError
from ojak.model import invariance
from ojak.model.cache import CacheShape
from ojak.model.decoder import Decoder
from ojak.model.generate import Generator
from ojak.model.request import Request

TOKENIZER = tiny.tokenizer()
SLOTS, PROMPT = 8, tuple(range(250))
PAUSE_S = 0.05


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a tile or a step was begun; each takes 0.05 s."""
    begun, hidden = [], Decoder.hidden

    def slow(self: Decoder, *given: Any) -> Any:
        begun.append(time.monotonic())
        time.sleep(PAUSE_S)
        return hidden(self, *given)

    monkeypatch.setattr(Decoder, "hidden", slow)
    return begun


def generator(lanes: int = 1) -> Generator:
    shape = CacheShape(slots=SLOTS, capacity=260, prefix_capacity=0)
    return Generator(tiny.decoder("llama"), TOKENIZER, TOKENIZER.encode, shape, lanes=lanes)


def requests(count: int = SLOTS) -> Iterator[Request]:
    return (Request(prompt=PROMPT, max_tokens=2 + n % 8, seed=n, tag=n) for n in range(count))


def test_another_thread_ends_it_amid_the_prompts(calls: list[float]) -> None:
    made = generator()
    whole = {done.request.tag: done.token_ids for done in made.run(requests())}
    before = len(calls)
    threading.Timer(2.5 * PAUSE_S, made.halt).start()
    assert list(made.run(requests())) == []
    assert len(calls) - before <= 5, "eight prompts of 250 tokens are eight tiles"
    assert {done.request.tag: done.token_ids for done in made.run(requests())} == whole


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_signal_does_not_wait_for_the_prompts(calls: list[float], lanes: int) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    made = generator(lanes)
    threading.Timer(2.5 * PAUSE_S, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(made.run(requests(lanes * SLOTS)))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(calls) <= 5 * lanes
    made.close()


def test_the_start_up_check_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, prefill = [], invariance._Probe.prefill_agrees

    def interrupted(self: Any) -> bool:
        ran.append(1)
        self.halted.set()
        return prefill(self)

    monkeypatch.setattr(invariance._Probe, "prefill_agrees", interrupted)
    threads = set(threading.enumerate())
    with pytest.raises(OjakError, match="ended before its time"):
        generator()
    assert ran == [1]
    assert not set(threading.enumerate()) - threads
