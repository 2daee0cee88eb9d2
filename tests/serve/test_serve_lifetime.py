"""Clients that go, queues that fill, servers that end; and the command itself, in a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Running, tiny_chat_model, until
from typer.testing import CliRunner

from ojak import serve as serve_package
from ojak.cli.app import app
from ojak.errors import UsageError
from ojak.model.load import Model
from ojak.serve import check_host, check_web
from ojak.serve.server import bind

LONG: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 500, "seed": 1, "temperature": 1.0}


@pytest.fixture
def slow(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The same model at 100 tokens a second, so that there is time to do something before an answer ends."""
    hidden = model.decoder.hidden

    def waiting(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        return hidden(*args, **kwargs)

    monkeypatch.setattr(model.decoder, "hidden", waiting)
    return model


def test_a_stream_that_nobody_reads_any_more_frees_its_slot(slow: Model) -> None:
    with Running(slow, slots=1) as running:
        stream = running.client().completions.create(**LONG, stream=True)
        next(iter(stream))
        assert running.counts() == (1, 0)
        stream.close()
        until(lambda: running.counts() == (0, 0), 3)
        drawn = running.engine.drawn_tokens
        assert drawn < 300
        assert running.client().completions.create(model="tiny", prompt="b", max_tokens=2).choices


def test_a_client_that_waits_no_longer_frees_its_slot_and_its_place(slow: Model) -> None:
    with Running(slow, slots=1) as running:
        impatient = running.client(timeout=0.5)
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(impatient.completions.create, **LONG) for _ in range(3)]
            until(lambda: running.counts() == (1, 2))
            for each in asked:
                assert isinstance(each.exception(), openai.APITimeoutError)
        until(lambda: running.counts() == (0, 0), 3)
        assert running.engine.drawn_tokens < 300


def test_a_full_queue_says_when_to_come_again(slow: Model) -> None:
    with Running(slow, slots=1, most_waiting=2) as running:
        some = {**LONG, "max_tokens": 200, "stream": True}
        streams: list[Any] = [running.client().completions.create(**some) for _ in range(3)]
        until(lambda: running.counts() == (1, 2))
        body = {**LONG, "max_tokens": 1}
        status, headers, found = running.ask("POST", "/v1/completions", body)
        assert (status, headers["retry-after"], found["error"]["code"]) == (429, "1", "queue_full")
        for stream in streams[:2]:
            stream.close()
        patient = running.client(max_retries=5)
        assert patient.completions.create(**body).choices
        streams[2].close()


# -- the end ------------------------------------------------------------------------------------------------------------


def test_what_is_in_flight_may_finish(slow: Model) -> None:
    with Running(slow, slots=2) as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.client().completions.create, **{**LONG, "max_tokens": 60})
        until(lambda: running.counts() == (1, 0))
        running.service.stop()
        done: Any = asked.result()
        assert done.usage.completion_tokens == 60
        running.thread.join(20)
        assert running.service.cut_off == 0
        with pytest.raises(openai.APIConnectionError):
            running.client().models.list()


def test_what_does_not_finish_in_time_is_told_so(slow: Model) -> None:
    with Running(slow, slots=1, grace_s=0.3) as running, ThreadPoolExecutor(2) as pool:
        stream = running.client().completions.create(**LONG, stream=True)
        next(iter(stream))
        asked = pool.submit(running.client().completions.create, **LONG)
        until(lambda: running.counts() == (1, 1))
        running.service.stop()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        error = asked.exception()
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 503
        running.thread.join(20)
        assert running.service.cut_off == 2


def test_a_long_prompt_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_chat_model(max_position_embeddings=8192)
    hidden = made.decoder.hidden

    def waiting(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)  # a tile of the prompt, of which it has 30
        return hidden(*args, **kwargs)

    with Running(made, slots=1, grace_s=0.3) as running, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(made.decoder, "hidden", waiting)
        asked = pool.submit(running.client().completions.create, **{**LONG, "prompt": "a" * 7600})
        until(lambda: running.counts() == (1, 0))
        running.service.stop()
        assert isinstance(asked.exception(), openai.InternalServerError)
        begin = time.monotonic()
        running.thread.join(20)
        assert time.monotonic() - begin < 4
    assert running.told == [], "its end is no failure of the engine"


def test_a_defect_is_told_here_and_not_to_the_client(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(model) as running:
        monkeypatch.setattr(running.service.served, "prompts", lambda _prompt: 1 // 0)
        status, _, found = running.ask("POST", "/v1/completions", {"prompt": "a"})
        assert (status, found["error"]["type"]) == (500, "server_error")
        assert "ZeroDivision" not in json.dumps(found)
        assert running.told == ["a request failed: ZeroDivisionError: integer division or modulo by zero"]


def test_threads_end_with_the_server(model: Model) -> None:
    with Running(model):
        assert [t.name for t in threading.enumerate()].count("ojak-engine") >= 1
        before = sum(t.name == "ojak-engine" for t in threading.enumerate())
    assert sum(t.name == "ojak-engine" for t in threading.enumerate()) == before - 1


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_model().save(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(saved: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_SERVE_KEY", "sk-1")
    words = f"serve {saved} --port 0 --max-concurrent 2 --json".split()
    command = [sys.executable, "-m", "ojak", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = json.loads(line or json.dumps({"stderr": process.stderr and process.stderr.read()}))
        assert ready["ready"] is ready["chat"] is ready["key_required"] is True
        assert (ready["pid"], ready["max_concurrent"]) == (process.pid, 2)
        client = openai.OpenAI(base_url=ready["url"], api_key="sk-1", max_retries=0)
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        done = client.chat.completions.create(model=ready["model"], messages=messages, max_tokens=3)
        assert done.usage is not None
        assert done.usage.completion_tokens <= 3
        process.send_signal(number)
        said, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert said == ""
    assert "stopped" in told
    assert "Traceback" not in told


def test_a_port_that_is_taken(saved: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", str(saved), "--port", str(port)])
    assert result.exit_code == 2
    assert f"port {port}" in result.stderr
    assert "--port" in result.stderr


def test_only_this_machine_is_served() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "evil.com", ""):
        with pytest.raises(UsageError, match=r"127\.0\.0\.1 only"):
            check_host(host)
    check_host("127.0.0.1")
    assert CliRunner().invoke(app, ["serve", "x", "--host", "0.0.0.0"]).exit_code == 2
    with bind(0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_web()
    monkeypatch.setattr(serve_package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"starlette, uvicorn(?s:.*)ojak\[web\]"):
        check_web()


def test_what_cannot_be_served(folder: Path) -> None:
    for name in ("scripted", "no-such-model"):
        result = CliRunner().invoke(app, ["serve", name, "--port", "0"])
        assert result.exit_code == 2, result.stderr
    result = CliRunner().invoke(app, ["serve", "scripted", "--port", "0"], env={"OJAK_SERVE_KEY": ""})
    assert "OJAK_SERVE_KEY" in result.stderr
