"""The published synthesizer's format: exact bytes, what is read of it, and that nothing breaks or is lost."""

from __future__ import annotations

import string

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ojak.augment import tagged
from ojak.augment.pairs import SYNTHESIZER, Pair
from ojak.augment.parsed import THOUGHT, counted, fault
from ojak.augment.tagged import TAGS, parse, prefix, unwritable, write_pair, write_pairs
from ojak.chat import ChatTemplate, chat_prefix, encode_chats
from ojak.errors import InputRefused
from ojak.train.styles import style_template

FIRST = Pair("Who ran?", "Ann", source=SYNTHESIZER)
CHOICE = Pair("Where?", "Rome", ("Rome", "Oslo"), SYNTHESIZER)
REASONED = Pair(f"How many?\n{THOUGHT}", "One and one.\nTherefore, the answer is 2", ("1", "2"), SYNTHESIZER)

words = st.text(st.sampled_from(string.ascii_letters + "é날.,?- \n"), min_size=1, max_size=20).map(str.strip)
options = st.lists(words.map(lambda text: " ".join(text.split())), min_size=2, max_size=4, unique=True)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    question, answer, given = draw(words), draw(words), ()
    if draw(st.booleans()):
        given = tuple(draw(options))
        answer = draw(st.sampled_from(given))
    if draw(st.booleans()):
        question += f"\n{THOUGHT}"
        answer = f"{draw(words)}\nTherefore, the answer is {answer}"
    return Pair(question, answer.strip(), given, SYNTHESIZER)


def test_the_published_bytes() -> None:
    """LMOps, instruction_pretrain/utils/read_compre.py: the context's own space, blank lines, tags as plain text."""
    around = prefix(2)
    assert around.text(["Ann ran."]) == "<s> <CON> Ann ran. </CON>\n\n"
    assert write_pairs([FIRST, CHOICE]) == (
        "<QUE> Who ran? <ANS> Ann </END>\n\n<QUE> Where?\nOptions:\n- Rome\n- Oslo <ANS> Rome </END>"
    )
    assert write_pair(REASONED) == (
        "<QUE> How many?\nOptions:\n- 1\n- 2\nLet's think step by step. <ANS> One and one.\n"
        "Therefore, the answer is 2 </END>"
    )
    assert around.text(["Ann ran.", write_pairs([FIRST]), "Bo sat."]) == (
        "<s> <CON> Ann ran. </CON>\n\n<QUE> Who ran? <ANS> Ann </END></s><s> <CON> Bo sat. </CON>\n\n"
    )


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_trained_model_s_template_writes_the_same(adds_bos: bool) -> None:
    tokenizer = tiny.tokenizer(adds_bos=adds_bos)
    template = style_template("synthesizer", tokenizer, None)
    found = chat_prefix(template, tokenizer, turns=3)
    literal = prefix(3, bos="<s>" if adds_bos else "")
    turns = ["Ann ran.", write_pairs([FIRST]), "Bo sat.", write_pairs([FIRST, CHOICE]), "Cy hid."]
    for end in (1, 3, 5):
        assert found.text(turns[:end]) == literal.text(turns[:end])
    assert tagged.is_prefix(found)
    assert tiny.EOS in found.stop_ids


def test_only_pairs_are_learnt() -> None:
    tokenizer = tiny.tokenizer()
    template = style_template("synthesizer", tokenizer, None)
    said = write_pairs([FIRST])
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "Ann ran."), ("assistant", said), ("user", "B"), ("assistant", said))
    ]
    (encoded,) = encode_chats(template, tokenizer, [turns])
    assert not isinstance(encoded, InputRefused)
    ids, mask = encoded
    learnt = tokenizer.decode([i for i, is_learnt in zip(ids, mask, strict=True) if is_learnt])
    assert learnt == f"{said}</s>{said}</s>"
    assert ids.count(tiny.BOS) == 2
    with pytest.raises(InputRefused, match="a user and an assistant alone"):
        ChatTemplate.of(template, tokenizer).render([[{"role": "system", "content": "x"}, *turns]])


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("<QUE> a <ANS> b </END>\n\n<QUE> c <ANS> d", {"truncated": 1}),
        ("<QUE> a <ANS> b </END>\n\nbye", {"no_question": 1}),
        ("<QUE> a <ANS> b </END> c <ANS> d </END>", {"no_question": 1}),
        ("<QUE> a <ANS> b </END><QUE> c d </END>", {"no_answer": 1}),
        ("<QUE> a <ANS> b </END><QUE> c <ANS> d <ANS> e </END>", {"repeated_tag": 1}),
        ("<QUE> a <ANS> b </END><QUE> c <QUE> d <ANS> e </END>", {"repeated_tag": 1}),
        ("<QUE> a <ANS> b </END><QUE> c <ANS> d <CON> e </END>", {"context_tag": 1}),
        ("<QUE> a <ANS> b </END><QUE> <ANS> d </END>", {"empty_question": 1}),
        ("<QUE> a <ANS> b </END><QUE> c <ANS>  </END>", {"empty_answer": 1}),
        ("<QUE> a <ANS> b </END><QUE> A <ANS> c </END>", {"duplicate_question": 1}),
        ("<QUE> a <ANS> b </END></END>", {"no_question": 1}),
        ("<QUE> a <ANS> b </END><QUE> c\nOptions:\n- d <ANS> d </END>", {"too_few_options": 1}),
        ("<QUE> a <ANS> b </END><QUE> c\nOptions:\n- d\n- D <ANS> d </END>", {"repeated_option": 1}),
        ("<QUE> a <ANS> b </END><QUE> c\nOptions:\n- d\n- e <ANS> f </END>", {"answer_not_an_option": 1}),
        ("<QUE> a <ANS> b </END><QUE> c\nOptions: d, e <ANS> d </END>", {"unreadable_options": 1}),
        ("<QUE> a <ANS> b </END><QUE> c\nOptions:\n- d\n- e\nf <ANS> d </END>", {"unreadable_options": 1}),
    ],
)
def test_each_discarded_piece_has_its_reason(text: str, reasons: dict[str, int]) -> None:
    found = parse(text)
    assert [(pair.question, pair.answer) for pair in found.pairs] == [("a", "b")]
    assert counted(found.discarded) == reasons


def test_a_piece_that_the_cap_ended_is_truncated_whatever_it_begins_with() -> None:
    assert counted(parse("<QUE> a <ANS> b </END>\n\n<Q", cut=True).discarded) == {"truncated": 1}
    assert parse("<QUE> a <ANS> b </END>", cut=True).discarded == []


@given(st.lists(pairs(), max_size=5))
def test_what_is_written_is_read_again(made: list[Pair]) -> None:
    sound = [pair for pair in made if unwritable(pair) is None and pair.question == pair.question.strip()]
    found = parse(write_pairs(sound))
    kept: list[Pair] = []
    for pair in sound:
        if not any(
            " ".join(pair.question.casefold().split()) == " ".join(other.question.casefold().split())
            and sorted(o.casefold() for o in pair.options) == sorted(o.casefold() for o in other.options)
            for other in kept
        ):
            kept.append(pair)
    assert found.pairs == kept
    assert len(found.pairs) + len(found.discarded) == len(sound)
    assert parse(write_pairs(found.pairs)).pairs == found.pairs


def published_parser(text: str) -> list[tuple[str, str]]:
    """The rule of the published code, in its own words: an oracle for texts without options."""
    pieces = text.split("</END>")
    found: list[tuple[str, str]] = []
    for piece in pieces[:-1]:
        parts = piece.strip().split("<ANS>")
        if len(parts) == 2 and parts[0].startswith("<QUE>") and parts[1].strip():
            question = parts[0][len("<QUE>") :].strip()
            if question.lower() not in [q.lower() for q, _ in found]:
                found.append((question, parts[1].strip()))
    return found


fragments = st.lists(st.sampled_from([*TAGS, " ", "\n\n", "a", "b c", "A"]), max_size=30).map("".join)
pieces = st.sampled_from(
    ["<QUE> a <ANS> b", "<QUE> A <ANS> c", "<QUE> c", "x <QUE> a <ANS> b", "<QUE> d <ANS> ", "<QUE> g <ANS> h",
     "<QUE> e <ANS> f <ANS> g", "", "<QUE> i\nj <ANS> k\nl"]
)  # fmt: skip


@given(st.lists(pieces, max_size=6), st.booleans())
def test_as_the_published_parser(parts: list[str], ended: bool) -> None:
    text = " </END>\n\n".join(parts) + (" </END>" if ended else "")
    assert [(pair.question, pair.answer) for pair in parse(text).pairs] == published_parser(text)


@given(fragments)
def test_nothing_is_read_that_the_published_parser_would_not_read(text: str) -> None:
    assert {(pair.question, pair.answer) for pair in parse(text).pairs} <= set(published_parser(text))


@given(st.one_of(st.text(max_size=200), fragments), st.booleans())
def test_anything_may_come_in_and_every_piece_is_counted(text: str, cut: bool) -> None:
    found = parse(text, cut)
    *whole, rest = text.split("</END>")
    assert len(found.pairs) + len(found.discarded) == len(whole) + bool(rest.strip())
    assert all(fault(pair) is None and unwritable(pair) is None for pair in found.pairs)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair("a <ANS> b", "c"), "tags_inside"),
        (Pair("a", "b </END>"), "tags_inside"),
        (Pair("a", "b", ("b", "c\nd")), "option_of_many_lines"),
        (Pair("a\nOptions:", "b"), "unreadable_options"),
        (Pair(" ", "b"), "empty_question"),
        (Pair("a", "b", ("c", "d")), "answer_not_an_option"),
        (FIRST, None),
    ],
)
def test_what_cannot_be_written(pair: Pair, reason: str | None) -> None:
    assert unwritable(pair) == reason
