"""Files of other programs: packed ones, within limits; LIMA, self-instruct, preferences; foreign tables."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ojak import _compressed
from ojak.errors import InputRefused
from ojak.formats import detect, export, load
from ojak.records import Conversation, Message, Preference

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "instruct"


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def rows(count: int = 3) -> list[dict[str, Any]]:
    return [{"instruction": f"Name {i}.", "input": "", "output": f"{i}!"} for i in range(count)]


def as_lines(found: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in found)


def turn(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def loaded(path: Path) -> list[Any]:
    return list(load(path))


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
@pytest.mark.parametrize("form", [as_lines, lambda found: json.dumps(found).encode()], ids=["lines", "array"])
def test_packed_files_hold_what_plain_ones_hold(
    tmp_path: Path, pack: Callable[[bytes], bytes], form: Callable[[list[Any]], bytes]
) -> None:
    plain, packed = tmp_path / "x" / "rows.json", tmp_path / "y" / "rows.json"
    for path, data in ((plain, form(rows())), (packed, pack(form(rows())))):
        path.parent.mkdir()
        path.write_bytes(data)
    assert detect(packed) == "alpaca"
    assert loaded(packed) == loaded(plain)  # ids, too: they come from the file's name
    assert len(loaded(packed)) == 3


def test_several_packed_pieces_in_one_file_are_read(tmp_path: Path) -> None:
    for pack in (gzip.compress, zstd):
        (path := tmp_path / pack.__name__).write_bytes(pack(as_lines(rows(2))) + pack(as_lines(rows(3))))
        assert len(loaded(path)) == 5


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_packed_file_that_was_cut_off_or_changed_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(
        as_lines([{"text": "".join(chr(33 + (i * i * j) % 90) for i in range(200))} for j in range(300)])
    )
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputRefused, match="cannot be unpacked"):
        loaded(path)
    middle = len(whole) // 2
    path.write_bytes(
        whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
    )
    with pytest.raises(InputRefused):
        loaded(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_goes_off(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compressed, "FREE_BYTES", 2**20)
    bomb = tmp_path / "bomb"
    bomb.write_bytes(pack(b'{"text": "' + b"a" * 2**26 + b'"}\n'))
    tracemalloc.start()
    try:
        with pytest.raises(InputRefused, match="unpacks to more than"):
            loaded(bomb)
        assert tracemalloc.get_traced_memory()[1] < 48 * 2**20
    finally:
        tracemalloc.stop()


def test_a_ratio_of_real_text_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compressed, "FREE_BYTES", 1000)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines(rows(5000))))
    assert len(loaded(path)) == 5000


def test_earlier_rounds_stand_before_the_question(tmp_path: Path) -> None:
    path = tmp_path / "lima.json"
    history = [["Name a fruit.", "Pear."], ["Another?", "Plum."]]
    given = [{"instruction": "A red one?", "input": "", "output": "Apple.", "history": history}, rows(1)[0]]
    given[1]["history"] = []
    path.write_text(json.dumps(given), "utf-8")
    first, second = loaded(path)
    assert first.messages == [
        turn("user", "Name a fruit."), turn("assistant", "Pear."), turn("user", "Another?"),
        turn("assistant", "Plum."), turn("user", "A red one?"), turn("assistant", "Apple."),
    ]  # fmt: skip
    assert second.messages == [turn("user", "Name 0."), turn("assistant", "0!")]
    assert first.meta == second.meta == {}


@pytest.mark.parametrize("history", [["x"], [["x"]], [["x", 1]], "x", [["a", "b", "c"]]])
def test_a_history_of_another_form_is_named(tmp_path: Path, history: Any) -> None:
    (path := tmp_path / "x.jsonl").write_bytes(as_lines([{**rows(1)[0], "history": history}]))
    with pytest.raises(InputRefused, match="line 1") as caught:
        loaded(path)
    assert "history" in str(caught.value)


def test_every_instance_of_a_task_is_a_conversation(tmp_path: Path) -> None:
    instances = [{"input": "", "output": "Pear."}, {"input": "red", "output": "Apple."}]
    task = {"id": "seed_7", "name": "fruit", "instruction": "Name a fruit.", "instances": instances}
    (path := tmp_path / "seeds.jsonl").write_bytes(as_lines([task]))
    first, second = loaded(path)
    assert (first.id, second.id) == ("seed_7", "seed_7-1")
    assert first.messages == [turn("user", "Name a fruit."), turn("assistant", "Pear.")]
    assert second.messages[0] == turn("user", "Name a fruit.\nred")
    assert first.meta == {"extra": {"name": "fruit"}}
    path.write_bytes(as_lines([{**task, "instances": ["x"]}]))
    with pytest.raises(InputRefused, match="line 1"):
        loaded(path)


@pytest.mark.parametrize("listed", [True, False])
def test_sharegpt_preferences(tmp_path: Path, listed: bool) -> None:
    answers = {name: {"from": "gpt", "value": name} for name in ("chosen", "rejected")}
    row = {"id": "a", "conversations": [{"from": "human", "value": "Hi"}], **answers}
    if listed:
        row |= {name: [answer] for name, answer in answers.items()}
    (path := tmp_path / "x.jsonl").write_bytes(as_lines([row]))
    expected = Preference(
        "a", [turn("user", "Hi")], [turn("assistant", "chosen")], [turn("assistant", "rejected")]
    )
    assert loaded(path) == [expected]


def test_foreign_tables_are_read_by_their_columns(tmp_path: Path) -> None:
    alpaca, sharegpt, own = tmp_path / "a.parquet", tmp_path / "s.parquet", tmp_path / "o.parquet"
    pq.write_table(pa.Table.from_pylist([{**rows(1)[0], "difficulty": "easy"}]), alpaca)
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    pq.write_table(
        pa.Table.from_pylist([{"conversations": turns, "instruction": "Hi", "response": "Ho"}]), sharegpt
    )
    assert loaded(alpaca)[0].messages == [turn("user", "Name 0."), turn("assistant", "0!")]
    assert loaded(alpaca)[0].meta == {"extra": {"difficulty": "easy"}}
    assert loaded(sharegpt)[0].messages == [turn("user", "Hi"), turn("assistant", "Ho")]
    export(alpaca, "parquet", own)
    assert loaded(own) == loaded(alpaca)
    pq.write_table(pa.Table.from_pylist([{"nothing": 1}]), (odd := tmp_path / "odd.parquet"))
    with pytest.raises(InputRefused, match="row 0"):
        loaded(odd)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("alpaca_cleaned_1000.json.gz", 1000, Conversation),
        ("lima_1029.json.gz", 1029, Conversation),
        ("self_instruct_seed_tasks_175.jsonl", 175, Conversation),
        ("llamafactory_dpo_en_demo.json.gz", 300, Preference),
    ],
)
def test_published_files(name: str, count: int, kind: type) -> None:
    found = loaded(DATA / name)
    assert (len(found), {type(record) for record in found}) == (count, {kind})
    assert len({record.id for record in found}) == count
    if name.startswith("lima"):
        assert sum(len(record.messages) > 2 for record in found) == 29
