"""A full disk, at every writer: exit code 6, the earlier state whole, and nothing half-written left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from full_disk import fail_at

import ojak.errors
from ojak import _files
from ojak.artifact import Artifact, publish, verify, write_atomic
from ojak.errors import ResourceExhausted
from ojak.formats import FORMATS, Format, export
from ojak.ledger import Entry, Ledger, request_key
from ojak.records import Conversation, Message, Rejected

# Each writer runs under a limit on the size of a file, again and again with more room, until it succeeds.
LIMITED = """
import resource, sys
from pathlib import Path
from ojak.artifact import publish, verify, write_atomic
from ojak.errors import ResourceExhausted
from ojak.formats import export
from ojak.ledger import Entry, Ledger, request_key
from ojak.records import Conversation, Message, Rejected

folder, writer = Path(sys.argv[1]), sys.argv[2]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

def rows(number):
    for row in range(number):
        text = " ".join(str(row * k * k % 99991) for k in range(40))
        turns = [Message(role="user", content=text), Message(role="assistant", content="a")]
        yield Conversation(f"r-{row}", turns, "run")

def make(number, **more):
    turned_away = [Rejected("x", "too_short", "magpie", "hm")]
    return publish(folder / "a", kind="magpie", records=rows(number), rejected=turned_away, config={}, **more)

def put_until_full():
    with Ledger(folder / "l.sqlite") as ledger:
        for row in range(300):
            ledger.put(Entry(request_key(row=row), row, "instruction", "ok", 64, "stop", "x" * 500, 3, 7))

def same(earlier):
    assert verify(folder / "a") == earlier
    assert {item.name for item in (folder / "a").iterdir()} <= {
        "data", "rejected", "README.md", "manifest.json", ".lock", ".lock.json"
    }

def whole_ledger(earlier):
    with Ledger(folder / "l.sqlite") as ledger:
        kept = [entry.row for entry in ledger.entries()]
    assert kept == list(range(len(kept)))

def old_file(earlier):
    assert (folder / "run.json").read_bytes() == b"old"
    assert {item.name for item in folder.iterdir()} == {"a", "run.json"}

def no_export(earlier):
    assert {item.name for item in folder.iterdir()} == {"a"}

first = make(5)
if writer == "write_atomic":
    (folder / "run.json").write_bytes(b"old")
act, check = {
    "publish": (lambda: make(400, replace=True), same),
    "ledger": (put_until_full, whole_ledger),
    "write_atomic": (lambda: write_atomic(folder / "run.json", b"new" * 5000), old_file),
}.get(writer, (lambda: export(folder / "a", writer, folder / "out"), no_export))

failed = 0
for limit in (0, 100, 700, 2_000, 5_000, 9_000, 20_000, 40_000, 10**9):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        act()
        succeeded = True
    except ResourceExhausted as error:
        succeeded = False
        message = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if succeeded:
        break
    failed += 1
    assert "no space left" in message and "fix: make room" in message, message
    check(first)
print("failed", failed, "times, then", "succeeded" if succeeded else "did not")
"""


@pytest.mark.parametrize("writer", ["publish", "ledger", "write_atomic", *FORMATS])
def test_a_limit_on_file_sizes_is_reported_and_harmless(tmp_path: Path, writer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), writer],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(ojak.errors.__file__).parents[1])},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[1]) >= 2
    assert words[-1] == "succeeded"


def rows(number: int) -> Iterator[Conversation]:
    for row in range(number):
        text = " ".join(str(row * k * k % 99991) for k in range(40))
        turns = [Message(role="user", content=text), Message(role="assistant", content="a")]
        yield Conversation(f"r-{row}", turns, "run")


def make(out: Path, number: int, **more: Any) -> Artifact:
    turned_away = [Rejected("x", "too_short", "magpie", "hm")]
    return publish(out, kind="magpie", records=rows(number), rejected=turned_away, config={}, **more)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB of its own; only root can make one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_is_reported_and_harmless(small_disk: Path) -> None:
    before = make(small_disk / "a", 5)
    with pytest.raises(ResourceExhausted, match="no space left") as caught:
        make(small_disk / "a", 20_000, replace=True)
    assert caught.value.exit_code == 6
    assert verify(small_disk / "a") == before
    write_atomic(small_disk / "run.json", b"old")
    with pytest.raises(ResourceExhausted):
        write_atomic(small_disk / "run.json", b"x" * 2**20)
    assert (small_disk / "run.json").read_bytes() == b"old"
    make(small_disk / "a", 100, replace=True)
    for fmt in FORMATS:
        export(small_disk / "a", cast("Format", fmt), small_disk / fmt)


def test_a_ledger_on_a_full_disk_keeps_what_it_said_it_had(small_disk: Path) -> None:
    done = -1
    with (
        Ledger(small_disk / "l.sqlite") as ledger,
        pytest.raises(ResourceExhausted, match="what was finished is kept"),
    ):
        for row in range(2000):
            ledger.put(Entry(request_key(row=row), row, "instruction", "ok", 64, "stop", "x" * 500, 3, 7))
            done = row
    with Ledger(small_disk / "l.sqlite") as ledger:
        assert [entry.row for entry in ledger.entries()] == list(range(done + 1))
    assert done > 20


def test_no_room_at_any_step_of_publish_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, harmed, steps = make(tmp_path, 5), 0, 0
    while True:
        with monkeypatch.context() as patch:
            done = fail_at(patch, steps)
            try:
                before = make(tmp_path, 6, replace=True)
            except ResourceExhausted:
                patch.undo()
                harmed += 1
                left = {item.name for item in tmp_path.iterdir()} - {".lock"}
                if ".previous" in left:  # only the last sync failed
                    before = Artifact.open(tmp_path)
                    left.remove(".previous")
                assert verify(tmp_path) == before, done
                assert left == {"data", "rejected", "README.md", "manifest.json"}, done
        if len(done) <= steps:  # the fault was never reached: every step had its turn
            break
        steps += 1
    assert harmed > 20
    assert verify(tmp_path).counts["accepted"] == 6


def test_other_errors_of_the_disk_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), _files.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")
