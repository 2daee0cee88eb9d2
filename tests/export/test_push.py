"""A push checks, searches, and then writes what it said: against a hub on loopback, never a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hub_server import Hub, start
from huggingface_hub import HfApi
from typer.testing import CliRunner, Result

from ojak.artifact import Artifact, publish, verify
from ojak.cli.app import app
from ojak.errors import EngineUnavailable, InputRefused, UsageError, VerificationFailed
from ojak.export.push import plan_push, push
from ojak.records import Conversation, Message, Rejected

SECRET, MAIL, TOKEN = "sk-planted-secret-0123456789", "someone@example.org", "hf_canaryCanaryCanaryCanary"


def finder(pattern: str, kind: str) -> Callable[[str], list[SimpleNamespace]]:
    return lambda text: [SimpleNamespace(kind=kind) for _ in re.finditer(pattern, text)]


@pytest.fixture(autouse=True)
def finders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detectors as two plain patterns: what they find is tested where they live."""
    for name, function, pattern, kind in (
        ("secrets", "find_secrets", SECRET, "api_key"),
        ("privacy", "find_personal_data", r"\S+@\S+|\b\d{9,}\b", "email"),
    ):
        module = ModuleType(f"ojak.rules.{name}")
        setattr(module, function, finder(pattern, kind))
        monkeypatch.setitem(sys.modules, f"ojak.rules.{name}", module)


@pytest.fixture
def hub() -> Iterator[Hub]:
    found, server = start()
    yield found
    server.shutdown()
    server.server_close()


def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


def made(path: Path, rows: int = 3, ask: str = "Why?", **more: Any) -> Artifact:
    turns = [Message(role="user", content=ask), Message(role="assistant", content="Because.")]
    kept = [Conversation(f"r{i}", turns, meta={"seed": 1234567890123}) for i in range(rows)]
    settings: dict[str, Any] = {"config": {}, "rejected": [Rejected("x", "too_short", "magpie", "and")]}
    return publish(path, kind="magpie", records=kept, **{**settings, **more})


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_what_arrives_is_the_artifact_and_nothing_beside_it(tmp_path: Path, hub: Hub) -> None:
    artifact = made(tmp_path / "d")
    (tmp_path / "d" / "ledger.sqlite").write_text("not part of it", "utf-8")
    done = push(plan_push(tmp_path / "d", "user/data"), api=api(hub))
    assert done.url == f"{hub.url}/datasets/user/data" and done.commit == "1" * 40
    assert hub.repos["user/data"]["private"] is True
    for name, data in hub.files("user/data").items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    assert verify(tmp_path / "back").manifest_sha256 == artifact.manifest_sha256
    names = {entry["path"] for entry in artifact.files} | {"manifest.json"}
    assert set(hub.files("user/data")) == names
    assert {token for _, _, token in hub.asked} == {f"Bearer {TOKEN}"}


def test_public_only_when_asked(tmp_path: Path, hub: Hub) -> None:
    made(tmp_path / "d")
    push(plan_push(tmp_path / "d", "user/data", private=False), api=api(hub))
    assert hub.repos["user/data"]["private"] is False
    before = len(hub.asked)
    with pytest.raises(UsageError, match="open to all"):
        push(plan_push(tmp_path / "d", "user/data"), api=api(hub))
    assert all(command == "GET" for command, _, _ in hub.asked[before:])  # nothing was written


def test_shards_of_an_earlier_version_go_and_other_files_stay(tmp_path: Path, hub: Hub) -> None:
    old = {
        "data/train-00001-of-00002.parquet": b"x",
        "rejected/part-00000-of-00003.parquet": b"x",
        "LICENSE": b"mine",
    }
    hub.repos["user/data"] = {"private": True, "files": dict(old)}
    made(tmp_path / "d")
    done = push(plan_push(tmp_path / "d", "user/data"), api=api(hub))
    assert set(done.removed) == set(old) - {"LICENSE"}
    assert hub.files("user/data")["LICENSE"] == b"mine"
    assert not set(done.removed) & set(hub.files("user/data"))


@pytest.mark.parametrize(
    "settings",
    [
        {"ask": f"My key is {SECRET}."},
        {"rejected": [Rejected("x", "too_short", "magpie", SECRET)]},
        {"config": {"system": SECRET}},
        {"stats": {"pre_query": SECRET}},
    ],
    ids=["row", "rejected", "config", "stats"],
)
def test_a_secret_anywhere_keeps_everything_here(tmp_path: Path, settings: dict[str, Any]) -> None:
    made(tmp_path / "d", **settings)
    with pytest.raises(InputRefused, match="secret") as caught:
        plan_push(tmp_path / "d", "user/data")
    assert SECRET not in str(caught.value) and "api_key" in str(caught.value)


def test_a_change_before_or_after_the_check_is_seen(tmp_path: Path, hub: Hub) -> None:
    shard = made(tmp_path / "d").path / "data/train-00000-of-00001.parquet"
    plan = plan_push(tmp_path / "d", "user/data")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationFailed):
        push(plan, api=api(hub))
    assert hub.files("user/data") == {}
    with pytest.raises(VerificationFailed):
        plan_push(tmp_path / "d", "user/data")


def test_personal_data_are_counted_in_what_was_written(tmp_path: Path) -> None:
    made(tmp_path / "d", ask=f"Write to {MAIL}.")
    assert plan_push(tmp_path / "d", "user/data").personal == {
        "email": 3
    }  # the seeds in meta are no numbers of people
    result = ojak("push", str(tmp_path / "d"), "user/data", "--dry-run")
    assert "3 rows hold what looks like personal data: email" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "repo", ["data", "a/b/c", "../x", "a/..", "", "a b/c", "a/b.git", "a/b--c", "-a/b", "a/b\n"]
)
def test_names_that_the_hub_does_not_take(tmp_path: Path, repo: str) -> None:
    made(tmp_path / "d")
    with pytest.raises(UsageError, match="no name"):
        plan_push(tmp_path / "d", repo)


@pytest.mark.parametrize(
    ("refuse", "error"),
    [
        ({"repos/create": 403}, UsageError),
        ({"repos/create": 401}, UsageError),
        ({"commit": 500}, EngineUnavailable),
        ({"validate-yaml": 400}, InputRefused),
    ],
)
def test_a_hub_that_says_no(tmp_path: Path, hub: Hub, refuse: dict[str, int], error: type[Exception]) -> None:
    made(tmp_path / "d")
    hub.refuse = refuse
    with pytest.raises(error) as caught:
        push(plan_push(tmp_path / "d", "user/data"), api=api(hub))
    assert TOKEN not in str(caught.value)


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    made(tmp_path / "d")
    with pytest.raises(EngineUnavailable):
        push(plan_push(tmp_path / "d", "user/data"), api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))


def test_a_dry_run_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*_: object) -> None:
        raise AssertionError("a dry run asked the network")

    made(tmp_path / "d", ask="Is \x1b[31mthis\x1b[0m \u202efine?", config={"system": "\x1b[2J\u202e"})
    monkeypatch.setattr(socket.socket, "connect", no_network)
    result = ojak("push", str(tmp_path / "d"), "user/data", "--dry-run")
    assert result.exit_code == 0, result.output
    for part in (
        "private data set user/data",
        "data/train-00000-of-00001.parquet",
        "manifest.json",
        "pretty_name",
    ):
        assert part in result.stdout
    assert "\x1b" not in result.output and "\u202e" not in result.output
    facts = json.loads(
        ojak("push", str(tmp_path / "d"), "user/data", "--dry-run", "--public", "--json").stdout
    )
    assert facts["private"] is False and len(facts["files"]) == 4 and facts["rows"] == 3
    assert facts["bytes"] == sum(file["bytes"] for file in facts["files"])


def test_the_command_takes_the_token_of_the_environment(tmp_path: Path, hub: Hub) -> None:
    """In a process of its own, as `huggingface_hub` reads its endpoint when it is imported."""
    made(tmp_path / "d")
    stand_in = (
        "import sys, types\nfor n, f in (('secrets', 'find_secrets'), ('privacy', 'find_personal_data')):\n"
    )
    stand_in += "    m = types.ModuleType(f'ojak.rules.{n}'); setattr(m, f, lambda t: []); sys.modules[m.__name__] = m\n"
    program = f"{stand_in}sys.argv = ['ojak', 'push', {str(tmp_path / 'd')!r}, 'user/data', '--json']\n"
    program += "from ojak.cli import main\nmain()"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment = {name: value for name, value in environment.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"{hub.url}/datasets/user/data"
    # The library asks by itself, once a day and without a token, what its callers are called.
    asked = {token for _, path, token in hub.asked if path != "/api/agent-harnesses"}
    assert asked == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert all(TOKEN.encode() not in data for data in hub.files("user/data").values())


def test_what_does_not_verify_or_is_no_artifact_ends_with_its_code(tmp_path: Path) -> None:
    shard = made(tmp_path / "d").path / "data/train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert ojak("push", str(tmp_path / "d"), "user/data", "--dry-run").exit_code == 7
    assert ojak("push", str(tmp_path / "nothing"), "user/data", "--dry-run").exit_code == 9
