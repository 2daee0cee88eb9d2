"""Words and sentences are those that datatrove has of spaCy."""

from __future__ import annotations

import pydoc_data.topics

import pytest
from datatrove.utils.word_tokenizers import SpaCyTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import web_texts

from ojak.corpus.words import Words

PLAIN = SpaCyTokenizer("en")
OURS = Words("en")


def same(text: str) -> None:
    assert OURS.word_tokenize(text) == PLAIN.word_tokenize(text)
    assert OURS.span_tokenize(text) == PLAIN.span_tokenize(text)


@pytest.mark.parametrize("name", sorted(pydoc_data.topics.topics)[::3])
def test_a_language_reference(name: str) -> None:
    same(pydoc_data.topics.topics[name][:6000])


def test_texts_of_the_web_and_their_lines() -> None:
    for text in web_texts(44):
        same(text)
        for line in text.split("\n"):
            same(line.strip())


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from(list("abcXY. ,!?;:'\"()[]{}-_/@#&*+=<>0123456789\t\n\u00a0…“”é漢")),
        max_size=60,
    )
)
def test_any_text_without_smileys_in_two_pieces(text: str) -> None:
    if OURS.word_tokenize(text) != PLAIN.word_tokenize(text):  # see the head of `words.py`
        assert any(sign in text for sign in ":;=8x<>"), text
        return
    same(text)


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "a", " a. b", "a.  b", "a.  ", "Hi!\n\tYou? ", "foo IS_ALPHA. Bar"]
)
def test_white_space_and_nothing(text: str) -> None:
    same(text)


def test_the_table_of_pieces_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Words("de")
    tokenizer._most = 50
    for number in range(300):
        tokenizer.word_tokenize(f"Wort{number} und noch eins")
    assert len(tokenizer._known) < 40
    assert tokenizer.word_tokenize("Wort7 und") == ["Wort7", "und"]


def test_a_language_that_spacy_has_no_rules_for() -> None:
    assert Words("und").language == Words("ja").language == "xx"
    assert Words("de").language == "de"
