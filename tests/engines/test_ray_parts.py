"""The parts of the engine ray that need no cluster: ledgers of workers, the worker itself, what each one gets."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ojak._code import version
from ojak.engines import ray_ledgers
from ojak.engines.completions import completion_of, entry_of, key_of
from ojak.engines.open import EngineSpec, open_engine
from ojak.engines.ray_cluster import Room
from ojak.engines.ray_crew import Crew, Member
from ojak.engines.ray_ledgers import WorkerLedgers, worker_ledger
from ojak.engines.ray_worker import LEAST_QUEUED, Facts, Share, Task, Worker
from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.errors import EngineUnavailable, Locked, OjakError, UsageError
from ojak.ledger import Ledger
from ojak.model.request import Completion, Request, Sampling

IDENTITY = {"engine": "native", "model": "m", "model_sha256": "0", "dtype": "bfloat16"}


def request(number: int = 0, **more: Any) -> Request:
    return Request(**{"prompt": f"p{number}", "max_tokens": 9, "seed": number, "tag": (number, "x"), **more})


def completion(of: Request, **more: Any) -> Completion:
    values = {"text": "né", "token_ids": (5, 6), "finish_reason": "stop", "prompt_tokens": 3, **more}
    return Completion(request=of, **values)


def leave(folder: Path, name: str, *kept: Completion) -> None:
    """A ledger as a worker leaves it that was killed."""
    with worker_ledger(folder / f"{name}.sqlite") as ledger:
        assert ledger is not None
        for number, done in enumerate(kept):
            ledger.put(entry_of(key_of(done.request, IDENTITY), done, number))


# -- ledgers ----------------------------------------------------------------------------------------------------------


def test_a_completion_comes_back_whole() -> None:
    asked = request(logprobs=True)
    for done in (
        completion(asked, logprobs=(-0.25, -1.5)),
        completion(asked),
        completion(asked, token_ids=(), completion_tokens=4, finish_reason="length"),
    ):
        assert completion_of(entry_of("key", done, 3), asked) == done


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "q"}, {"prompt": (1, 2)}, {"seed": 1}, {"stop_ids": (1,)}, {"stop_strings": ("x",)}, {"logprobs": True},
        {"sampling": Sampling(temperature=1)},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_key_tells_what_shapes_the_answer_apart(changes: dict[str, Any]) -> None:
    assert key_of(request(**changes), IDENTITY) != key_of(request(), IDENTITY)
    assert key_of(request(), {**IDENTITY, "dtype": "float32"}) != key_of(request(), IDENTITY)


def test_a_key_leaves_out_what_does_not_shape_it() -> None:
    same = request(tag="other", max_tokens=99, keep=1, reuse=2, shared_prefix="p")
    assert key_of(same, IDENTITY) == key_of(request(), IDENTITY)


def test_what_the_dead_had_finished_is_found_however_often_it_is_taken_up(tmp_path: Path) -> None:
    ledgers = WorkerLedgers(tmp_path / "w")
    ledgers.begin()
    leave(tmp_path / "w", "a", completion(request(1)))
    leave(tmp_path / "w", "b", completion(request(2)), completion(request(1)))
    for _ in range(3):
        ledgers.begin()
        for number in (1, 2):
            asked = request(number, tag="its own")
            assert ledgers.find(asked, key_of(asked, IDENTITY)) == completion(asked)
        assert ledgers.find(request(3), key_of(request(3), IDENTITY)) is None
        ledgers.close()
    assert len(list((tmp_path / "w").glob("*.sqlite"))) == 2, "closed, they stay for the next run"
    ledgers.begin()
    ledgers.clear()
    assert not (tmp_path / "w").exists()
    ledgers.clear()


def test_an_answer_cut_by_a_smaller_cap_is_not_found(tmp_path: Path) -> None:
    ledgers = WorkerLedgers(tmp_path)
    ledgers.begin()
    leave(tmp_path, "a", completion(request(max_tokens=2), finish_reason="length"))
    ledgers.begin()
    key = key_of(request(), IDENTITY)
    assert ledgers.find(request(max_tokens=3), key) is None
    assert ledgers.find(request(max_tokens=2), key) is not None


def test_ledgers_in_which_nothing_is_leave_no_trace(tmp_path: Path) -> None:
    ledgers = WorkerLedgers(tmp_path / "w")
    ledgers.begin()
    leave(tmp_path / "w", "a")
    ledgers.begin()
    ledgers.close()
    assert not (tmp_path / "w").exists()


def test_a_worker_that_lives_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ledgers, "LOCK_WAIT_S", 0.05)
    ledgers = WorkerLedgers(tmp_path)
    ledgers.begin()
    with worker_ledger(tmp_path / "a.sqlite"), pytest.raises(Locked, match=r"a\.sqlite"):
        ledgers.begin()
    ledgers.begin()


def test_a_worker_that_does_not_see_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not see"), worker_ledger(tmp_path / "elsewhere" / "a.sqlite"):
        pass
    assert not (tmp_path / "elsewhere").exists()


# -- a worker, in this process ----------------------------------------------------------------------------------------


def engine(pause_s: float = 0.0, slots: int = 4) -> ScriptedEngine:
    def slowly(asked: Request) -> str:
        time.sleep(pause_s)
        return scripted_text(asked)

    return ScriptedEngine(slowly, slots=slots)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # put back after the test
    made = Worker()
    made.open(engine, Share(workers=64))
    yield made
    made.finish()


def tasks(count: int, begin: int = 0) -> list[Task]:
    return [Task(n, key_of(request(n), IDENTITY), request(n, tag=None)) for n in range(begin, begin + count)]


def collect(worker: Worker, send: list[Task]) -> dict[int, str]:
    """What comes of all of these, texts by number; fails where one comes twice or has its request on it."""
    found: dict[int, str] = {}
    end, reply = time.monotonic() + 20, worker.exchange(send, more=True)
    while True:
        for number, done in reply.done:
            assert number not in found
            assert done.request.prompt == ""
            found[number] = done.text
        if len(found) == len(send):
            return found
        assert time.monotonic() < end
        reply = worker.exchange([], more=False)


def test_a_worker_says_what_its_engine_is_and_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    monkeypatch.setenv("MKL_NUM_THREADS", "12")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    worker, alone = Worker(), ScriptedEngine()
    facts = worker.open(ScriptedEngine, Share(workers=5))
    assert isinstance(facts, Facts)
    assert (facts.identity, facts.capabilities) == (alone.identity, alone.capabilities)
    assert worker.finish()["threads"] == 2
    assert worker.look("count_tokens", "a b") == 2
    assert worker.look("context_tokens") is None, "what an engine does not have"


def test_a_worker_commits_before_it_tells(worker: Worker, tmp_path: Path) -> None:
    WorkerLedgers(tmp_path).begin()
    worker.begin(tmp_path / "a.sqlite", 100)
    texts = collect(worker, tasks(30))
    wanted = {
        done.request.seed: done.text for done in engine().generate(iter(map(request, range(30))), longest=9)
    }
    worker.finish()
    with Ledger(tmp_path / "a.sqlite") as ledger:
        kept = {entry.row: entry.text for entry in ledger.entries()}
    assert kept == wanted
    assert texts == wanted


def test_a_worker_asks_for_as_much_again_as_its_engine_works_on() -> None:
    gate = threading.Semaphore(0)

    def answer(asked: Request) -> str:
        gate.acquire()
        return "fine"

    worker = Worker()
    worker.open(lambda: ScriptedEngine(answer, slots=20), Share(workers=64))
    worker.begin(None, 100)
    assert worker.exchange(tasks(LEAST_QUEUED), more=True).room <= LEAST_QUEUED
    assert worker.exchange(tasks(30, begin=50), more=True).room == LEAST_QUEUED - 30, "eight are worked on"
    gate.release()  # one is done: the engine takes up to 20, and 17 wait
    end = time.monotonic() + 20
    while (room := worker.exchange([], more=True).room) != 20 - 17:
        assert time.monotonic() < end, room
    gate.release(100)
    worker.finish()


def test_what_an_engine_raises_comes_after_what_it_finished(tmp_path: Path) -> None:
    def breaking(asked: Request) -> str:
        if asked.seed == 2:
            raise EngineUnavailable("the server is gone", fix="start it")
        return "fine"

    worker = Worker()
    worker.open(lambda: ScriptedEngine(breaking, slots=1), Share(workers=64))
    worker.begin(None, 100)
    with pytest.raises(EngineUnavailable, match="gone"):
        collect(worker, tasks(3))
    with pytest.raises(OjakError, match="before its engine"):
        Worker().begin(None, 9)


def test_a_failure_is_told_but_not_kept(tmp_path: Path) -> None:
    class Failing(ScriptedEngine):
        def _complete(self, request: Request) -> Completion:
            return completion(request, text="", token_ids=(), finish_reason="failed", error="413")

    WorkerLedgers(tmp_path).begin()
    worker = Worker()
    worker.open(Failing, Share(workers=64))
    worker.begin(tmp_path / "a.sqlite", 100)
    reply = worker.exchange(tasks(1), more=False)
    assert [done.error for _, done in reply.done] == ["413"]
    worker.finish()
    with Ledger(tmp_path / "a.sqlite") as ledger:
        assert not ledger.counts(), "the caller may want to ask it again"


# -- the crew, on a cluster that is a script -----------------------------------------------------------------------------


class Lost(Exception):
    """Stands for Ray's errors."""


class Opening:
    """Stands for Ray: a worker whose engine takes forty looks to open, and then counts to three."""

    exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Lost)

    def __init__(self) -> None:
        self.looks = 0
        self.look = SimpleNamespace(remote=lambda *_asked: "answer")

    def wait(self, calls: list[str], **_options: object) -> tuple[list[str], list[str]]:
        self.looks += 1
        return (calls, []) if self.looks > 40 else ([], calls)

    def get(self, call: str) -> object:
        alone = ScriptedEngine()
        facts = Facts(version(), alone.identity, alone.capabilities, alone.special_tokens, alone.provenance())
        return 3 if call == "answer" else facts


def test_a_question_waits_for_a_worker_that_is_coming_to_life() -> None:
    """A model may take a minute to load after a death: that is no worker that keeps dying."""
    ray = Opening()
    cluster: Any = SimpleNamespace(ray=ray, room=lambda: Room((2,), 0))
    crew = Crew(cluster, ScriptedEngine, 1, WorkerLedgers(None), wants_gpu=False)
    crew.members = [Member(0, actor=ray, phase="opening", call="open", since=time.monotonic())]
    assert crew.ask("count_tokens", "a b c") == 3
    assert ray.looks > 40


# -- what each one gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "gpus", "workers", "share", "claim"),
    [
        ((2,), 0, 2, (2, False), {"num_cpus": 1, "num_gpus": 0}),
        ((2,), 0, 3, (3, False), {"num_cpus": 0.66, "num_gpus": 0}),
        ((16, 8), 0, 4, (2, False), {"num_cpus": 4, "num_gpus": 0}),
        ((16, 16), 0, 3, (2, False), {"num_cpus": 8, "num_gpus": 0}),
        ((64,), 4, 4, (4, True), {"num_cpus": 16, "num_gpus": 1}),
        ((64,), 1, 2, (2, False), {"num_cpus": 32, "num_gpus": 0}),
        ((1,), 0, 200, (200, False), {"num_cpus": 0.01, "num_gpus": 0}),
    ],
)
def test_shares(cores: Any, gpus: float, workers: int, share: Any, claim: dict[str, Any]) -> None:
    room = Room(cores, gpus)
    assert room.share(workers, wants_gpu=True) == share
    assert room.claim(room.share(workers, wants_gpu=True)) == claim
    assert room.share(workers, wants_gpu=False).whole_device is False


def test_how_many_workers_there_are_by_default() -> None:
    assert [Room(*room).default_workers() for room in (((2,), 0), ((64,), 4), ((8, 8, 8), 0))] == [2, 4, 3]


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as refused:
        open_engine(EngineSpec(model="no such model", engine="ray"))
    assert "ojak[ray]" in refused.value.fix
    for stray in (EngineSpec(model="scripted", workers=2), EngineSpec(model="scripted", ray_address="auto")):
        with pytest.raises(UsageError, match="engine ray"):
            open_engine(stray)


@pytest.mark.parametrize(("url", "inner"), [(None, "native"), ("http://127.0.0.1:1", "endpoint")])
def test_a_worker_opens_what_would_be_opened_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, inner: str
) -> None:
    pytest.importorskip("ray")
    opened: dict[str, Any] = {}
    monkeypatch.setattr(
        "ojak.engines.ray_engine.RayEngine", lambda make, **more: opened.update(make=make, **more)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "t").mkdir()
    spec = EngineSpec(model="m", url=url, tokenizer="t", key_env="MY_KEY", accept_license=("gemma",))
    open_engine(
        dataclasses.replace(spec, engine="ray", workers=3, ray_address="a:1", folder=tmp_path),
        system="Be brief.",
    )
    make = opened.pop("make")
    assert make.func is open_engine
    here = str(tmp_path / "m") if inner == "native" else "m"  # a worker's current folder is another
    assert make.args == (dataclasses.replace(spec, engine=inner, model=here, tokenizer=str(tmp_path / "t")),)
    assert make.keywords == {"system": "Be brief.", "turns": 1, "chat": True}
    assert opened == {"workers": 3, "address": "a:1", "folder": tmp_path, "wants_gpu": inner == "native"}
