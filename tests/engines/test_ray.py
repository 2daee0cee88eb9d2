"""The engine ray on a real cluster of two workers on this machine: one is killed, the driver is killed, and nothing
changes and nothing finished is asked again."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_answers import Noting, asked, asked_again, processes, refusing, tiny_engine

from faulty_server import MODEL, Fault, FaultyServer, Tag, status, write_tokenizer
from ojak.artifact import verify
from ojak.engines.base import Scored
from ojak.engines.ray_engine import RayEngine
from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.errors import EngineUnavailable, OjakError, UsageError
from ojak.model.request import Completion, Request, Sampling
from ojak.synthesize.folder import LEDGER, WORKERS
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import config, data, ledger_state

ray = pytest.importorskip("ray")
HERE = Path(__file__).resolve().parent
KEY = "sk-canary-of-the-workers-0123456789"
PATH = [str(HERE.parent.parent), str(HERE), str(HERE.parent), str(HERE.parent / "model")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings(
        "default::ResourceWarning", "default::FutureWarning", "default::DeprecationWarning"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """One cluster for all tests of this file; each engine finds it joined. Its address."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        patch.setenv("OJAK_ENDPOINT_KEY", KEY)
        patch.setenv("PYTHONPATH", os.pathsep.join([*PATH, *inherited]))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20,
            log_to_driver=False, logging_level=logging.ERROR, _temp_dir=str(place),
        )  # fmt: skip
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


Open = Callable[..., RayEngine]


@pytest.fixture
def open_ray() -> Iterator[Open]:
    """Opens engines whose workers note what they are asked; all are closed at the end."""
    opened: list[RayEngine] = []

    def open_(log: Path, folder: Path | None = None, workers: int = 2, **options: Any) -> RayEngine:
        make = functools.partial(Noting, str(log), **options)
        opened.append(RayEngine(make, workers=workers, folder=folder))
        return opened[-1]

    yield open_
    for engine in opened:
        engine.close()


def requests(count: int, **more: Any) -> list[Request]:
    return [
        Request(prompt=f"number {n} <|im_start|>user\n", max_tokens=50, seed=n, tag=("row", n), **more)
        for n in range(count)
    ]


def told(completions: Iterator[Completion]) -> dict[Any, tuple[Any, ...]]:
    """Everything that a completion says, by its request's tag; fails where one comes twice."""
    found: dict[Any, tuple[Any, ...]] = {}
    for done in completions:
        assert done.request.tag not in found
        found[done.request.tag] = (
            done.request, done.text, done.token_ids, done.finish_reason, done.prompt_tokens, done.logprobs
        )  # fmt: skip
    return found


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_it_answers_as_one_engine_does_and_both_workers_work(
    tmp_path: Path, log: Path, open_ray: Open
) -> None:
    engine, alone = open_ray(log, tmp_path / "w", pause_s=0.002), ScriptedEngine(scripted_text)
    assert engine.identity == alone.identity
    assert engine.capabilities == alone.capabilities
    assert engine.special_tokens == alone.special_tokens
    assert engine.stop_ids == alone.stop_ids
    assert engine.chat_prefix("Be brief.") == alone.chat_prefix("Be brief.")
    assert engine.count_tokens("one two three") == 3
    assert engine.first_tokens(["a", "b"]) == (0, 1)
    assert engine.provenance() == alone.provenance()
    wanted = told(alone.generate(iter(requests(120)), longest=100))
    assert told(engine.generate(iter(requests(120)), longest=100)) == wanted
    assert set(asked(log).values()) == {1}
    assert len(processes(log)) == 2
    assert min(processes(log).values()) >= 20
    assert engine.drawn_tokens == alone.drawn_tokens
    stats = engine.stats()
    assert (stats["workers"], stats["deaths"], stats["requests"], stats["recalled"]) == (2, 0, 120, 0)
    assert not (tmp_path / "w").exists(), "the caller has everything: the workers' ledgers go"


def test_settings_reach_the_workers_and_the_next_work_follows(log: Path, open_ray: Open) -> None:
    engine = open_ray(log)
    sampling = Sampling(temperature=0.7, top_p=0.9, banned_first=(3,))
    special = requests(3, sampling=sampling, stop_ids=(4,), stop_strings=("x",), keep="k", reuse="k")
    assert [done.request for done in engine.generate(iter(special), longest=9)] != []
    again = told(engine.generate(iter(special), longest=9))
    assert [found[0] for _, found in sorted(again.items())] == special
    assert set(asked(log).values()) == {2}, "without a folder nothing is kept between one work and the next"
    texts = [Scored("a b c", f"{'a ' * (n % 5)}d") for n in range(150)]
    assert list(engine.score(texts)) == list(ScriptedEngine().score(texts))


def test_requests_that_wait_for_answers_get_them(log: Path, open_ray: Open) -> None:
    """Each completion makes the next request, as responses follow instructions."""
    engine, waiting = open_ray(log), [requests(60)[0]]
    later = requests(60)[1:]

    def chain() -> Iterator[Request | None]:
        while waiting or later:
            yield waiting.pop() if waiting else None

    seen = []
    for done in engine.generate(chain(), longest=100):
        seen.append(done.request.seed)
        waiting += [later.pop(0)] if later else []
    assert seen == list(range(60))
    with pytest.raises(OjakError, match="waits for requests"):
        list(engine.generate(itertools.repeat(None), longest=9))


def test_the_number_of_requests_on_their_way_is_bounded(log: Path, open_ray: Open) -> None:
    engine, drawn, finished = open_ray(log, slots=4, pause_s=0.001), [0], 0
    most = 0

    def counted() -> Iterator[Request]:
        for request in requests(400):
            drawn[0] += 1
            yield request

    for _ in engine.generate(counted(), longest=100):
        finished += 1
        most = max(most, drawn[0] - finished)
    assert finished == 400
    assert 8 <= most <= 2 * (4 + 2 * 8) + 8


@pytest.mark.parametrize("workers", [2, 1])
def test_a_killed_worker_changes_nothing(tmp_path: Path, log: Path, open_ray: Open, workers: int) -> None:
    """A Magpie run, a worker ended by SIGKILL in the midst of it: the data of a run without Ray."""
    whole = data(synthesize_magpie(config(tmp_path / "whole", 150), engine=ScriptedEngine(scripted_text)))
    out = tmp_path / "run"
    engine = open_ray(log, out / WORKERS, workers, pause_s=0.005)
    victims: list[int] = []

    class Killer:
        def update(self, state: Any) -> None:
            if state.rows_done == 40 and not victims:
                victims.append(processes(log).most_common(1)[0][0])
                before = processes(log)[victims[0]]
                until(lambda: processes(log)[victims[0]] >= before + 4)  # finished, and not yet told
                os.kill(victims[0], signal.SIGKILL)

    artifact = synthesize_magpie(config(out, 150), engine=engine, progress=Killer())
    assert victims
    assert data(artifact) == whole
    assert not asked_again(log, victims), "a finished request was asked again"
    assert artifact.stats["engine"]["deaths"] == 1
    assert artifact.stats["engine"]["recalled"] >= 3
    assert len(processes(log)) >= 2, "with one worker, another took its place"
    assert sorted(item.name for item in out.iterdir() if not item.name.startswith(".")) == [
        "README.md", "data", LEDGER, "manifest.json", "rejected",
    ]  # fmt: skip


DRIVER = """
import functools, json, sys
from pathlib import Path
from ray_answers import Noting
from ojak.engines.ray_engine import RayEngine
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import config
out, log, address = sys.argv[1:]
make = functools.partial(Noting, log, pause_s=0.01)
engine = RayEngine(make, workers=2, address=address, folder=Path(out) / "workers")
synthesize_magpie(config(Path(out), 150), engine=engine)
"""


def test_a_killed_driver_goes_on_where_it_was(
    tmp_path: Path, log: Path, cluster: str, open_ray: Open
) -> None:
    whole = data(synthesize_magpie(config(tmp_path / "whole", 150), engine=ScriptedEngine(scripted_text)))
    out = tmp_path / "run"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(out), str(log), cluster],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PATH)},
        stderr=subprocess.PIPE,
    )
    until(lambda: asked(log).total() >= 60 or driver.poll() is not None)
    driver.kill()
    _, said = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, said.decode()
    kept, killed = len(ledger_state(out)), set(processes(log))
    engine = open_ray(log, out / WORKERS)
    artifact = synthesize_magpie(config(out, 150), engine=engine)
    assert data(artifact) == whole
    assert not asked_again(log, killed), "a finished request was asked again"
    assert artifact.stats["engine"]["recalled"] > 0, (
        "the workers had finished nothing that the driver did not know"
    )
    assert kept < asked(log).total()
    assert not (out / WORKERS).exists()
    before = ledger_state(out)
    assert data(synthesize_magpie(config(out, 150), engine=engine)) == whole
    assert ledger_state(out) == before
    assert not asked_again(log, killed)


def test_work_that_is_left_goes_on_from_the_ledgers(tmp_path: Path, log: Path, open_ray: Open) -> None:
    engine = open_ray(log, tmp_path / "w", pause_s=0.005)
    begun = engine.generate(iter(requests(100)), longest=100)
    first = [next(begun) for _ in range(10)]
    until(lambda: asked(log).total() >= 20)
    killed = set(processes(log))
    begun.close()  # type: ignore[attr-defined]
    assert engine.count_tokens("not asked before") == 3, "others have come to life"
    everything = told(engine.generate(iter(requests(100)), longest=100))
    assert len(everything) == 100
    assert {done.request.tag: done.text for done in first}.items() <= {
        t: f[1] for t, f in everything.items()
    }.items()
    assert not asked_again(log, killed)
    assert engine.stats()["recalled"] >= 18


def test_workers_that_keep_dying_end_the_work(tmp_path: Path, log: Path, open_ray: Open) -> None:
    engine = open_ray(log, tmp_path / "w", deadly=7)
    with pytest.raises(EngineUnavailable, match="keep dying"):
        list(engine.generate(iter(requests(20)), longest=100))
    killed = set(processes(log))
    rest = [request for request in requests(20) if request.seed != 7]
    assert len(list(engine.generate(iter(rest), longest=100))) == 19
    assert not asked_again(log, killed)


def test_a_model_in_two_processes_writes_what_it_writes_in_one() -> None:
    """Sampled at temperature 1, prompts of several lengths, three times as many rows as slots; bit for bit."""
    sampled = [
        Request(prompt="abcdefgh"[: 1 + n % 8], max_tokens=24, sampling=Sampling(temperature=1.0), seed=n, tag=n,
                shared_prefix="ab", logprobs=True)
        for n in range(48)
    ]  # fmt: skip
    alone = told(tiny_engine().generate(iter(sampled), longest=40))
    engine = RayEngine(tiny_engine, workers=2)
    try:
        assert told(engine.generate(iter(sampled), longest=40)) == alone
        assert engine.identity == tiny_engine().identity
        assert engine.stats()["slots"] == 32
    finally:
        engine.close()


def test_workers_ask_a_server_with_the_key_of_their_machine(tmp_path: Path) -> None:
    """Each request once, but for the two that the server failed; the key is in no byte of the run."""
    tokenizer = str(write_tokenizer(tmp_path / "t"))
    faults: dict[Tag, Iterable[Fault]] = {
        (2, "instruction"): [status(503)],
        (3, "instruction"): [status(500)],
    }
    with FaultyServer(faults, key=KEY) as server:
        settings: dict[str, Any] = {"model": MODEL, "url": server.url, "tokenizer": tokenizer}
        through = synthesize_magpie(config(tmp_path / "ray", 10, engine="ray", workers=2, **settings))
        sent = {tag: count for tag, count in server.requests.items() if tag[0] >= 0}
    assert {tag for tag, count in sent.items() if count != 1} == faults.keys()
    with FaultyServer(key=KEY) as server:
        plain = synthesize_magpie(
            config(tmp_path / "plain", 10, engine="endpoint", **settings | {"url": server.url})
        )
    assert data(through) == data(plain)
    assert through.counts["accepted"] > 0
    assert through.stats["engine"]["workers"] == 2
    files = [item for item in (tmp_path / "ray").rglob("*") if item.is_file()]
    assert not any(KEY.encode() in item.read_bytes() for item in files)


def test_the_command_begins_a_cluster_of_its_own_and_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json` is all that stdout has; no file of Ray and no secret is in the run's folder."""
    monkeypatch.setenv("CANARY_KEY", "sk-canary-0123456789")
    command = "synthesize magpie --engine ray --workers 1 --model scripted --rows 400 --json --out run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ojak = subprocess.Popen(
        [sys.executable, "-m", "ojak", *command.split()],
        cwd=tmp_path,
        env={**environment, "TMPDIR": "/tmp", "PYTHONPATH": os.pathsep.join(PATH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, said = ojak.communicate(timeout=120)
    assert ojak.returncode == 0, said
    assert json.loads(out)["rows"] == 400
    whole = synthesize_magpie(config(tmp_path / "whole", 400), engine=ScriptedEngine(scripted_text))
    artifact = verify(tmp_path / "run")
    assert data(artifact) == data(whole)
    assert artifact.stats["engine"]["workers"] == 1
    names = {item.name for item in (tmp_path / "run").iterdir() if not item.name.startswith(".")}
    assert names == {"README.md", "data", LEDGER, "manifest.json", "rejected"}
    files = [item for item in (tmp_path / "run").rglob("*") if item.is_file()]
    assert not any(b"sk-canary" in item.read_bytes() for item in files)


def test_an_engine_s_refusal_comes_through() -> None:
    with pytest.raises(UsageError, match="as it is") as refused:
        RayEngine(refusing, workers=1)
    assert refused.value.fix == "mend it"
    with pytest.raises(OjakError, match="a worker of Ray failed"):
        RayEngine(functools.partial(Noting, "/nowhere/at/all"), workers=1)
