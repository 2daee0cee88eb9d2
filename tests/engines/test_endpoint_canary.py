"""A key in the environment stands in no byte of what ojak writes or says, whatever a server does with it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faulty_server import MODEL, Fault, FaultyServer, Tag, altered, forever, status, write_tokenizer
from ojak.engines.endpoint import EndpointEngine
from ojak.engines.endpoint_retry import Policy
from ojak.errors import OjakError
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import config

CANARY = "sk-canary-7f3a9c2e51d8"
USERINFO = "canary-userinfo-4411"


def command(
    server: FaultyServer, out: Path, tokenizer: Path, *more: str
) -> subprocess.CompletedProcess[bytes]:
    url = server.url.replace("http://", f"http://me:{USERINFO}@") + f"/v1?key={USERINFO}"
    arguments = ["synthesize", "magpie", "--model", MODEL, "--rows", "6", "--out", str(out)]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "ojak",
            *arguments,
            "--engine",
            "endpoint",
            "--url",
            url,
            "--tokenizer",
            str(tokenizer),
            *more,
        ],
        capture_output=True,
        timeout=120,
        check=False,
        env={
            **os.environ,
            "OJAK_ENDPOINT_KEY": CANARY,
            "OJAK_DEBUG": "1",
            "OJAK_HOME": str(out.parent / "home"),
        },
    )


def assert_clean(folder: Path, *said: bytes) -> None:
    written = [path for path in folder.rglob("*") if path.is_file()]
    for content in (
        *said,
        *(path.read_bytes() for path in written),
        *(str(path).encode() for path in written),
    ):
        assert CANARY.encode() not in content
        assert USERINFO.encode() not in content


def echoing(handler: object) -> None:
    """An answer that repeats the key in every field, once spelled with escapes."""
    key = handler.sent_key()  # type: ignore[attr-defined]
    found = handler.completion()  # type: ignore[attr-defined]
    text = f"What does the key {key} open, and where is it from?"
    found["choices"][0] |= {"text": text, "finish_reason": key}
    escaped = json.dumps(found | {"model": key, key: key}).replace("canary", "\\u0063anary")
    handler.send(200, escaped.encode(), {"Content-Type": "application/json", "X-Key": key})  # type: ignore[attr-defined]


def test_commands_show_and_write_no_key(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t")
    faults: dict[Tag, list[Fault]] = {(0, "instruction"): [echoing], (1, "instruction"): [status(500)]}
    bad = {(2, "instruction"): forever(status(400)), (3, "instruction"): [altered(text=None)]}
    out = tmp_path / "runs" / "d"
    out.parent.mkdir()
    with FaultyServer({**faults, **bad}, echo=True, key=CANARY) as server:
        done = command(server, out, tokenizer)
        plan = command(server, tmp_path / "runs" / "plan", tokenizer, "--dry-run")
    assert done.returncode == 3, done.stderr
    assert b"1 row failed for good" in done.stderr
    assert set(server.keys) == {CANARY}
    assert plan.returncode == 0
    with FaultyServer(key="another-key-entirely") as server:
        refused = command(server, tmp_path / "runs" / "e", tokenizer)
    assert refused.returncode == 5
    assert CANARY in server.keys
    gone = command(server, tmp_path / "runs" / "f", tokenizer)
    assert gone.returncode == 5
    words = [stream for run in (done, plan, refused, gone) for stream in (run.stdout, run.stderr)]
    assert b"401" in refused.stderr
    assert_clean(tmp_path / "runs", *words)


def test_logs_hold_no_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the logs of the HTTP library at its most talkative."""
    monkeypatch.setenv("OJAK_ENDPOINT_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    tokenizer = write_tokenizer(tmp_path / "t")
    policy = Policy(base_s=0.01, cap_s=0.05)
    with FaultyServer({(0, "instruction"): [status(500), echoing]}, key=CANARY, echo=True) as server:
        engine = EndpointEngine.open(MODEL, server.url, tokenizer=str(tokenizer), policy=policy)
        synthesize_magpie(config(tmp_path / "d", 4, model=MODEL), engine=engine)
        server.key = "another-key-entirely"
        with pytest.raises(OjakError) as caught:
            synthesize_magpie(config(tmp_path / "d", 8, model=MODEL), engine=engine)
    assert CANARY in server.keys
    assert_clean(
        tmp_path / "d", caplog.text.encode(), repr(caught.value).encode(), str(engine.stats()).encode()
    )
    chain: BaseException | None = caught.value
    while chain:
        assert CANARY not in f"{chain!r} {vars(chain)}"
        chain = chain.__cause__ or chain.__context__
