"""Tasks made by rules: each by hand on a text of its own, and what holds for all of them on any text."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.augment.pairs import Pair
from ojak.augment.rule_tasks import MOST_OF_A_TASK, STATEMENTS, TASKS, labels, make_pairs, wordings
from ojak.augment.rules_parts import BLANK, completions, gives_away
from ojak.augment.rules_text import MAX_CHARACTERS, Reading
from ojak.augment.verify_text import holds
from ojak.records import Document
from ojak.similarity import normalize

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verify.md"
LAKE = """Lake Ostrava

Lake Ostrava lies in the north of Karelland. The lake was dammed in 1931 by the engineer Vera Lind. Its surface covers
412 square kilometres, and its deepest point lies 87 metres below the surface. The town of Mirow stands on the eastern
shore. In 1958 a flood destroyed the old bridge at Mirow. The engineer Paul Hahn built the present bridge in 1961.

Fishing is the main trade of the villages around the lake. About 30% of the catch is sold in Karelland, and 55% goes to
the markets of Tarvik. The fishing season begins in April and lasts until the end of October. Each autumn the town of
Mirow holds a fishing festival on the shore.
"""
NAMES_FREE = "the cat sat on the mat and then the cat left it again for good. it never came back to that old mat at all."
WORDS = st.sampled_from(
    ["Lake", "Ostrava", "lake", "the", "1931", "12%", '"x"', "(", ")", ".", "!", "?", "\n", "\n\n", "#", "=", "***", "\u3002", "\u6c34\u57df",
     "\u30ab\u30bf\u30ab\u30ca", "\u041e\u0437\u0435\u0440\u043e", "\ud55c\uad6d", "____", "{sentence}", "{subject}", "\ud800", "\x00", "\u202e", "e.g.", "Mr.", ";", "- ", "of"]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(st.characters(), max_size=300),
    st.lists(WORDS, max_size=120).map(" ".join),
    st.lists(WORDS, max_size=80).map("".join),
)


def made(text: str, seed: int = 0, most: int | None = None) -> list[Pair]:
    return make_pairs(Document("doc", text), seed=seed, most=most)


def of(task: str, text: str = LAKE, seeds: range = range(8)) -> list[Pair]:
    found = [pair for seed in seeds for pair in made(text, seed) if pair.source == f"rules:{task}"]
    assert found, task
    return found


def collapsed(text: str) -> str:
    return " ".join(text[:MAX_CHARACTERS].split())


def in_text(pair: Pair, text: str) -> bool:
    """Every item of a list of terms, and any other answer as a whole."""
    parts = pair.answer.split("; ") if pair.source == "rules:keywords" else [pair.answer]
    return all(part in collapsed(text) for part in parts)


def sentence_of(pair: Pair, text: str = LAKE) -> str:
    """The sentence with its blank filled, as it stands in the question."""
    line = next(
        line
        for line in pair.question.split("\n")
        if BLANK in line and "does ____ stand for" not in line and "for ____." not in line
    )
    return line.removeprefix("Complete this sentence from the text: ").replace(BLANK, pair.answer)


# ------------------------------------------------------------------------------------------------------ each by hand


def test_the_title_is_the_first_line() -> None:
    assert {pair.answer for pair in of("title")} == {"Lake Ostrava"}


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# The Lake #\nIt lies in the north.", "The Lake"),
        (" \n = Lake Ostrava = \n \n The lake is old .", "Lake Ostrava"),
        ('The "with" statement\n********************\n\nThe statement is used.', 'The "with" statement'),
        ("It lies in the north of the land.\n\nMore of it.", ""),
        ("and so on\nwithout an end\n\nMore.", ""),
        ("Contents:\n\nMore of it.", ""),
        ("x" * 200 + "\n\nMore of it.", ""),
        ("", ""),
    ],
)
def test_titles(text: str, title: str) -> None:
    assert Reading(text).title == title


def test_a_question_that_would_tell_its_answer_is_not_asked() -> None:
    text = LAKE.replace("Lake Ostrava\n", "The text\n", 1)
    assert Reading(text).title == "The text"
    asked = [pair for seed in range(20) for pair in made(text, seed) if pair.answer == "The text"]
    assert asked and all("the text" not in pair.question for pair in asked)


def test_without_a_title_the_subject_is_the_term_that_the_text_turns_on() -> None:
    text = "The ibis lives in marshes. An ibis eats crabs and frogs. Farmers like the ibis. Every ibis has a long bill. Ibis nests are high up."
    assert Reading(text).title == ""
    reading = Reading(text.replace("ibis", "heron").replace("Ibis", "Heron"))
    assert reading.subject.casefold() == "heron"
    assert of("title", reading.text)[0].answer.casefold() == "heron"


def test_keywords_stand_in_the_order_of_the_text() -> None:
    for pair in of("keywords"):
        terms = pair.answer.split("; ")
        places = [collapsed(LAKE).find(term) for term in terms]
        assert places == sorted(places) and -1 not in places
        assert {"Karelland", "Mirow"} <= set(terms)


def test_a_statement_is_a_sentence_or_one_with_a_term_swapped() -> None:
    yes, no = labels()
    statements = of("entailment")
    sentences = {sentence.text for sentence in Reading(LAKE).sentences}
    for pair in statements:
        verbatim = any(sentence in pair.question for sentence in sentences)
        assert pair.answer.casefold() in (yes if verbatim else no), pair
    assert {pair.answer.casefold() in yes for pair in statements} == {True, False}
    false = [pair.question for pair in statements if pair.answer.casefold() in no]
    assert any(
        re.search(
            r"in 1958 a flood|in 1931 a flood|in 1961 a flood|dammed in 19(58|61)|bridge in 19(31|58)",
            text,
            re.IGNORECASE,
        )
        for text in false
    )


def test_true_and_false_statements_take_turns() -> None:
    yes, _ = labels()
    for seed in range(12):
        truths = [pair.answer.casefold() in yes for pair in made(LAKE, seed) if pair.source == STATEMENTS]
        assert abs(2 * sum(truths) - len(truths)) <= 1


def test_a_text_without_terms_gives_no_statement() -> None:
    assert not [pair for pair in made(NAMES_FREE.capitalize()) if pair.source == STATEMENTS]


def test_recitation_begins_where_the_prose_does() -> None:
    for pair in of("recitation"):
        assert "Lake Ostrava" in pair.question
        assert pair.answer.startswith("Lake Ostrava lies in the north of Karelland. The lake was dammed")


def test_a_description_has_the_terms_that_were_given() -> None:
    for pair in of("description"):
        given_ = pair.question.split(": ")[-1] if ": " in pair.question else pair.question.split("? ")[-1]
        terms = given_.split("\n")[0].split("; ")
        assert len(terms) >= 3
        assert all(term in pair.answer for term in terms), pair


def test_a_blank_is_filled_by_its_answer_only() -> None:
    for pair in of("blank"):
        assert sentence_of(pair) in collapsed(LAKE)


def test_no_blank_where_another_sentence_fills_it_otherwise() -> None:
    twins = "The first gate was opened in 1931 by the mayor. The first gate was opened in 1958 by the mayor."
    assert not [
        pair
        for pair in made(twins)
        if pair.source in ("rules:blank", "rules:choice") and pair.answer in ("1931", "1958")
    ]
    assert [
        pair
        for seed in range(9)
        for pair in made(twins.replace("1958 by", "1958 for"), seed)
        if pair.answer in ("1931", "1958")
    ]


def test_choices_are_other_terms_of_the_text() -> None:
    for pair in of("choice"):
        assert pair.answer in pair.options and 3 <= len(pair.options) <= 4
        assert len({option.casefold() for option in pair.options}) == len(pair.options)
        assert all(option in collapsed(LAKE) for option in pair.options)
        wrong = [option for option in pair.options if option != pair.answer]
        assert all(option.casefold() not in pair.question.casefold() for option in wrong)
    years = [pair for pair in of("choice") if re.fullmatch(r"\d{4}", pair.answer)]
    assert all(re.fullmatch(r"\d{4}", option) for pair in years for option in pair.options)


def test_a_completion_is_the_end_of_the_sentence() -> None:
    for pair in of("completion"):
        before = pair.question.replace("\n", " ").removesuffix(" ...").split(": ")[-1]
        begin = next(i for i in range(len(before)) if before[i:] in collapsed(LAKE))
        assert f"{before[begin:]} {pair.answer}." in collapsed(LAKE)


@pytest.mark.parametrize(
    ("sentence", "last"),
    [
        (
            "The fishing season lasts every year until the end of October.",
            None,
        ),  # one word is left: cut earlier
        ("The present bridge was built long ago by the engineer Paul Hahn.", "the engineer Paul Hahn"),
        ("The old people of the village still tell stories about it all the and.", None),
        ("He said it again and again.", None),
        (
            "\u660e\u671d\u5927\u4fee\u957f\u57ce\uff0c\u4eca\u5929\u6240\u89c1\u591a\u662f\u6b64\u65f6\u4fee\u7b51\u3002",
            "\u4eca\u5929\u6240\u89c1\u591a\u662f\u6b64\u65f6\u4fee\u7b51",
        ),
    ],
)
def test_completions(sentence: str, last: str | None) -> None:
    found = completions(sentence)
    if last is None:
        assert found is None or len(found.last.split()) >= 2
    else:
        assert found is not None and found.last == last


def test_what_gives_an_answer_away() -> None:
    assert gives_away("the exceptions are raised", "exception")
    assert gives_away("in 1931 and later", "1931")
    assert not gives_away("the lake lies there", "Mirow")
    assert gives_away("\u6c34\u57df\u306e\u6c34", "\u6c34\u57df")


# ---------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Lind met J. Hahn in the U.S. capital. They talked.", ["Dr. Lind met J. Hahn in the U.S. capital.", "They talked."]),
        ("See fig. 3 for it. Done!", ["See fig. 3 for it.", "Done!"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("It costs 3.5 marks. Or more? Yes.", ["It costs 3.5 marks.", "Or more?", "Yes."]),
        ("Im 19. Jahrhundert war es so. Dann nicht.", ["Im 19. Jahrhundert war es so.", "Dann nicht."]),
        ("\u6c34\u57df\u3067\u3059\u3002\u6b21\u3067\u3059\u300d\u3002", ["\u6c34\u57df\u3067\u3059\u3002", "\u6b21\u3067\u3059\u300d\u3002"]),
        ("\u092f\u0939 \u090f\u0915 \u0939\u0948\u0964 \u0926\u0942\u0938\u0930\u093e \u0939\u0948\u0964", ["\u092f\u0939 \u090f\u0915 \u0939\u0948\u0964", "\u0926\u0942\u0938\u0930\u093e \u0939\u0948\u0964"]),
        ("It goes\non here. And\nends.\n\nA heading\n\nNext one.", ["It goes on here.", "And ends.", "A heading", "Next one."]),
        ("- One item.\n- Two items.", ["- One item.", "- Two items."]),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [sentence.text for sentence in Reading(text).sentences] == sentences


@pytest.mark.parametrize(
    "line",
    [
        "a heading without an end", "x = f(a)[0]; y = {1: 2}.", "too short.", "with_stmt ::= a b c d e.", "(an open bracket is there now.",
        "It lost its blank here.And then it goes on.", "the sentence begins with a small letter here.", ">>> print these words now please.",
    ],
)  # fmt: skip
def test_what_is_no_prose(line: str) -> None:
    assert Reading(line).prose == []


def test_the_tasks_are_in_the_docs() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (comprehension|reflection) \| (.*) \|$",
        PAGE.read_text("utf-8"),
        re.MULTILINE,
    )
    assert rows == [(task.name, task.published, task.group, task.what) for task in TASKS]


# ------------------------------------------------------------------------------------------------------- properties


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(0, 5))
def test_any_text_gives_sound_pairs_or_none(text: str, seed: int) -> None:
    pairs = made(text, seed)
    assert pairs == made(text, seed)
    assert len({normalize(pair.question) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.answer.strip() and pair.question.strip()
        if pair.source != STATEMENTS:
            assert in_text(pair, text)
            assert not holds(normalize(pair.question), normalize(pair.answer))
        assert not pair.options or pair.answer in pair.options


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 12))
def test_fewer_pairs_are_the_first_ones(seed: int, most: int) -> None:
    assert made(LAKE, seed, most) == made(LAKE, seed)[:most]


def test_pairs_depend_on_id_text_and_seed_alone() -> None:
    first = make_pairs(Document("a", LAKE, meta={"x": 1}, source="here"), seed=0)
    assert make_pairs(Document("a", LAKE), seed=0) == first
    assert make_pairs(Document("b", LAKE), seed=0) != first
    assert make_pairs(Document("a", LAKE), seed=1) != first


def test_every_task_is_made_of_the_language_reference() -> None:
    pairs = [
        (name, pair)
        for name in list(topics)[:20]
        for pair in make_pairs(Document(name, topics[name]), seed=0)
    ]
    assert {pair.source.removeprefix("rules:") for _, pair in pairs} == {task.name for task in TASKS}
    assert len(pairs) > 200
    assert all(in_text(pair, topics[name]) for name, pair in pairs if pair.source != STATEMENTS)
    per_task = [
        sum(p.source == f"rules:{task.name}" for n, p in pairs if n == name)
        for name in topics
        for task in TASKS
    ]
    assert max(per_task) <= MOST_OF_A_TASK


def test_a_few_pairs_are_of_different_tasks() -> None:
    for seed in range(5):
        assert len({pair.source for pair in made(LAKE, seed, most=6)}) == 6


def test_every_language_has_every_wording() -> None:
    places = {"entailment": {"sentence"}, "recitation": {"subject"}, "description": {"subject", "keywords"}}
    places |= {task: {"sentence"} for task in ("blank", "choice", "completion")}
    for bank in wordings().values():
        assert bank.keys() == wordings()["en"].keys()
        for task, ways in bank.items():
            assert len(ways) >= 2 and len({json.dumps(way) for way in ways}) == len(ways)
            for way in ways:
                text = way["question"] if isinstance(way, dict) else way
                assert set(re.findall(r"\{(\w+)\}", text)) == places.get(task, set()), text


def test_a_german_text_is_asked_about_in_german() -> None:
    text = "Die Donau ist mit 2857 Kilometern der zweitgr\u00f6\u00dfte Fluss in Europa. Die Donau m\u00fcndet in das Schwarze Meer. Bei Belgrad m\u00fcndet die Save in die Donau."
    assert any("L\u00fccke" in pair.question or "Satz" in pair.question for pair in made(text))
    assert all("text" not in pair.question.split() for pair in made(text))


# ------------------------------------------------------------------------------------------------------ hostile texts

BRICKS = {
    "dots": ".", "dots and words": "a.", "quotes": '"', "quoted": '"a" ', "capitals": "Aa ", "blank lines": "\n \n", "blanks": " ",
    "items": "- a\n", "numbers": "1,", "figures": "12 ", "brackets": "(", "dashes": "a-", "a run of dashes": "-", "han": "\u6c34", "kana": "\u30ab",
    "headings": "# a ", "rules": "===\n", "sentences": "The lake of Mirow was dammed in 1931 by Vera Lind. ", "names": "Vera Lind of Mirow ",
    "different": None, "ends": "\u3002", "abbreviations": "Mr. J. e.g. ", "long lines": "word " * 40 + ".\n",
}  # fmt: skip


@pytest.mark.parametrize("brick", BRICKS)
def test_a_long_text_is_read_in_time(brick: str) -> None:
    if BRICKS[brick] is None:
        text = " ".join(
            f"The mayor of Town{i} opened the gate number {i} in {1600 + i % 400} for Name{i * 7}."
            for i in range(2_000)
        )
    else:
        text = str(BRICKS[brick]) * (99_000 // len(str(BRICKS[brick]))) + "x"
    start = time.thread_time()
    made(text, most=8)
    assert time.thread_time() - start < 6.0  # measured at 2.5 s or less
