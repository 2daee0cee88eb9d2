"""Records: rows and back, ids, and what foreign rows bring along."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojak.records import (
    AnyRecord,
    Conversation,
    Document,
    Message,
    Preference,
    Rejected,
    dump_json,
    from_row,
    record_id,
    to_row,
)

TURNS = [Message(role="user", content="1 + 1?"), Message(role="assistant", content="2")]


@pytest.mark.parametrize(
    "record",
    [
        Document("a-1", "text", "file.txt", {"page": 3}),
        Conversation("a-2", TURNS, "run", {"row": 1}, {"topic": "math"}, {"quality": 0.5}),
        Preference(
            "a-3", TURNS[:1], TURNS[1:], [Message(role="assistant", content="3")], "run", {}, {"margin": 1}
        ),
        Rejected("a-4", "too_short", "magpie", "hm", [], "run", {"row": 4}),
    ],
)
def test_a_row_gives_its_record_back(record: AnyRecord) -> None:
    assert from_row(to_row(record)) == record


def test_ids_are_unique_by_source_and_position_and_stable() -> None:
    ids = {record_id(key, position) for key in ("run", "run2") for position in range(500)}
    assert len(ids) == 1000
    assert record_id("run", 7) == record_id("run", 7)


def test_a_row_without_an_id_gets_one_from_where_it_stood() -> None:
    assert from_row({"text": "x"}, key="f.jsonl", position=3).id == record_id("f.jsonl", 3)
    assert from_row({"text": "x", "id": 12}).id == "12"


def test_fields_and_turns_that_a_record_cannot_hold_are_kept_in_meta() -> None:
    turn = {"role": "user", "content": "hi", "name": "Ada", "tool_calls": None}
    record = from_row({"messages": [turn], "lang": "en", "nothing": None, "meta": {"row": 1}})
    assert isinstance(record, Conversation)
    assert record.messages == [{"role": "user", "content": "hi"}]
    assert record.meta == {"row": 1, "extra": {"lang": "en", "messages": [{"name": "Ada"}]}}
    assert from_row(to_row(record)) == record


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x"}, "no messages"),
        ({"messages": "hi"}, "list of turns"),
        ({"messages": None}, "null"),
        ({"messages": ["hi"]}, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role"),
        ({"text": 3}, "'text' is not text"),
        ({"text": "x", "meta": [1]}, "'meta' is not an object"),
        ({"text": "x", "id": True}, "'id' is not text"),
    ],
)
def test_a_wrong_row_says_which_field_is_wrong(row: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_row(row)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_equal_values_give_equal_json_whatever_their_order(value: dict[str, object]) -> None:
    assert dump_json(dict(reversed(value.items()))) == dump_json(value)


def test_nan_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"score": float("nan")})
