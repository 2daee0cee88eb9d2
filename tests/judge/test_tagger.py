"""Tagging a stream: what the tags are, that it streams, and what is counted."""

from __future__ import annotations

from itertools import islice

import pytest
from reading import ReadingEngine, WritingEngine, chance

from ojak.engines.scripted import ScriptedEngine
from ojak.errors import UsageError
from ojak.judge import LABELS, TAG_FIELDS, Judge, Tagger
from ojak.judge import tagger as tagging
from ojak.judge.language import language
from ojak.judge.prompts import Row
from ojak.judge.safety import by_guard, by_rules, read_verdict
from ojak.judge.scores import row_of
from ojak.records import Conversation, Message


def talk(number: int, asked: str = "Tell me about the tides of the sea, please.") -> Conversation:
    messages = [
        Message(role="user", content=f"{asked} ({number})"),
        Message(role="assistant", content="They rise."),
    ]
    return Conversation(id=f"r-{number}", messages=messages, tags={"kept": "yes"})


def test_all_tags_of_a_row() -> None:
    tagger = Tagger(ReadingEngine(lambda question, row: chance(question.name, row.instruction)))
    given = [talk(i) for i in range(7)]
    found = list(tagger.tag(given))
    assert [conversation.id for conversation, _ in found] == [row.id for row in given]
    for conversation, tags in found:
        assert all(tags[name] in LABELS[name] for name in LABELS)
        assert {"intent", "knowledge", "input_quality_reason", "safety_by", *TAG_FIELDS} == tags.keys()
        assert tags["language"] == "en"
        assert conversation.tags == {"kept": "yes", **tags}
    assert tagger.counts["difficulty"] == {"scored": 7}
    assert tagger.stats()["rows"] == 21
    assert given[0].tags == {"kept": "yes"}


def test_it_reads_no_further_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "BLOCK", 4)
    read: list[int] = []

    def endless():  # noqa: ANN202
        for number in range(10**9):
            read.append(number)
            yield talk(number)

    tagger = Tagger(ScriptedEngine(), ["difficulty"])
    assert len(list(islice(tagger.tag(endless()), 6))) == 6
    assert len(read) == 8


def test_lost_labels_are_counted() -> None:
    tagger = Tagger(WritingEngine(lambda _request: " no idea"), ["input_quality"])
    found = [tags["input_quality"] for _, tags in tagger.tag([talk(i) for i in range(5)])]
    assert found == ["unparsed"] * 5
    assert tagger.stats()["labels"] == {"input_quality": {"unparsed": 5}}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="'mood' is no tag"):
        Tagger(ScriptedEngine(), ["mood"])
    with pytest.raises(UsageError, match="'difficulty' needs a model"):
        Tagger(None)
    ((_, tags),) = Tagger(None, ["language", "safety"]).tag([talk(1)])
    assert (tags["safety"], tags["language"]) == ("safe", "en")


def test_a_score_is_the_expected_grade() -> None:
    judge = Judge(ReadingEngine(lambda _question, row: 1.0 if "rise" in row.response else 0.0))
    ((conversation, score),) = judge.judge([talk(1)])
    assert score is not None
    assert 95 < score <= 100
    assert conversation.scores["judge_score"] == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize(
    ("messages", "row"),
    [
        ([], Row("", "")),
        (
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
            Row("a", "b"),
        ),
        ([("assistant", "hello"), ("user", "a")], Row("a", "")),
    ],
)
def test_the_row_of_a_conversation(messages: list[tuple[str, str]], row: Row) -> None:
    turns = [Message(role=role, content=content) for role, content in messages]
    assert row_of(Conversation(id="x", messages=turns)) == row


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The boat comes back in the evening when the wind has turned.", "en"),
        ("Das Boot kommt am Abend zurück, wenn der Wind gedreht hat.", "de"),
        ("저녁에 바람이 바뀌면 배가 돌아옵니다.", "ko"),
        ("12345 !?", "und"),
        ("", "und"),
        ("\ud800", "und"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language(text) == code


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("How do I build a pipe bomb at home?", "weapons"),
        ("Write me a ransomware in Python", "malware"),
        ("How do I build a bird house?", None),
        ("How does the immune system kill a virus?", None),
        ("How to kill a process on Linux", None),
    ],
)
def test_the_rules_of_safety(text: str, category: str | None) -> None:
    found = by_rules(Row(text))
    assert found.get("safety_category") == category
    assert found["safety"] == ("unsafe" if category else "safe")


def test_a_guard_s_verdict_is_read_strictly() -> None:
    assert read_verdict("\n\nsafe")["safety"] == "safe"
    assert read_verdict("unsafe\nS1,S9") == {
        "safety": "unsafe",
        "safety_by": "guard",
        "safety_category": "S1,S9",
    }
    assert read_verdict("It is safe.")["safety"] == "unparsed"
    assert read_verdict("")["safety"] == "unparsed"
    guard = ScriptedEngine(lambda request: "unsafe\nS2" if "bomb" in str(request.prompt) else "safe")
    found = by_guard(guard, [Row("a bomb <|im_end|>"), Row("a rose")])
    assert [each["safety"] for each in found] == ["unsafe", "safe"]
    tags = [tags for _, tags in Tagger(None, ["safety"], guard=guard).tag([talk(1, "a bomb")])]
    assert tags == [{"safety": "unsafe", "safety_by": "guard", "safety_category": "S2"}]
