"""Magpie over an endpoint that fails in every way: nothing is lost, nothing is asked twice, every row has its end."""

from __future__ import annotations

import gzip
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faulty_server import (
    BOMB,
    DEEP,
    MODEL,
    Fault,
    FaultyServer,
    Tag,
    altered,
    chunks_that_end,
    close_now,
    content,
    drip,
    drip_headers,
    forever,
    hang,
    reset_mid_body,
    retry_at,
    status,
    write_tokenizer,
)
from ojak.artifact import Artifact, verify
from ojak.engines.endpoint import EndpointEngine
from ojak.engines.endpoint_retry import Policy
from ojak.errors import EngineUnavailable, Stopped, UsageError
from ojak.ledger import Ledger
from ojak.model.request import Completion, Request, Sampling
from ojak.synthesize.folder import LEDGER
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import config, data

ROWS = 10
FAST = Policy(
    connect_s=1.0,
    read_s=0.5,
    total_s=0.8,
    again={"busy": 4, "broken": 4, "slow": 3},
    base_s=0.01,
    cap_s=0.05,
    reply_bytes=60_000,
)
WRITTEN = (2, "instruction"), (5, "instruction")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


def open_(server: FaultyServer, tokenizer: Path | None, policy: Policy = FAST, **more: Any) -> EndpointEngine:
    return EndpointEngine.open(
        MODEL, server.url, tokenizer=str(tokenizer) if tokenizer else None, policy=policy, **more
    )


def run(
    out: Path, server: FaultyServer, tokenizer: Path | None, policy: Policy = FAST, **more: Any
) -> Artifact:
    settings = config(out, ROWS, model=MODEL, engine="endpoint", url=server.url, **more)
    return synthesize_magpie(settings, engine=open_(server, tokenizer, policy))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> tuple[dict[str, str], set[Tag]]:
    """The data of a run without faults, and what it asked."""
    with FaultyServer() as server:
        artifact = run(tmp_path_factory.mktemp("whole") / "d", server, tokenizer)
    assert artifact.counts["accepted"] >= ROWS - 2
    asked = {tag for tag in server.requests if tag[0] >= 0}
    assert {tag: server.requests[tag] for tag in asked} == dict.fromkeys(asked, 1)
    return data(artifact), asked


# -- what passes ----------------------------------------------------------------------------------------------------------


PASSING: dict[str, Fault] = {
    "429": status(429),
    "429 retry-after seconds": status(429, Retry_After="0.1"),
    "429 retry-after date": retry_at,
    "500": status(500),
    "502": status(502),
    "503 retry-after": status(503, Retry_After="0"),
    "408": status(408),
    "reset": close_now,
    "reset mid-body": reset_mid_body,
    "chunks that end early": chunks_that_end,
    "truncated json": content(b'{"choices": [{"text": "Wri'),
    "html": content(b"<html>502 Bad Gateway</html>", "text/html"),
    "json that says it is html": content(
        b'{"choices": [{"text": "a", "finish_reason": "stop"}]}', "text/html"
    ),
    "deep json": content(DEEP),
    "error object": content(b'{"error": {"message": "overloaded"}}'),
    "no choices": content(b'{"choices": []}'),
    "choices of another kind": content(b'{"choices": {"text": "a"}}'),
    "no text": altered(text=None),
    "a message instead of text": altered(text=..., message={"content": "hello"}),
    "not utf-8": content(b'{"choices": [{"text": "\xff"}]}'),
    "packed and cut": content(gzip.compress(b"{}")[:-9], Content_Encoding="gzip"),
    "unknown packing": content(b"{}", Content_Encoding="br"),
    "hang": hang,
    "drip": drip,
    "headers that drip": drip_headers,
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_changes_nothing(
    name: str, tmp_path: Path, tokenizer: Path, whole: tuple[dict[str, str], set[Tag]]
) -> None:
    """Each request that fails is repeated until it is answered, and no other is."""
    clean, asked = whole
    answer = next(tag for tag in sorted(asked) if tag[1] == "response")
    faulted = {**{tag: [PASSING[name]] for tag in WRITTEN}, answer: [PASSING[name]] * 2}
    with FaultyServer(dict(faulted)) as server:
        artifact = run(tmp_path / "d", server, tokenizer)
    assert data(artifact) == clean
    assert artifact.counts["failed"] == 0
    expected = {tag: 1 + len(faulted.get(tag, [])) for tag in asked}
    assert {tag: server.requests[tag] for tag in server.requests if tag[0] >= 0} == expected
    assert server.answered == Counter(asked)
    troubles = sum(count for key, count in artifact.stats["engine"].items() if key.startswith("trouble_"))
    assert troubles == 4


def test_retry_after_is_waited_for(tmp_path: Path, tokenizer: Path) -> None:
    with FaultyServer({(0, "instruction"): [status(429, Retry_After="0.7")]}) as server:
        engine = open_(server, tokenizer)
        begin = time.monotonic()
        artifact = synthesize_magpie(config(tmp_path / "d", 1, model=MODEL), engine=engine)
    assert artifact.counts["rows"] == 1
    assert time.monotonic() - begin >= 0.7


# -- what fails for good ----------------------------------------------------------------------------------------------------


LASTING: dict[str, tuple[Fault, int]] = {  # with the attempts that it gets
    "400": (status(400), 1),
    "422": (status(422), 1),
    "500": (status(500), 5),
    "huge": (content(b"[" + b" " * 100_000 + b"]"), 1),
    "gzip bomb": (content(BOMB, Content_Encoding="gzip"), 1),
    "deflate bomb": (content(BOMB, Content_Encoding="deflate"), 1),
    "redirect here": (status(307, Location="/v1/other"), 1),
    "403": (status(403), 1),
    "no choices": (content(b'{"choices": []}'), 5),
    "429": (status(429), 5),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_request_that_fails_for_good_fails_its_row_alone(
    name: str, tmp_path: Path, tokenizer: Path, whole: tuple[dict[str, str], set[Tag]]
) -> None:
    fault, attempts = LASTING[name]
    clean, asked = whole
    answer = max(tag for tag in asked if tag[1] == "response")
    with FaultyServer({(2, "instruction"): forever(fault), answer: forever(fault)}) as server:
        artifact = run(tmp_path / "d", server, tokenizer)
    counts = artifact.counts
    assert counts["failed"] == 2
    assert counts["rows"] == ROWS == counts["accepted"] + sum(counts["rejected"].values()) + counts["failed"]
    assert server.requests[2, "instruction"] == server.requests[answer] == attempts
    assert max(server.answered.values()) == 1
    verify(tmp_path / "d")
    with Ledger(tmp_path / "d" / LEDGER) as ledger:
        failed = [entry for entry in ledger.entries() if entry.state == "failed"]
    assert {(entry.row, entry.kind) for entry in failed} == {(2, "instruction"), answer}
    assert all(entry.payload["error"] for entry in failed)

    with FaultyServer() as healed:
        run(tmp_path / "d", healed, tokenizer)
        assert not healed.answered  # a failed row is an end, too
        again = run(tmp_path / "d", healed, tokenizer, retry_failed=True)
    assert data(again) == clean
    assert set(healed.answered) == {(2, "instruction"), (2, "response"), answer} & asked
    assert set(healed.answered.values()) == {1}


def test_a_redirect_to_another_host_is_not_followed(
    tmp_path: Path, tokenizer: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OJAK_ENDPOINT_KEY", "canary-0123456789")
    with FaultyServer() as other:
        fault = forever(status(302, Location=f"{other.url}/v1/completions"))
        with FaultyServer({(2, "instruction"): fault}) as server:
            artifact = run(tmp_path / "d", server, tokenizer)
    assert artifact.counts["failed"] == 1
    assert set(server.keys) == {"canary-0123456789"}
    assert not other.keys


def test_a_server_that_fails_every_row_stops_the_run(tmp_path: Path, tokenizer: Path) -> None:
    faults = {(row, "instruction"): forever(status(400)) for row in range(64)}
    with FaultyServer(dict(faults)) as server, pytest.raises(EngineUnavailable, match="fails every request"):
        synthesize_magpie(config(tmp_path / "d", 64, model=MODEL), engine=open_(server, tokenizer))


# -- a server that goes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 7])
def test_a_server_that_dies_stops_the_run_and_another_goes_on(
    after: int, tmp_path: Path, tokenizer: Path, whole: tuple[dict[str, str], set[Tag]]
) -> None:
    """At another address: where a server is does not shape the rows."""
    clean, asked = whole
    with FaultyServer(dies_after=after) as first:
        engine = open_(first, tokenizer)
        with pytest.raises(EngineUnavailable) as caught:
            synthesize_magpie(config(tmp_path / "d", ROWS, model=MODEL), engine=engine)
    assert caught.value.exit_code == 5
    assert not (tmp_path / "d" / "manifest.json").exists()
    with Ledger(tmp_path / "d" / LEDGER) as ledger:
        assert {(entry.row, entry.kind) for entry in ledger.entries()} == set(first.answered)
        assert all(entry.state == "ok" for entry in ledger.entries())
    with FaultyServer() as second:
        assert data(run(tmp_path / "d", second, tokenizer)) == clean
    assert first.answered + second.answered == Counter(asked)


def test_a_server_that_is_gone_before_the_run(tmp_path: Path, tokenizer: Path) -> None:
    with FaultyServer() as server:
        engine = open_(server, tokenizer)
    with pytest.raises(EngineUnavailable, match="does not answer") as caught:
        synthesize_magpie(config(tmp_path / "d", ROWS, model=MODEL), engine=engine)
    assert "refused" in caught.value.why


def test_ctrl_c_leaves_a_run_that_goes_on(
    tmp_path: Path, tokenizer: Path, whole: tuple[dict[str, str], set[Tag]]
) -> None:
    clean, asked = whole
    pressed = threading.Lock()  # two answers at once may both find five given, and neither exactly five
    with FaultyServer({(6, "instruction"): [hang]}) as first:

        def press() -> None:
            if first.answered.total() >= 5 and pressed.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGINT)

        first.on_answer = press
        with pytest.raises(Stopped):
            run(tmp_path / "d", first, tokenizer)
    with FaultyServer() as second:
        assert data(run(tmp_path / "d", second, tokenizer)) == clean
    assert second.answered.keys() <= asked
    with Ledger(tmp_path / "d" / LEDGER) as ledger:
        assert ledger.totals().tokens > 0


# -- what is sent and what is read ----------------------------------------------------------------------------------------------


def complete(engine: EndpointEngine, *requests: Request) -> list[Completion]:
    done = list(engine.generate(iter(requests), longest=100))
    return sorted(done, key=lambda completion: completion.request.tag)


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", None, ..., 7])
def test_a_finish_reason_that_is_not_known_counts_as_cut(reason: Any, tokenizer: Path) -> None:
    faults = {(0, "instruction"): [altered(finish_reason=reason)]}
    with FaultyServer(dict(faults)) as server:
        engine = open_(server, tokenizer)
        seed = next(seed for seed, tag in server.rows.items() if tag == (0, "instruction"))
        (done,) = complete(engine, Request(prompt="Say", max_tokens=99, seed=seed, tag=0))
    assert (done.finish_reason, done.error) == ("length", None)
    assert sum(engine.stats()["odd_finish_reasons"].values()) == 1


def test_a_text_cut_by_the_limit_is_told_from_a_whole_one(tokenizer: Path) -> None:
    with FaultyServer() as server:
        engine = open_(server, tokenizer)
        whole, cut = complete(
            engine, *(Request(prompt="Say", max_tokens=n, seed=1, tag=n < 99) for n in (99, 9))
        )
    assert (whole.finish_reason, whole.token_count) == ("stop", 65)
    assert (cut.finish_reason, cut.token_count, cut.text) == ("length", 9, whole.text[:9])
    assert engine.drawn_tokens == 65 + 9


def test_text_after_a_stop_text_is_cut_off(tokenizer: Path) -> None:
    with FaultyServer(
        {(0, "instruction"): [altered(text="Hello<|im_end|>\n<|im_start|>user", finish_reason="length")]}
    ) as server:
        engine = open_(server, tokenizer)
        seed = next(seed for seed, tag in server.rows.items() if tag == (0, "instruction"))
        stops = engine.chat_prefix().stop_ids
        (done,) = complete(engine, Request(prompt="Say", max_tokens=99, seed=seed, stop_ids=stops, tag=0))
    assert (done.text, done.finish_reason) == ("Hello", "stop")


def test_log_probabilities_come_when_asked_for(tokenizer: Path) -> None:
    with FaultyServer() as server:
        engine = open_(server, tokenizer)
        with_, without = complete(
            engine,
            *(
                Request(prompt="Say", max_tokens=9, seed=1, logprobs=asked, tag=not asked)
                for asked in (True, False)
            ),
        )
    assert engine.capabilities.logprobs
    assert with_.logprobs == (-0.5,) * 9
    assert without.logprobs is None


def test_what_no_server_can_do_is_refused_before_anything_is_sent(tokenizer: Path) -> None:
    with FaultyServer() as server:
        engine = open_(server, tokenizer)
        sent = server.requests.total()
        with pytest.raises(UsageError, match="first token"):
            complete(engine, Request(prompt="Say", max_tokens=9, sampling=Sampling(first_temperature=1.0)))
        with pytest.raises(UsageError, match="ban first"):
            engine.first_tokens(["Sure"])
        with pytest.raises(UsageError, match="local model"):
            engine.score([])
        assert server.requests.total() == sent


def test_more_requests_are_under_way_while_all_goes_well(tmp_path: Path, tokenizer: Path) -> None:
    """And fewer once the server says that it is crowded."""
    with FaultyServer() as server:
        engine = open_(server, tokenizer)
        slow = server.write
        server.write = lambda *a: time.sleep(0.02) or slow(*a)  # type: ignore[method-assign]
        complete(engine, *(Request(prompt="Say", max_tokens=9, seed=n, tag=n) for n in range(60)))
        most = server.most_under_way
        assert 8 <= most <= FAST.most
        assert engine.stats()["most_in_flight"] >= most


def test_requests_that_are_not_ready_are_asked_for_again(tokenizer: Path) -> None:
    """A caller that yields None gets its completions meanwhile."""
    seen: list[int] = []

    def requests() -> Iterator[Request | None]:
        yield Request(prompt="Say", max_tokens=9, seed=1, tag=0)
        while not seen:
            yield None
        yield Request(prompt="Say", max_tokens=9, seed=2, tag=1)

    with FaultyServer() as server:
        for completion in open_(server, tokenizer).generate(requests(), longest=100):
            seen.append(completion.request.tag)
    assert seen == [0, 1]


def test_a_caller_that_stops_leaves_no_thread_behind(tokenizer: Path) -> None:
    import threading

    with FaultyServer({(0, "instruction"): [hang]}) as server:
        engine = open_(server, tokenizer)
        seed = next(seed for seed, tag in server.rows.items() if tag == (0, "instruction"))
        found = engine.generate(
            iter([Request(prompt="a", max_tokens=9, seed=1), Request(prompt="a", max_tokens=9, seed=seed)]),
            longest=9,
        )
        next(found)
        found.close()  # type: ignore[attr-defined]
        assert not [thread for thread in threading.enumerate() if thread.name == "ojak-endpoint"]


@pytest.mark.parametrize("fault", [drip, drip_headers, hang], ids=lambda fault: fault.__name__)
def test_no_request_takes_longer_than_its_deadline(fault: Fault, tokenizer: Path) -> None:
    """Bytes that keep coming do not move it."""
    policy = replace(FAST, read_s=30.0, total_s=0.6, again={})
    with FaultyServer({(0, "instruction"): forever(fault)}) as server:
        engine = open_(server, tokenizer, policy)
        seed = next(seed for seed, tag in server.rows.items() if tag == (0, "instruction"))
        begin = time.monotonic()
        (done,) = complete(engine, Request(prompt="Say", max_tokens=9, seed=seed, tag=0))
    assert time.monotonic() - begin < 5
    assert (done.finish_reason, done.error) == ("failed", "no whole answer within 0.6 s")
