"""Artifacts: what is published is there whole, verifies, and refuses every kind of damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import ojak._tables
from ojak import _swap
from ojak.artifact import PARTS, Artifact, TargetLock, publish, read, verify, write_atomic
from ojak.errors import InputRefused, Locked, TargetExists, UsageError, VerificationFailed
from ojak.records import Conversation, Document, Message, Rejected, record_id

REASONS = ("too_short", "repeats", "too_short")


def conversations(number: int, key: str = "run") -> Iterator[Conversation]:
    for row in range(number):
        turns = [Message(role="user", content=f"{row} + 1?"), Message(role="assistant", content=f"{row + 1}")]
        yield Conversation(record_id(key, row), turns, key, {"row": row, "edits": ["cut"] if row % 3 else []})


def turned_away() -> list[Rejected]:
    return [Rejected(record_id("run", 100 + i), reason, "magpie", "hm") for i, reason in enumerate(REASONS)]


def make(out: Path, number: int = 5, **more: Any) -> Artifact:
    options: dict[str, Any] = {"rejected": turned_away(), "config": {"seed": 1}, **more}
    return publish(out, kind="magpie", records=conversations(number), **options)


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()} - {".lock"}


def test_what_is_published_can_be_opened_verified_and_read(tmp_path: Path) -> None:
    out = tmp_path / "a"
    out.mkdir()
    (out / "ledger.sqlite").write_bytes(b"mine")
    made = make(out, counts={"failed": 2, "rows": 10}, stats={"seconds": 1.5})
    found = verify(out)
    assert found == made == Artifact.open(out) == made.verify()
    assert list(found.records()) == list(conversations(5)) == list(read(out))
    assert list(found.rejected()) == turned_away()
    assert found.counts == {
        "rows": 10,
        "accepted": 5,
        "rejected": {"repeats": 1, "too_short": 2},
        "failed": 2,
    }
    assert (found.kind, found.stats, found.splits) == ("magpie", {"seconds": 1.5}, {"train": 5})
    assert names(out) == {"ledger.sqlite", "data", "rejected", "README.md", "manifest.json"}
    assert names(out / "data") == {"train-00000-of-00001.parquet"}


def test_equal_records_make_equal_files(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a", 2000), make(tmp_path / "b", 2000)
    assert [entry["sha256"] for entry in one.files[:2]] == [entry["sha256"] for entry in two.files[:2]]


def test_many_characters_make_several_shards_of_one_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ojak._tables, "CHARACTERS_PER_GROUP", 100)
    monkeypatch.setattr(ojak._tables, "CHARACTERS_PER_SHARD", 300)
    artifact = make(tmp_path / "a", 20)
    shards = sorted((tmp_path / "a/data").iterdir())
    assert len(shards) > 2
    assert shards[1].name == f"train-00001-of-{len(shards):05d}.parquet"
    assert len({str(pq.read_schema(shard)) for shard in shards}) == 1
    assert list(artifact.verify().records()) == list(conversations(20))


def test_splits_are_read_by_name(tmp_path: Path) -> None:
    source = make(tmp_path / "a")
    rows = list(conversations(5))
    artifact = publish(
        tmp_path / "b", kind="split", splits={"train": rows[1:], "test": rows[:1]}, config={}, inputs=[source]
    )
    assert artifact.splits == {"train": 4, "test": 1}
    assert list(artifact.records("test")) == rows[:1]
    assert list(artifact.records()) == [*rows[1:], rows[0]]
    assert artifact.manifest["inputs"] == [{"path": "../a", "manifest_sha256": source.manifest_sha256}]
    with pytest.raises(UsageError, match="no split 'dev'"):
        artifact.records("dev")


def test_an_artifact_of_nothing_is_still_an_artifact(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "a", kind="magpie", records=[], config={})
    assert artifact.verify().counts == {"rows": 0, "accepted": 0, "rejected": {}, "failed": 0}
    assert list(artifact.records()) == []


def test_documents_have_their_own_columns(tmp_path: Path) -> None:
    documents = [Document("d-1", "one"), Document("d-2", "two", "f", {"k": "중"})]
    artifact = publish(tmp_path / "a", kind="corpus", records=documents, config={})
    assert list(artifact.records()) == documents


def test_an_artifact_is_replaced_only_when_asked(tmp_path: Path) -> None:
    before = make(tmp_path)
    with pytest.raises(TargetExists, match="exists already"):
        make(tmp_path, 6)
    assert verify(tmp_path) == before
    make(tmp_path, 6, rejected=(), replace=True)
    assert verify(tmp_path).counts["accepted"] == 6
    assert names(tmp_path) == {"data", "README.md", "manifest.json"}


@pytest.mark.parametrize("name", ["README.md", "data", "manifest.json"])
def test_files_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(TargetExists, match=name):
        make(tmp_path, replace=True)
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert names(tmp_path) == {name}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"counts": {"rows": 9}}, "add up"),
        ({"counts": {"accepted": 4}}, "add up"),
        ({"counts": {"rejected": {"too_short": 3}}}, "add up"),
        ({"counts": {"failed": 1, "rows": 8}}, "add up"),
    ],
)
def test_rows_in_are_kept_rejected_or_failed(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(VerificationFailed, match=said):
        make(tmp_path, **options)
    assert names(tmp_path) == set()


def test_records_that_cannot_be_stored_are_refused_by_name(tmp_path: Path) -> None:
    wrong: list[tuple[list[Any], str]] = [
        ([Document("d-1", "ok"), Document("d-1", "twice")], "two records have the id 'd-1'"),
        ([Document("d-1", "ok"), Document("d-2", "\ud800")], "record 'd-2'"),
        ([Document("d-1", "x", "", {"score": float("nan")})], "meta of record 'd-1'"),
        ([Document("d-1", "x"), *conversations(1)], "a Conversation among records of type Document"),
    ]
    for records, said in wrong:
        with pytest.raises(InputRefused, match=said):
            publish(tmp_path, kind="corpus", records=records, config={})
        assert names(tmp_path) == set()


def test_an_error_in_the_source_of_records_leaves_the_earlier_artifact(tmp_path: Path) -> None:
    before = make(tmp_path)

    def failing() -> Iterator[Conversation]:
        yield from conversations(3)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        publish(tmp_path, kind="magpie", records=failing(), config={}, replace=True)
    assert verify(tmp_path) == before
    assert names(tmp_path) == {"data", "rejected", "README.md", "manifest.json"}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("damage", [_flip, _cut, _link, os.unlink])
@pytest.mark.parametrize(
    "part", ["data/train-00000-of-00001.parquet", "rejected/part-00000-of-00001.parquet", "README.md"]
)
def test_every_damage_to_a_file_is_found_and_the_file_named(
    tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    make(tmp_path)
    damage(tmp_path / part)
    with pytest.raises(VerificationFailed, match=Path(part).name):
        verify(tmp_path)


@pytest.mark.parametrize(
    "name", ["data/train-00001-of-00002.parquet", "data/.hidden", "rejected/more.parquet"]
)
def test_an_added_data_file_is_found(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VerificationFailed, match=Path(name).name):
        verify(tmp_path)


@pytest.mark.parametrize("folder", ["data", "rejected"])
def test_a_linked_folder_is_found(tmp_path: Path, folder: str) -> None:
    make(tmp_path / "a")
    shutil.move(tmp_path / "a" / folder, tmp_path / "moved")
    (tmp_path / "a" / folder).symlink_to(tmp_path / "moved")
    for check in (verify, Artifact.open):
        with pytest.raises(VerificationFailed, match="link"):
            check(tmp_path / "a")


def _edit(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = out / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "data/../../secret", "data/x/train-00000-of-00001.parquet", "run.json", ""],
)
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    _edit(tmp_path, lambda manifest: manifest["files"][0].update(path=name))
    with pytest.raises(VerificationFailed, match="no name of an artifact's file"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["counts"].update(accepted=6),
        lambda m: m["counts"].update(rows=9),
        lambda m: m["counts"]["rejected"].update(too_short=1),
        lambda m: m["counts"].update(failed=-1),
        lambda m: m["counts"].update(failed=True),
        lambda m: m["files"][0].update(rows=6),
        lambda m: m["files"][0].pop("sha256"),
        lambda m: m["files"].pop(0),
        lambda m: m["files"].append(m["files"][0]),
        lambda m: m["files"].append("data"),
        lambda m: m.pop("counts"),
        lambda m: m.update(schema_version="1"),
        lambda m: m.update(schema_version=True),
        lambda m: m.update(schema_version=1.0),
        lambda m: m.update(kind=""),
        lambda m: m.update(kind="a\x1b[2J"),
        lambda m: m.pop("created"),
        lambda m: m.update(ojak_version=3),
        lambda m: m.update(inputs=[3]),
        lambda m: m.update(more={}),
        lambda m: m["counts"].update(rows=str(m["counts"]["rows"])),
        lambda m: m["counts"].update(rows=float(m["counts"]["rows"])),
        lambda m: m["counts"].update(more=3),
        lambda m: m["counts"].pop("failed"),
        lambda m: m["counts"].update(rejected=[]),
        lambda m: m["counts"]["rejected"].update(never=0),
        lambda m: m["files"][0].update(more=3),
        lambda m: m["files"][0].update(sha256="x"),
        lambda m: m["files"].remove(next(e for e in m["files"] if e["path"] == "README.md")),
    ],
)
def test_a_manifest_that_does_not_fit_is_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    make(tmp_path)
    _edit(tmp_path, change)
    with pytest.raises(VerificationFailed):
        verify(tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1}']
)
def test_a_damaged_manifest_is_found(tmp_path: Path, raw: bytes) -> None:
    make(tmp_path)
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(VerificationFailed, match=r"manifest\.json"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind": "', '"kind": "other", "kind": "'),
        ('"failed": 0', '"failed": 7, "failed": 0'),
        ('"stats": {}', '"stats": {"seconds": NaN}'),
        ('"stats": {}', '"stats": {"seconds": -Infinity}'),
    ],
)
def test_a_manifest_that_two_readers_could_read_differently_is_damaged(
    tmp_path: Path, old: str, new: str
) -> None:
    text = (make(tmp_path).path / "manifest.json").read_text("utf-8")
    (tmp_path / "manifest.json").write_text(text.replace(old, new), "utf-8")
    assert old in text
    with pytest.raises(VerificationFailed, match="is damaged"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("number", ["00000-of-00002", "00001-of-00001", "\u0660" * 5 + "-of-00001"])
def test_a_shard_that_is_missing_is_found(tmp_path: Path, number: str) -> None:
    make(tmp_path)
    name = f"data/train-{number}.parquet"
    (tmp_path / "data/train-00000-of-00001.parquet").rename(tmp_path / name)
    _edit(tmp_path, lambda manifest: manifest["files"][0].update(path=name))
    with pytest.raises(VerificationFailed, match=r"shards|no name of an artifact's file"):
        Artifact.open(tmp_path)


def test_an_artifact_without_a_table_is_found(tmp_path: Path) -> None:
    make(tmp_path)
    shutil.rmtree(tmp_path / "data")
    _edit(tmp_path, lambda manifest: manifest["files"].pop(0))
    _edit(
        tmp_path,
        lambda manifest: manifest["counts"].update(
            accepted=0, rows=sum(manifest["counts"]["rejected"].values())
        ),
    )
    with pytest.raises(VerificationFailed, match="lack a table of data"):
        verify(tmp_path)


def test_counts_of_ones_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no counts"):
        publish(tmp_path / "d", kind="test", records=[], config={}, counts={"odd": 1})
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_what_is_no_artifact_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no such folder"):
        verify(tmp_path / "none")
    with pytest.raises(InputRefused, match="written last"):
        verify(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputRefused, match="not a finished artifact"):
        Artifact.open(tmp_path / "file")
    make(tmp_path)
    _edit(tmp_path, lambda manifest: manifest.update(schema_version=2))
    with pytest.raises(InputRefused, match="newer ojak"):
        Artifact.open(tmp_path)


def test_read_tells_files_by_their_content(tmp_path: Path) -> None:
    artifact = make(tmp_path / "a")
    table = tmp_path / "table.txt"
    shutil.copy(artifact.path / artifact.files[0]["path"], table)
    lines = tmp_path / "lines.parquet"
    lines.write_text('{"id": "x", "messages": [{"role": "user", "content": "hi"}]}\n', encoding="utf-8")
    assert list(read(table)) == list(conversations(5))
    assert list(read(lines)) == [Conversation("x", [Message(role="user", content="hi")])]
    with pytest.raises(InputRefused, match="not there"):
        list(read(tmp_path / "none"))


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputRefused, match="cannot be read as records"):
        list(read(tmp_path / "x.parquet"))


def test_datasets_reads_an_artifact_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = list(conversations(6))
    make(tmp_path / "a", 6)
    publish(tmp_path / "b", kind="split", splits={"train": rows[2:], "test": rows[:2], "dev": []}, config={})
    (tmp_path / "a/ledger.sqlite").write_bytes(b"x")
    one = datasets.load_dataset(str(tmp_path / "a"), cache_dir=str(tmp_path / "cache"))
    two = datasets.load_dataset(str(tmp_path / "b"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in one.items()} == {"train": 6}
    assert {name: len(split) for name, split in two.items()} == {"train": 4, "test": 2}
    assert one["train"][1]["messages"] == rows[1].messages
    assert json.loads(one["train"][1]["meta"]) == rows[1].meta


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


def _die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Make the `step`-th change that a swap makes to the disk the last; the changes made are noted."""
    done: list[str] = []

    def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if len(done) == step:
                raise Killed
            done.append(function.__name__)
            return function(*args, **options)

        return call

    for module, name in [(os, "replace"), (os, "unlink"), (os, "mkdir"), (os, "fsync"), (shutil, "rmtree")]:
        monkeypatch.setattr(module, name, hooked(getattr(module, name)))
    return done


@pytest.mark.parametrize("earlier", [True, False])
def test_a_swap_killed_at_any_step_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """Each step dies once, and so does each step of the repair after it."""
    make(tmp_path / "new", 7)
    if earlier:
        make(tmp_path / "old", 5)
    for step in range(200):
        out, staging = tmp_path / f"out{step}", tmp_path / f"out{step}/.staging-x"
        if earlier:
            shutil.copytree(tmp_path / "old", out)
        shutil.copytree(tmp_path / "new", staging)
        with monkeypatch.context() as patch:
            _die_at(patch, step)
            try:
                _swap.swap_in(out, staging, PARTS)
                patch.undo()
                assert verify(out).counts["accepted"] == 7
                break
            except Killed:
                pass
        finished = (
            staging.exists()
            and not (staging / "manifest.json").exists()
            and not (out / ".swap.json").exists()
        )
        _repair_dying_at_each_step(out, monkeypatch)
        assert names(out) <= set(PARTS)
        if finished or earlier:
            assert verify(out).counts["accepted"] == (7 if finished else 5)
        else:
            assert names(out) == set()
    else:
        pytest.fail("the swap never came to its end")
    assert step > 10


def _repair_dying_at_each_step(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(100):
        with monkeypatch.context() as patch:
            _die_at(patch, step)
            try:
                _swap.undo(out, PARTS)
                return
            except Killed:
                continue
    pytest.fail("the repair never came to its end")


def test_the_next_publish_repairs_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 5)
    shutil.copytree(tmp_path, tmp_path / ".staging-x")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _die_at(patch, 9)
        _swap.swap_in(tmp_path, tmp_path / ".staging-x", PARTS)
    assert (tmp_path / ".swap.json").exists()
    with pytest.raises(InputRefused, match="interrupted"):
        Artifact.open(tmp_path)
    make(tmp_path, 6, replace=True)
    assert verify(tmp_path).counts["accepted"] == 6
    assert names(tmp_path) == set(PARTS)


def test_a_journal_cannot_name_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"x")
    (tmp_path / ".swap.json").write_text('{"names": ["mine.txt"], "had": []}', encoding="utf-8")
    make(tmp_path)
    assert (tmp_path / "mine.txt").read_bytes() == b"x"
    (tmp_path / ".swap.json").write_text("{", encoding="utf-8")
    with pytest.raises(VerificationFailed, match="damaged"):
        make(tmp_path, replace=True)


def test_the_lock_is_for_one_thread_and_may_be_taken_again_by_it(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with TargetLock(tmp_path):
                pass
        except Locked as error:
            refused.append(str(error))

    with TargetLock(tmp_path):
        make(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"process {os.getpid()} on" in refused[0]
    other()
    assert len(refused) == 1


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        write_atomic(tmp_path / "sub" / "run.json", data)
        assert (tmp_path / "sub/run.json").read_bytes() == data
    assert names(tmp_path / "sub") == {"run.json"}


def test_to_import_the_modules_for_files_loads_nothing_heavy() -> None:
    heavy = "{'pyarrow', 'filelock', 'torch'}"
    code = f"import sys, ojak.artifact, ojak.formats, ojak.ledger; print(sorted({heavy} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(Path(_swap.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
