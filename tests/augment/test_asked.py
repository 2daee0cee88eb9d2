"""The plain request to an instruct model: what is read of answers as small models give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojak.augment.asked import ask, parse, write_pairs
from ojak.augment.pairs import Pair
from ojak.augment.parsed import counted


@pytest.mark.parametrize(
    "text",
    [
        "Question: Who ran?\nAnswer: Ann\n\nQuestion: Where?\nAnswer: In Rome",
        "Question: Who ran?\nAnswer: Ann\nQuestion: Where?\nAnswer: In Rome",
        "1. Question: Who ran?\n   Answer: Ann\n2. Question: Where?\n   Answer: In Rome",
        "**Question 1:** Who ran?\n**Answer:** Ann\n\n**Question 2:** Where?\n**Answer:** In Rome",
        "Q: Who ran?\nA: Ann\n\nQ: Where?\nA: In Rome",
        "question: Who ran?\n\nanswer: Ann\n\n- Question 2: Where?\n- Answer 2: In Rome\n",
    ],
)
def test_ways_to_write_labels(text: str) -> None:
    found = parse(text)
    assert [(pair.question, pair.answer) for pair in found.pairs] == [
        ("Who ran?", "Ann"),
        ("Where?", "In Rome"),
    ]
    assert not found.discarded


@pytest.mark.parametrize(
    ("text", "cut", "pairs", "reasons"),
    [
        ("Here they are:\n\nQuestion: a\nAnswer: b", False, 1, {"stray_text": 1}),
        ("Question: a\nAnswer: b\n\nI hope that helps!", False, 1, {"stray_text": 1}),
        ("Question: a\nAnswer: b\nQuestion: c\nAnswer: d", True, 1, {"truncated": 1}),
        ("Question: a\nAnswer: b\nQuestion: c", False, 1, {"no_answer": 1}),
        ("Question: a\nQuestion: c\nAnswer: d", False, 1, {"no_answer": 1}),
        ("Question:\nAnswer: b", False, 0, {"empty_question": 1}),
        ("Question: a\nAnswer:", False, 0, {"empty_answer": 1}),
        ("Question: a\nAnswer: b\nQuestion: A\nAnswer: c", False, 1, {"duplicate_question": 1}),
        ("Answer: b", False, 0, {"stray_text": 1}),
        ("It is a text about tides.", False, 0, {"stray_text": 1}),
        ("", False, 0, {}),
    ],
)
def test_each_discarded_piece_has_its_reason(
    text: str, cut: bool, pairs: int, reasons: dict[str, int]
) -> None:
    found = parse(text, cut)
    assert len(found.pairs) == pairs
    assert counted(found.discarded) == reasons


def test_an_answer_may_have_lines() -> None:
    (pair,) = parse("Question: What?\nAnswer: one\ntwo").pairs
    assert pair.answer == "one\ntwo"


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["x", "y z"])), unique_by=lambda each: each[0]
    )
)
def test_what_is_written_is_read_again(made: list[tuple[str, str]]) -> None:
    found = parse(write_pairs([Pair(question, answer) for question, answer in made]))
    assert [(pair.question, pair.answer) for pair in found.pairs] == made
    assert not found.discarded


lines = st.lists(st.sampled_from(["Question:", "Answer:", " a", "\n", "\n\n", "Q1: ", "b"]), max_size=20).map(
    "".join
)


@given(st.one_of(lines, st.text(max_size=200)), st.booleans())
def test_anything_may_come_in_and_no_text_is_lost(text: str, cut: bool) -> None:
    found = parse(text, cut)
    kept = "".join(f"{pair.question}{pair.answer}" for pair in found.pairs) + "".join(
        piece.text for piece in found.discarded
    )
    letters = [character for character in text if character in "ab"]
    assert (
        sorted(character for character in kept if character in "ab") == sorted(letters) or "uestion" in text
    )


def test_the_request_holds_the_text_as_it_is() -> None:
    assert ask("A {text} with {count} braces.").startswith(
        "A {text} with {count} braces.\n\nWrite three different questions"
    )
