"""The queue that an engine waits on: it does not spin, keeps the order, forgets the cancelled, and outlives failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving import tiny_chat_model, until

from ojak.engines.native import NativeEngine
from ojak.model.request import Completion, Drawn, Request
from ojak.serve.refusal import Refusal
from ojak.serve.worker import Answer, Queue, Worker


def request(n: int = 1, max_tokens: int = 5) -> Request:
    return Request(prompt=(n,), max_tokens=max_tokens, seed=n)


def jobs(count: int) -> Any:
    async def made() -> Any:
        return Answer([request(n) for n in range(count)], hears=False).jobs

    return asyncio.run(made())


def test_order_and_none_while_rows_are_in_flight() -> None:
    queue, asked = Queue(), jobs(3)
    queue.put(asked[:2])
    assert [next(queue), next(queue), next(queue)] == [asked[0].request, asked[1].request, None]
    queue.finish(Completion(request=asked[0].request, text="", token_ids=(1,), finish_reason="stop"))
    assert queue.counts == (1, 0)
    queue.put(asked[2:])
    assert next(queue) is asked[2].request


def test_it_waits_without_work_and_ends_when_closed() -> None:
    queue, got = Queue(), []
    waited, wait = [], queue._changed.wait
    queue._changed.wait = lambda timeout=None: (waited.append(timeout), wait(timeout))[1]
    thread = threading.Thread(target=lambda: got.extend(queue))
    thread.start()
    time.sleep(0.3)
    assert waited == [None], "it waits, it does not look again and again"
    (job,) = jobs(1)
    queue.put([job])
    until(lambda: bool(got))
    queue.finish(Completion(request=job.request, text="", token_ids=(1,), finish_reason="stop"))
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert got[0] is job.request


def test_all_or_none_fit() -> None:
    queue = Queue(most_waiting=3)
    queue.put(jobs(2))
    with pytest.raises(Refusal) as refused:
        queue.put(jobs(2))
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    queue.put(jobs(1))
    assert queue.counts == (0, 3)
    queue.close()
    with pytest.raises(Refusal) as refused:
        queue.put(jobs(1))
    assert refused.value.status == 503


def test_cancelled_before_its_turn() -> None:
    queue, asked = Queue(), jobs(2)
    queue.put(asked)
    queue.cancel(asked[:1])
    assert next(queue) is asked[1].request
    assert queue.counts == (1, 0)
    assert asked[1].request.on_token(Drawn(1)) is True
    queue.cancel(asked)
    assert asked[1].request.on_token(Drawn(1)) is False


class Faulty(NativeEngine):
    """Fails instead of handing out its third row, once."""

    fails = 1

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        for n, done in enumerate(super().generate(requests, longest=longest)):
            if n == 2 and self.fails:
                self.fails -= 1
                raise RuntimeError("out of luck")
            yield done


async def texts(worker: Worker, requests: list[Request]) -> list[str]:
    answer = worker.submit(requests, hears=False)
    found: dict[int, str] = {}
    async for batch in answer.batches():
        found |= {index: event.text for index, event in batch if isinstance(event, Completion)}
    return [found[n] for n in range(len(requests))]


def test_a_failing_engine_ends_what_it_holds_and_goes_on() -> None:
    told: list[str] = []
    worker = Worker(Faulty(tiny_chat_model(), slots=2), 64, most_waiting=16, notify=told.append)
    worker.start()

    async def play() -> list[str]:
        with pytest.raises(Refusal) as failed:
            await texts(worker, [request(n, 5 + n) for n in range(4)])
        assert (failed.value.status, failed.value.message) == (500, "the engine failed")
        until(lambda: worker.queue.counts[0] == 0)
        return await asyncio.wait_for(texts(worker, [request(7)]), 20)

    assert len(asyncio.run(play())) == 1
    assert told == ["the engine failed: RuntimeError: out of luck"]
    worker.close()


def test_an_engine_that_fails_without_work_is_given_up() -> None:
    class Broken:
        def generate(self, _requests: Any, *, longest: int) -> Iterator[Completion]:
            raise RuntimeError(f"never {longest}")

    told: list[str] = []
    broken: Any = Broken()
    worker = Worker(broken, 64, most_waiting=16, notify=told.append)
    worker.start()
    until(lambda: worker.queue.is_closed)
    worker.close()
    assert told == ["the engine failed: RuntimeError: never 64"]


def test_a_row_that_could_not_be_written_is_an_error() -> None:
    queue = Queue()

    async def play() -> None:
        answer = Answer([request()], hears=False)
        queue.put(answer.jobs)
        asked = next(queue)
        assert asked
        queue.finish(
            Completion(request=asked, text="", token_ids=(1, 2), finish_reason="failed", error="no numbers")
        )
        with pytest.raises(Refusal, match="could not go on: no numbers"):
            await asyncio.wait_for(anext(answer.batches()), 5)

    asyncio.run(play())


def test_the_loop_is_woken_for_many_tokens_at_once() -> None:
    async def play() -> tuple[int, int]:
        answer = Answer([request()], hears=True)
        (job,) = answer.jobs
        thread = threading.Thread(target=lambda: [job.hear(Drawn(n)) for n in range(500)])
        thread.start()
        thread.join()
        job.end(Completion(request=job.request, text="", token_ids=(1,), finish_reason="stop"))
        batches = [batch async for batch in answer.batches()]
        ids = [event.token_id for batch in batches for _, event in batch if isinstance(event, Drawn)]
        assert ids == list(range(500))
        return len(batches), len(ids)

    count, _ = asyncio.run(play())
    assert count == 1
