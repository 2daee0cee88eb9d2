"""Formats: what one can hold comes back as it was, what it cannot hold is counted, damage is named."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ojak import formats
from ojak.artifact import publish, read
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.formats import FORMATS, ExportResult, Format, detect, export, load
from ojak.records import AnyRecord, Conversation, Document, Message, Preference, record_id

QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def turn(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def pair(row: int, **more: Any) -> Conversation:
    return Conversation(f"r-{row}", [turn("user", f"{row}?"), turn("assistant", f"{row}!")], **more)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def back(tmp_path: Path, records: list[Any], fmt: Format) -> tuple[ExportResult, list[AnyRecord]]:
    source, out = tmp_path / "source.parquet", tmp_path / "out"
    for path in (source, out):
        path.unlink(missing_ok=True)
    _store(records, source)
    result = export(source, fmt, out)
    return result, list(load(out))


def _store(records: list[Any], path: Path) -> None:
    from ojak._tables import write_table

    write_table(path, type(records[0]) if records else Conversation, records)


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
turns = st.builds(turn, st.sampled_from(["system", "user", "assistant", "tool"]), texts)
objects = st.dictionaries(
    texts.filter(bool), st.integers(-(2**53), 2**53) | texts | st.lists(st.booleans()), max_size=3
)
conversations = st.lists(
    st.builds(
        Conversation, texts.filter(bool), st.lists(turns, max_size=4), texts, objects, objects, objects
    ),
    max_size=4,
)


@QUIET
@given(records=conversations)
@pytest.mark.parametrize("fmt", ["messages", "parquet"])
def test_the_full_formats_hold_everything(tmp_path: Path, fmt: Format, records: list[Conversation]) -> None:
    result, found = back(tmp_path, records, fmt)
    assert found == records
    assert result == ExportResult(len(records))


@QUIET
@given(records=conversations)
def test_sharegpt_holds_ids_and_turns(tmp_path: Path, records: list[Conversation]) -> None:
    result, found = back(tmp_path, records, "sharegpt")
    assert [(item.id, item.messages) for item in cast("list[Conversation]", found)] == [
        (item.id, item.messages) for item in records
    ]
    assert (result.rows, result.skipped) == (len(records), {})
    left_out = {
        name for name in ("source", "meta", "tags", "scores") if any(getattr(item, name) for item in records)
    }
    assert {message.split()[0] for message in result.warnings} == left_out


@QUIET
@given(records=conversations)
def test_alpaca_holds_one_question_and_one_answer_and_counts_the_rest(
    tmp_path: Path, records: list[Conversation]
) -> None:
    result, found = back(tmp_path, records, "alpaca")
    fitting = [item.messages for item in records if _fits_alpaca(item.messages)]
    assert [item.messages for item in cast("list[Conversation]", found)] == fitting
    assert result.rows == len(fitting)
    assert sum(result.skipped.values()) == len(records) - len(fitting)


def _fits_alpaca(messages: list[Message]) -> bool:
    if messages and messages[0]["role"] == "system":
        return bool(messages[0]["content"]) and _fits_alpaca(messages[1:])
    return [item["role"] for item in messages] == ["user", "assistant"]


pairs = st.builds(lambda question, answer: [turn("user", question), turn("assistant", answer)], texts, texts)
with_system = st.builds(lambda system, rest: [turn("system", system), *rest], texts.filter(bool), pairs)


@QUIET
@given(messages=st.lists(pairs | with_system, min_size=1, max_size=4))
def test_alpaca_loses_nothing_of_what_it_can_hold(tmp_path: Path, messages: list[list[Message]]) -> None:
    records = [Conversation(f"r-{row}", item) for row, item in enumerate(messages)]
    result, found = back(tmp_path, records, "alpaca")
    assert [item.messages for item in cast("list[Conversation]", found)] == messages
    assert result.skipped == {}


ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello.\nYou."},
    {"instruction": "", "input": "Only input", "output": ""},
    {"instruction": "Ends\n1", "input": "1", "output": "x", "system": "Be brief."},
]


def test_alpaca_rows_come_back_with_their_input_apart(tmp_path: Path) -> None:
    source = lines(tmp_path / "alpaca.jsonl", ALPACA)
    export(source, "parquet", tmp_path / "a.parquet")
    export(tmp_path / "a.parquet", "alpaca", tmp_path / "again.jsonl")
    found = [json.loads(line) for line in (tmp_path / "again.jsonl").read_bytes().splitlines()]
    assert found == [{"system": "", **row} for row in ALPACA]


def test_alpaca_rows_have_no_system_where_none_is(tmp_path: Path) -> None:
    source = lines(tmp_path / "alpaca.jsonl", ALPACA[:2])
    export(source, "alpaca", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"instruction":"Add.","input":"1 and 2","output":"3"}',
        '{"instruction":"Greet.","input":"","output":"Hello.\\nYou."}',
    ]


def test_alpaca_names_the_reason_for_each_row_left_out(tmp_path: Path) -> None:
    user, assistant = turn("user", "q"), turn("assistant", "a")
    cases = {
        "more_than_one_turn": [user, assistant, user, assistant],
        "not_one_question_and_one_answer": [user],
        "empty_system_turn": [turn("system", ""), user, assistant],
    }
    records = [Conversation(name, messages) for name, messages in cases.items()]
    result, found = back(tmp_path, [*records, pair(1)], "alpaca")
    assert result.skipped == dict.fromkeys(cases, 1)
    assert len(found) == result.rows == 1


def test_sharegpt_leaves_out_a_role_that_it_could_not_give_back(tmp_path: Path) -> None:
    result, _ = back(tmp_path, [Conversation("x", [turn("gpt", "who?")]), pair(1)], "sharegpt")
    assert (result.rows, result.skipped) == (1, {"role_unknown_to_the_format": 1})


def test_sharegpt_knows_the_names_that_are_in_use(tmp_path: Path) -> None:
    rows = [
        {
            "id": "a",
            "conversations": [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}],
            "lang": "en",
        },
        {
            "id": 7,
            "conversations": [
                {"from": "system", "value": "s"},
                {"role": "user", "content": "q", "weight": 1},
            ],
        },
    ]
    one, two = cast("list[Conversation]", list(load(lines(tmp_path / "s.jsonl", rows))))
    assert one.messages == [turn("user", "q"), turn("assistant", "a")]
    assert one.meta == {"extra": {"lang": "en"}}
    assert (two.id, two.messages) == ("7", [turn("system", "s"), turn("user", "q")])
    assert two.meta == {"extra": {"messages": [{}, {"weight": 1}]}}


@pytest.mark.parametrize(
    "records", [[Document("d", "text", "f", {"k": 1})], [Preference("p", [], [], [], "s")]]
)
def test_other_records_go_where_they_fit(tmp_path: Path, records: list[Any]) -> None:
    for fmt in ("messages", "parquet"):
        assert back(tmp_path, records, cast("Format", fmt)) == (ExportResult(1), records)
    for fmt in ("sharegpt", "alpaca"):
        assert back(tmp_path, records, cast("Format", fmt))[0] == ExportResult(0, {"not_a_conversation": 1})


def test_an_export_takes_an_artifact_or_one_of_its_splits(tmp_path: Path) -> None:
    rows = [pair(row, meta={"row": row}) for row in range(5)]
    publish(tmp_path / "a", kind="split", splits={"train": rows[1:], "test": rows[:1]}, config={})
    assert export(tmp_path / "a", "messages", tmp_path / "all.jsonl").rows == 5
    assert export(tmp_path / "a", "messages", tmp_path / "new/test.jsonl", split="test").rows == 1
    assert list(read(tmp_path / "new/test.jsonl")) == rows[:1]
    with pytest.raises(UsageError, match="no splits"):
        export(tmp_path / "all.jsonl", "alpaca", tmp_path / "x", split="test")


def test_an_export_never_replaces(tmp_path: Path) -> None:
    source = lines(tmp_path / "m.jsonl", [{"text": "x"}])
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(TargetExists):
        export(source, "messages", tmp_path / "out")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"
    with pytest.raises(UsageError, match="no format"):
        export(source, cast("Format", "csv"), tmp_path / "x.csv")


def test_a_target_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = lines(tmp_path / "m.jsonl", [{"text": "x"}]), tmp_path / "out"

    def slow(record: AnyRecord) -> dict[str, Any]:
        out.write_text("mine", encoding="utf-8")
        return {"text": record.id}

    monkeypatch.setitem(formats.ENCODERS, "messages", slow)
    with pytest.raises(TargetExists):
        export(source, "messages", out)
    assert out.read_text(encoding="utf-8") == "mine"
    assert {item.name for item in tmp_path.iterdir()} == {"m.jsonl", "out"}


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "m.jsonl"
    source.write_text('{"text": "x"}\n{"text": \n{"text": "y"}\n', encoding="utf-8")
    for fmt in FORMATS:
        with pytest.raises(InputRefused, match="line 2"):
            export(source, cast("Format", fmt), tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize(
    ("row", "fmt"),
    [
        ({"messages": []}, "messages"),
        ({"text": "x"}, "messages"),
        ({"prompt": [], "chosen": [], "rejected": []}, "messages"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "", "output": ""}, "alpaca"),
    ],
)
def test_a_format_is_told_by_the_first_row(tmp_path: Path, row: dict[str, Any], fmt: str) -> None:
    assert detect(lines(tmp_path / "x", [row])) == fmt
    (tmp_path / "array.json").write_text(json.dumps([row], indent=1), encoding="utf-8")
    assert detect(tmp_path / "array.json") == fmt
    assert list(load(tmp_path / "array.json"))


def test_what_is_in_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="question"):
        detect(lines(tmp_path / "x", [{"question": "q"}]))
    with pytest.raises(InputRefused, match="not there"):
        detect(tmp_path / "none")
    with pytest.raises(InputRefused, match="not a finished artifact"):
        detect(tmp_path)


@pytest.mark.parametrize(
    ("fmt", "row"),
    [
        ("sharegpt", {"conversations": "x"}),
        ("sharegpt", {"conversations": [{"from": "human"}]}),
        ("sharegpt", {"id": "x"}),
        ("alpaca", {"instruction": 1, "output": "x"}),
        ("alpaca", {"instruction": "x"}),
        ("messages", {"messages": [{"role": 1, "content": "x"}]}),
    ],
)
def test_a_row_that_is_not_of_the_format_is_named(tmp_path: Path, fmt: Format, row: dict[str, Any]) -> None:
    with pytest.raises(InputRefused, match="line 1: not a row"):
        list(load(lines(tmp_path / "x", [row]), fmt))


def heard(path: Path) -> tuple[list[AnyRecord], list[str]]:
    messages: list[str] = []
    return list(load(path, "messages", warn=messages.append)), messages


GOOD = [{"id": f"r-{row}", "text": f"날개 {row}"} for row in range(4)]


@pytest.mark.parametrize(
    "form",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\n\n \n"),
        lambda data: data.rstrip(b"\n"),
    ],
)
def test_harmless_forms_of_json_lines_are_read(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    path = lines(tmp_path / "x", GOOD)
    path.write_bytes(form(path.read_bytes()))
    assert heard(path) == ([Document(row["id"], row["text"]) for row in GOOD], [])


def test_a_file_cut_anywhere_in_its_last_rows_gives_the_rows_before(tmp_path: Path) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in GOOD).encode()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    path = tmp_path / "x"
    for size in range(ends[1], len(data)):
        path.write_bytes(data[:size])
        found, messages = heard(path)
        whole = sum(end - 1 <= size for end in ends)
        torn = size not in ends and size + 1 not in ends
        assert (len(found), len(messages)) == (whole, int(torn)), size
        if torn:
            assert f"byte {ends[whole - 1]}" in messages[0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda row: row[:-3], "line 2: not valid JSON"),
        (lambda row: b"\0" * 40 + row, "NUL bytes"),
        (lambda row: row + row, "glued"),
        (lambda row: row.replace(b"r-1", b"\\ud800"), "line 2: not valid JSON"),
        (lambda row: row.replace(b"r-1", b"\xff\xfe"), "line 2: not valid JSON"),
        (lambda row: b"[1]", "line 2: not an object"),
        (lambda row: b"[" * 5000, "line 2: not valid JSON"),
    ],
)
def test_damage_inside_is_an_error_with_the_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    path = lines(tmp_path / "x", GOOD)
    rows = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([rows[0], damage(rows[1]), *rows[2:], b""]))
    with pytest.raises(InputRefused, match=said):
        heard(path)


def test_a_tail_of_nul_bytes_is_a_torn_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "x", GOOD)
    path.write_bytes(path.read_bytes() + b"\0" * 4096)
    found, messages = heard(path)
    assert (len(found), len(messages)) == (4, 1)


def test_a_file_of_another_kind_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"just a text without a line end")
    with pytest.raises(InputRefused, match="line 1"):
        heard(tmp_path / "x")
    (tmp_path / "x").write_bytes('{"text": "x"}\n'.encode("utf-16"))
    with pytest.raises(InputRefused, match="UTF-16"):
        heard(tmp_path / "x")
    (tmp_path / "x").write_bytes(b'[{"text": "x"}')
    with pytest.raises(InputRefused, match="array"):
        heard(tmp_path / "x")


def test_a_line_without_end_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ojak._jsonl.MAX_LINE_BYTES", 1000)
    (tmp_path / "x").write_bytes(b'{"text": "' + b"x" * 2000)
    with pytest.raises(InputRefused, match="longer than"):
        heard(tmp_path / "x")


def test_a_reader_warns_by_default(tmp_path: Path) -> None:
    path = lines(tmp_path / "x", GOOD)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="cut off"):
        assert len(list(read(path))) == 3
    with warnings.catch_warnings(action="error"):
        assert "cut off" in export(path, "messages", tmp_path / "out").warnings[0]


def test_ids_of_rows_without_any_follow_from_the_file_and_the_position(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "a"}])
    assert [item.id for item in load(path)] == [record_id("x.jsonl", 0), record_id("x.jsonl", 1)]


def magpie_rows(number: int) -> list[Conversation]:
    """Rows that differ as in a real run; a system turn and tags come after what `datasets` looks at."""
    rows = []
    for row in range(number):
        meta = {
            "method": "magpie",
            "seed": {"instruction": 2**63 - 1 - row, "response": row},
            "sampling": {"instruction": {"temperature": 1.0, "top_p": 1.0}, "response": {"temperature": 0.0}},
            "finish_reason": {"instruction": "stop", "response": "length" if row % 2 else "stop"},
            "edits": ["cut_at_marker"] if row % 7 == 0 else [],
        }
        late = row > number * 2 // 3
        system = [turn("system", "Be brief.")] if late else []
        tags = {"topic": "math"} if late else {}
        rows.append(Conversation(f"r-{row}", [*system, *pair(row).messages], "run", meta, tags))
    return rows


@pytest.mark.parametrize("fmt", FORMATS)
def test_datasets_reads_an_export_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: Format
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    publish(tmp_path / "a", kind="magpie", records=magpie_rows(30), config={})
    export(tmp_path / "a", fmt, tmp_path / "out")
    options: dict[str, Any] = {"path": "parquet"} if fmt == "parquet" else {"path": "json", "chunksize": 2000}
    found = datasets.load_dataset(
        data_files=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"), **options
    )
    assert len(found) == 30
    if fmt in ("messages", "parquet"):
        assert [row["messages"] for row in found] == [row.messages for row in magpie_rows(30)]
    if fmt == "messages":
        assert [row["meta"] for row in found] == [row.meta for row in magpie_rows(30)]


@QUIET
@given(instruction=texts, given_input=texts, output=texts, system=texts)
def test_an_alpaca_row_s_input_can_be_told_from_its_instruction(
    tmp_path: Path, instruction: str, given_input: str, output: str, system: str
) -> None:
    row = {"instruction": instruction, "input": given_input, "output": output, "system": system}
    (record,) = cast("list[Conversation]", list(load(lines(tmp_path / "x", [row]))))
    turns = formats.template_turns(record)
    assert [(item["role"], item["content"]) for item in turns] == [
        (item["role"], item["content"]) for item in record.messages
    ]
    asked = turns[-2]
    assert asked.get("input", "") == given_input
    whole = len(given_input) + len(formats.ALPACA_JOINT) if given_input else 0
    assert asked["content"][: len(asked["content"]) - whole] == instruction


def test_an_input_that_an_edit_removed_is_none() -> None:
    record = pair(1, meta={"alpaca_input": "gone"})
    assert formats.template_turns(record) == [{**item} for item in record.messages]
    assert formats.template_turns(Conversation("x", [], meta={"alpaca_input": "x"})) == []
