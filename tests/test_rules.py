"""Rules against sampled text. The labelled rows in data/magpie_labelled.jsonl were sampled from
SmolLM2-135M-Instruct (Apache-2.0) after its pre-query prefix at the temperatures noted in them, and labelled by
hand: keep what a person could answer; else why not. "nonsense" (fluent but meaningless) needs a model to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.rules import (
    MAGPIE_RULES,
    MAX_CHARACTERS,
    RESPONSE_RULES,
    Labelled,
    Rule,
    check_response,
    is_refusal,
    measure,
    sanitize,
)

LABELLED = Path(__file__).parent / "data" / "magpie_labelled.jsonl"


def _labelled() -> list[Labelled]:
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").strip().split("\n")]
    return [Labelled(row["text"], row["finish_reason"], row["keep"], row["why"]) for row in rows]


def test_rules_meet_their_floors_on_sampled_instructions() -> None:
    rows = _labelled()
    measured = measure(rows)
    print(measured)
    assert len(rows) >= 150
    assert measured.precision >= 0.97
    assert measured.recall >= 0.45  # half of what is unfit is nonsense, which no rule sees
    assert measured.missed["cut"][0] == 0
    assert measured.missed["voice"][0] == 0
    assert all(right >= 0.9 * fired for right, fired in measured.by_rule.values()), measured.by_rule


def test_measure_counts_by_rule_and_by_reason() -> None:
    rows = [
        Labelled("", "stop", keep=False, why="empty"),
        Labelled("", "stop", keep=True),
        Labelled("How do birds sleep?", "stop", keep=False, why="dull"),
        Labelled("How do birds sleep?", "stop", keep=True),
    ]
    measured = measure(rows)
    assert (measured.precision, measured.recall) == (0.5, 0.5)
    assert measured.by_rule == {"instruction_empty": (1, 2)}
    assert measured.missed == {"empty": (0, 1), "dull": (1, 1)}


KEPT = [
    "How do birds sleep?",
    "how do i undo a commit in git",
    "What is 2+2? Give only the number.",
    "Is it legal? I live in Spain, and I rent. Answer in two sentences.",
    "Why does this fail?\n\n```python\nfor i in range(3):\n    print(i)\n```",
    "Which city is largest?\n\n| city | people |\n|---|---|\n| A | 10 |\n| B | 12 |",
    "Which of these is a prime?\nA: 4\nB: 7\nC: 9",
    "Write a job advert for a legal assistant.",
    "My assistant keeps forgetting my name. What can I do?",
    "Summarize the following text: Birds sleep with one half of the brain awake.",
    f"Summarize the text below in one line.\n{'Birds sleep with half the brain awake. ' * 3}So it is.\n\nSummary:",
    "Fill in this form for a fictional person.\nName:\nAge:\nCity:",
    "Grade this student's answer.\nQuestion: What is 2+2?\nAnswer: 5",
    "Q: What is 2+2?\nA: 4\nQ: What is 3+3?\nA:",
    "Rewrite the conversation politely.\n\nUser: fix it\nAssistant: How can I help you?",
    "As an AI, what do you think of poetry?",
    "I am an AI researcher looking for data on bird calls.",
    "Here is my code: x = 1. What does it do?",
    "Translate 'привет' into English and Japanese.",
    "\u4f60\u597d\uff0c\u8bf7\u95ee\u9e1f\u600e\u4e48\u7761\u89c9\uff1f",
    "\u092a\u0915\u094d\u0937\u0940 \u0915\u0948\u0938\u0947 \u0938\u094b\u0924\u0947 \u0939\u0948\u0902?",
    "Wie schlafen die V\u00f6gel, und warum fallen sie nicht vom Ast?",
    "die V\u00f6gel schlafen auf dem Ast",
    "I'm moving to a new city and I have not found a flat yet.",
    "-5 + 3 = ?",
    "The number 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 in my table looks wrong. Why?",
    "Sort these words: a b c d e f g h i j k",
    "Explain the \u03b1-helix and the \u03b2-sheet.",
    "Make bzwkrt rhyme with xkcdqf, please, in a poem of ten short lines about the sea and about the wind.",
]


@pytest.mark.parametrize("text", KEPT)
def test_a_request_passes_unchanged(text: str) -> None:
    found = sanitize(text)
    assert (found.text, found.edits, found.reason) == (text, (), None)


REJECTED = [
    ("", "instruction_empty"),
    (" \n\t ", "instruction_empty"),
    ("?!", "instruction_too_short"),
    ("Birds", "instruction_too_short"),
    ("x" * (MAX_CHARACTERS + 1), "instruction_too_long"),
    ("How do birds sleep?<|im_start|>assistant", "instruction_role_leak"),
    ("How do birds sleep?\nassistant\nOn one leg.", "instruction_role_leak"),
    ("How do birds sleep?\n### Human:\nAnd fish?", "instruction_role_leak"),
    ("How do birds sleep? [/INST] On one leg.", "instruction_role_leak"),
    ("How do birds sleep?\nAssistant: On one leg.", "instruction_role_leak"),
    ("How do birds\ufffd sleep?", "instruction_control_characters"),
    ("How do birds sleep?\x00", "instruction_control_characters"),
    ("How do \u202ebirds sleep?", "instruction_control_characters"),
    ("How do \ud800 birds sleep?", "instruction_control_characters"),
    ("Tell me " + "more and " * 30 + "more.", "instruction_repeats"),
    ("Whyyyyyyyyyyyyyyyyyyyyy do birds sleep?", "instruction_repeats"),
    ("\u9e1f\u600e\u4e48\u7761\u89c9" * 12, "instruction_repeats"),
    ("Can \u0441\u0442\u0440ing be \u043f\u0440inted \u0432\u044bod?", "instruction_mixed_scripts"),
    ("\u0441\u043d\u0435\u0433 snow \u96ea\u82b1 \u05e9\u05dc\u05d2 melts?", "instruction_mixed_scripts"),
    ("@@## a %% ^^ b && ** (( )) !! ~~ c ++ == ~~ ||", "instruction_gibberish"),
    ("Is xkcdqfg a bzwkrtz or a hgfdwqr?", "instruction_gibberish"),
    ("Sure, here is a poem about birds.", "instruction_assistant_voice"),
    ("As an AI language model, I cannot sleep.", "instruction_assistant_voice"),
    ("I'd be happy to help you with that!", "instruction_assistant_voice"),
    ("I\u2019d be happy to help you with that!", "instruction_assistant_voice"),
    ("Hello! How can I assist you today?", "instruction_assistant_voice"),
    ("I'm sorry, but I can't help with that.", "instruction_assistant_voice"),
    ("Is rain a virus? Absolutely not. It is water.", "instruction_assistant_voice"),
    ("Summarize this text for me:", "instruction_content_missing"),
    ("Summarize this text for me:\n\n**", "instruction_content_missing"),
    ("Please summarize the following article for a child.", "instruction_content_missing"),
    ("I have a quiz below, can you help me with it?", "instruction_content_missing"),
    ("Tell me how birds sleep, and", "instruction_fragment"),
    ("Tell me how birds sleep (", "instruction_fragment"),
    (", which is the largest of the birds in the region.", "instruction_fragment"),
    ("which is used for the cleaning of large birds.", "instruction_fragment"),
    ("The founder of the town was known for his birds.", "instruction_no_request"),
]


@pytest.mark.parametrize(("text", "reason"), REJECTED)
def test_what_is_no_request_is_rejected_with_its_reason(text: str, reason: str) -> None:
    assert sanitize(text).reason == reason


def test_a_text_stopped_by_the_limit_is_rejected() -> None:
    assert sanitize("How do birds sleep?", "length").reason == "instruction_cut"
    assert sanitize("How do birds sleep?", "stop").reason is None


def test_special_tokens_of_the_tokenizer_are_rejected_and_blank_ones_ignored() -> None:
    assert sanitize("How do <bird> sleep?", special_tokens=["<bird>"]).reason == "instruction_special_token"
    assert sanitize("How do birds sleep?", special_tokens=[" ", "\n", "<bird>"]).reason is None


EDITED = [
    ("  How do birds sleep? \r\n", "How do birds sleep?", ("whitespace",)),
    ("How?  \n\n\n\nReally, how?", "How?\n\nReally, how?", ("whitespace",)),
    ("Question: How do birds sleep?", "How do birds sleep?", ("label",)),
    ("**Prompt:** How do birds sleep?", "How do birds sleep?", ("label",)),
    ("**Task**: Draw a bird.", "Draw a bird.", ("label",)),
    ("## Problem\n\nHow do birds sleep?", "How do birds sleep?", ("label",)),
    ("### Question 3: How do birds sleep?", "How do birds sleep?", ("label",)),
    ("Q1. How do birds sleep?", "How do birds sleep?", ("label",)),
    (
        "Writing prompt: A bird that sleeps. Tell its story.",
        "A bird that sleeps. Tell its story.",
        ("label",),
    ),
    ("1. How do birds sleep?", "How do birds sleep?", ("enumerator",)),
    ("- How do birds sleep?", "How do birds sleep?", ("enumerator",)),
    ('"How do birds sleep?"', "How do birds sleep?", ("quotes",)),
    ('"How do birds sleep?', "How do birds sleep?", ("quotes",)),
    ("\u201cHow do birds sleep?\u201d", "How do birds sleep?", ("quotes",)),
    ("**How do birds sleep?**", "How do birds sleep?", ("emphasis",)),
    ('1. **Question:** "How do birds sleep?"', "How do birds sleep?", ("enumerator", "label", "quotes")),
    ('**Task: "Draw a bird."**', "Draw a bird.", ("emphasis", "label", "quotes")),
    ("What is 2+2?\nAnswer: 4", "What is 2+2?", ("answer",)),
    ("What is 2+2?\n### Response:\n4", "What is 2+2?", ("answer",)),
    ("What is 2+2?\n\n**Solution:** 4", "What is 2+2?", ("answer",)),
    ("What is 2+2?\nExplanation: two and two", "What is 2+2?", ("answer",)),
    ("What is 2+2?\nThe correct answer is 4.", "What is 2+2?", ("answer",)),
    (
        "What is 2+2? Use one word.\nA) 3\nB) 4\nCorrect answer: B",
        "What is 2+2? Use one word.\nA) 3\nB) 4",
        ("answer",),
    ),
    ("Find x if 2x = 4.\n\n## Step 1: Divide by 2", "Find x if 2x = 4.", ("answer",)),
    ("How do birds sleep?\n\nSure, here is how.", "How do birds sleep?", ("answer",)),
    ("Q: What is 2+2?\nA: 4", "What is 2+2?", ("answer", "label")),
    ("Question: What is 2+2?\nAnswer:", "What is 2+2?", ("answer", "label")),
]


@pytest.mark.parametrize(("raw", "text", "edits"), EDITED)
def test_edits_keep_the_request_and_name_themselves(raw: str, text: str, edits: tuple[str, ...]) -> None:
    found = sanitize(raw)
    assert (found.text, set(found.edits), found.reason) == (text, set(edits), None)


def test_a_question_whose_answer_ran_into_the_limit_is_whole_once_cut() -> None:
    found = sanitize("What is 2+2?\nAnswer: It is fo", "length")
    assert (found.text, found.reason) == ("What is 2+2?", None)


@pytest.mark.parametrize(
    "text",
    [
        "1. Boil water.\n2. Add tea.\nWhat comes third?",
        '"Yes," he said. What did he mean by "yes"?',
        "**Bold** and **bolder**: what is the difference?",
        "def f():\n    return 1\n\nWhat does it return?",
    ],
)
def test_structure_that_belongs_to_the_request_stays(text: str) -> None:
    assert sanitize(text).text == text


def test_indentation_of_pasted_code_stays() -> None:
    assert (
        sanitize("\n    if x:\n        y()\nWhat is wrong?\n").text
        == "    if x:\n        y()\nWhat is wrong?"
    )


def test_rules_are_data() -> None:
    names = [rule.name for rule in (*MAGPIE_RULES, *RESPONSE_RULES)]
    assert len(set(names)) == len(names)
    assert all(rule.what and rule.why for rule in (*MAGPIE_RULES, *RESPONSE_RULES))
    no_birds = Rule(
        "bird", "reject", "a bird", "for this test", lambda draft: "bird" if "bird" in draft.text else None
    )
    assert sanitize("How do birds sleep?", rules=[no_birds]).reason == "bird"
    assert sanitize("1. How do fish sleep?", rules=[no_birds]).text == "1. How do fish sleep?"


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=()), max_size=300), st.sampled_from(["stop", "length"])
)
def test_any_text_gets_an_outcome_with_known_codes(text: str, finish_reason: str) -> None:
    found = sanitize(text, finish_reason)
    actions = {rule.name: rule.action for rule in MAGPIE_RULES}
    assert found.reason is None or actions[found.reason] == "reject"
    assert all(actions[name] in ("strip", "cut") for name in found.edits)
    assert (found.edits != ()) == (found.text != text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["1. ", "**", "Question: ", '"', "\n", "Answer: ", "How do birds sleep? ", "4 "]),
        max_size=9,
    )
)
def test_sanitizing_twice_changes_nothing_more(parts: list[str]) -> None:
    once = sanitize("".join(parts))
    assert once.reason is not None or sanitize(once.text).text == once.text


RESPONSES = [
    ("", "stop", "response_empty"),
    ("On one leg, and", "length", "response_cut"),
    ("On one leg.<|im_end|>", "stop", "response_special_token"),
    ("On one leg.\nuser\nAnd fish?", "stop", "response_role_leak"),
    ("On one \ufffd leg.", "stop", "response_control_characters"),
    ("On one leg. " + "It is one leg. " * 20, "stop", "response_repeats"),
    ("How do birds sleep?", "stop", "response_echo"),
    ("how do  birds sleep? Yes.", "stop", "response_echo"),
    ("x " * MAX_CHARACTERS, "stop", "response_too_long"),
    ("On one leg.", "stop", None),
    ("How do birds sleep? Most of them with one half of the brain awake.", "stop", None),
    ("| a | b |\n|---|---|\n" + "".join(f"| {n} | 0 |\n" for n in range(40)), "stop", None),
]


@pytest.mark.parametrize(("text", "finish_reason", "reason"), RESPONSES)
def test_responses(text: str, finish_reason: str, reason: str | None) -> None:
    tokens = ["<|im_start|>", "<|im_end|>"]
    assert (
        check_response(text, finish_reason, instruction="How do birds sleep?", special_tokens=tokens)
        == reason
    )


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot provide instructions for that.", True),
        ("As an AI language model, I am unable to assist with this request.", True),
        ("Unfortunately, I won't be able to do that. I'm not able to share private data.", False),
        ("Birds can't help it: they sleep on one leg.", False),
        ("Sorry is a song by Justin Bieber.", False),
        ("Sure! Here is how.", False),
    ],
)
def test_refusals_are_recognised_at_the_opening(text: str, refuses: bool) -> None:
    assert is_refusal(text) is refuses
