"""The ledger: finished requests are found again, whatever happens to the process that stored them."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ojak.ledger
from ojak.errors import InputRefused, Locked, UsageError, VerificationFailed
from ojak.ledger import Entry, Ledger, request_key


def entry(row: int, kind: str = "instruction", **more: Any) -> Entry:
    values: dict[str, Any] = {
        "key": request_key(row=row, kind=kind),
        "row": row,
        "kind": kind,
        "state": "ok",
        "max_tokens": 64,
        "finish_reason": "stop",
        "text": f"text {row}",
        "token_count": 3,
        "prompt_tokens": 7,
        "payload": {"seed": 2**64 - 1, "sampling": {"temperature": 0.7}, "logprobs": [-0.5, -1.25]},
    }
    return Entry(**{**values, **more})


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    stored = [
        entry(0, text="NUL \0, 한글, \U0001f426 and\r\nlines"),
        entry(1, state="failed", finish_reason=None, text=""),
    ]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put(stored[0])
        ledger.put(stored[1])
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert [ledger.get(item.key, 64) for item in stored] == stored
        assert ledger.get(request_key(row=2), 64) is None


@pytest.mark.parametrize(
    ("finish_reason", "stored_cap", "asked_cap", "found"),
    [("length", 64, 64, True), ("length", 64, 65, False), ("length", 64, 32, True), ("stop", 64, 512, True)],
)
def test_an_answer_cut_by_a_smaller_cap_counts_as_absent(
    tmp_path: Path, finish_reason: str, stored_cap: int, asked_cap: int, found: bool
) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put(entry(0, finish_reason=finish_reason, max_tokens=stored_cap))
        assert (ledger.get(entry(0).key, asked_cap) is not None) is found


def test_a_reopened_request_is_replaced_not_doubled(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put(entry(0, finish_reason="length"))
        longer = entry(0, max_tokens=512, text="longer", token_count=100)
        ledger.put(longer)
        assert list(ledger.entries()) == [longer]


def test_entries_come_in_the_order_of_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for row, kind in itertools.product((7, 2, 11), ("response", "instruction")):
            ledger.put(entry(row, kind))
        ledger.put(entry(3, "response", state="failed"))
        assert [item.row for item in ledger.entries("response")] == [2, 3, 7, 11]
        assert [item.row for item in ledger.entries()] == [2, 2, 3, 7, 7, 11, 11]
        assert ledger.counts() == {"instruction": {"ok": 3, "failed": 0}, "response": {"ok": 3, "failed": 1}}


def test_finished_requests_are_counted_without_those_that_a_larger_cap_reopens(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put(entry(0, token_count=10))
        ledger.put(entry(1, token_count=20, finish_reason="length", max_tokens=20))
        ledger.put(entry(2, token_count=90))
        assert ledger.finished("instruction", rows=2, max_tokens=20) == (2, 15.0)
        assert ledger.finished("instruction", rows=2, max_tokens=21) == (1, 10.0)
        assert ledger.finished("response", rows=2, max_tokens=21) == (0, 0.0)


def test_a_reader_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a b?#.sqlite"  # an address has to escape these
    with Ledger(path) as ledger:
        ledger.put(entry(0))
        ledger.set_meta("settings", {"seed": 1})
        with Ledger(path, read_only=True) as reader:
            assert len(list(reader.entries())) == 1
    before = path.read_bytes()
    with Ledger(path, read_only=True) as reader:
        assert reader.get_meta("settings") == {"seed": 1}
        with pytest.raises(UsageError, match="cannot open"):
            reader.put(entry(1))
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_a_reader_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        Ledger(tmp_path / "l.sqlite", read_only=True)
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(VerificationFailed, match="not a ledger"):
        Ledger(tmp_path / "empty.sqlite", read_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.sqlite"]


def test_damaged_settings_are_told(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.set_meta("settings", {"seed": 1})
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '{'")
    db.close()
    with Ledger(path) as ledger, pytest.raises(VerificationFailed, match="damaged"):
        ledger.get_meta("settings")


@pytest.mark.parametrize(
    "more", [{"text": "\udcff"}, {"payload": {"error": "\ud800"}}, {"payload": {"x": object()}}]
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger, pytest.raises(InputRefused, match="cannot be stored"):
        ledger.put(entry(0, **more))


def test_time_and_tokens_add_up_over_processes(tmp_path: Path) -> None:
    for run in range(3):
        with Ledger(tmp_path / "l.sqlite") as ledger:
            ledger.add_run(1.5, 100 + run)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.totals() == (4.5, 303)
    with Ledger(tmp_path / "new.sqlite") as ledger:
        assert ledger.totals() == (0.0, 0)


def test_meta_keeps_json_values(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get_meta("fingerprint") is None
        for value in ({"seed": 1, "grid": [[1.0, 0.9]]}, "text", None):
            ledger.set_meta("fingerprint", value)
            assert ledger.get_meta("fingerprint") == value


parts = st.dictionaries(
    st.text(min_size=1), st.none() | st.integers(0, 2**63) | st.text() | st.floats(allow_nan=False)
)


@given(parts)
def test_a_key_depends_on_the_values_and_not_on_their_order(everything: dict[str, Any]) -> None:
    everything.pop("max_tokens", None)
    key = request_key(**everything)
    assert key == request_key(**dict(reversed(everything.items())))
    assert len(key) == 64
    for name in everything:
        assert request_key(**{**everything, name: ["another"]}) != key


def test_the_cap_is_no_part_of_a_key() -> None:
    with pytest.raises(ValueError, match="cap"):
        request_key(prompt="x", max_tokens=3)
    with pytest.raises(InputRefused, match="Unicode"):
        request_key(prompt="\udcff")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"this was never a database" * 100)
    with pytest.raises(VerificationFailed, match=r"l\.sqlite is damaged"):
        Ledger(path)


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        for row in range(200):
            ledger.put(entry(row, text="x" * 500))
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    with Ledger(path) as ledger, pytest.raises(VerificationFailed, match="move it away"):
        list(ledger.entries())


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE notes (text TEXT)")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(VerificationFailed, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(InputRefused, match="newer ojak"):
        Ledger(path)


def test_a_busy_ledger_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ojak.ledger, "BUSY_TIMEOUT_MS", 20)
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Locked, match="busy"):
            ledger.put(entry(0))
        other.execute("ROLLBACK")
        other.close()
        ledger.put(entry(0))
        assert ledger.get(entry(0).key, 64) is not None


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        Ledger(tmp_path / "none" / "l.sqlite")


WRITER = """
import sys
from ojak.ledger import Entry, Ledger, request_key
with Ledger(sys.argv[1]) as ledger:
    for row in range(int(sys.argv[2]), 10**6):
        ledger.put(Entry(request_key(row=row), row, "instruction", "ok", 64, "stop", "x" * 300, 3, 7))
        sys.stdout.write(f"{row}\\n")
        sys.stdout.flush()
"""


def test_a_killed_process_loses_nothing_that_was_put(tmp_path: Path) -> None:
    path, start = tmp_path / "l.sqlite", 0
    for kill in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(start)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(ojak.ledger.__file__).parents[1])},
        )
        assert child.stdout is not None
        for _ in range(50 + 37 * kill):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        told = child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        last = int(told[-1]) if told and told[-1].isdigit() else start + 49 + 37 * kill
        with Ledger(path) as ledger:
            rows = [item.row for item in ledger.entries()]
        assert rows == list(range(len(rows)))
        assert len(rows) >= last
        start = len(rows)


def test_an_entry_is_what_its_columns_say(tmp_path: Path) -> None:
    """A column that is added to the entry, but not to the file, is found here."""
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put(entry(0, seconds=0.25))
        found = ledger.get(entry(0).key, 64)
    assert found is not None
    raw = sqlite3.connect(tmp_path / "l.sqlite")
    columns = [row[1] for row in raw.execute("PRAGMA table_info(requests)")]
    raw.close()
    assert columns == [item.name for item in dataclasses.fields(Entry)]
