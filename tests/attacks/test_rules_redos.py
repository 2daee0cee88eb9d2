"""Sampled text is hostile input: no pattern and no rule may take more than linear time on it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from ojak import rules
from ojak.rules import (
    MAGPIE_RULES,
    RESPONSE_RULES,
    Draft,
    check_response,
    contamination,
    edits,
    is_refusal,
    privacy,
    rejections,
    rule,
    sanitize,
    secrets,
)
from ojak.similarity import text as similarity_text

MEGABYTE = 1_000_000
SECONDS = 1.0
SHAPES = {
    "spaces": " " * MEGABYTE + "x",
    "newlines": "\n" * MEGABYTE + "x",
    "letters": "a" * MEGABYTE + "!",
    "consonants": "b" * MEGABYTE + "a",
    "words": "a " * (MEGABYTE // 2),
    "quotes": "' " * (MEGABYTE // 2),
    "colons": ":" * MEGABYTE + "x",
    "markup": "**__##>> " * (MEGABYTE // 9),
    "answers": "z y x\nAnswer :\n" * (MEGABYTE // 15),
    "choices": "A:\n" * (MEGABYTE // 3),
    "near answers": "the correct answer " * (MEGABYTE // 19),
    "my following": "the following text following " * (MEGABYTE // 29),
    "below": "the a-a- a-a- below_ " * (MEGABYTE // 21),
    "sorry": "sorry, i am sorry but i " * (MEGABYTE // 24),
    "roles": "   assistant   x\n" * (MEGABYTE // 17),
    "open tokens": "<|im_start" * (MEGABYTE // 10),
    "code": "x = ; \n\n" * (MEGABYTE // 8),
    "brackets": "([{" * (MEGABYTE // 3),
    "numbers": "1. 2) -3.5,4 " * (MEGABYTE // 13),
    "wide": "\u6f22\u5b57" * (MEGABYTE // 2),
    "alphabets": "ab\u0436\u0437\u03b1\u03b2 " * (MEGABYTE // 7),
}


def _patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    for module in (rule, edits, rejections, privacy, secrets, contamination, similarity_text):
        yield from _patterns_of(module)


def _patterns_of(module: ModuleType) -> Iterator[tuple[str, re.Pattern[str]]]:
    for name, value in vars(module).items():
        if isinstance(value, re.Pattern):
            yield f"{module.__name__}.{name}", value
        elif isinstance(value, dict) and not name.startswith("__"):
            yield from ((f"{name}[{key}]", v) for key, v in value.items() if isinstance(v, re.Pattern))


def _scan(pattern: re.Pattern[str], text: str) -> None:
    for _ in pattern.finditer(text):
        pass


def _elapsed(function: object, *arguments: object) -> float:
    """Seconds of this thread's own CPU time: other work on the machine must not fail the test."""
    assert callable(function)
    start = time.thread_time()
    function(*arguments)
    return time.thread_time() - start


def test_the_walk_finds_the_shipped_patterns() -> None:
    assert len(dict(_patterns())) >= 30


@pytest.mark.parametrize("shape", ["code", "alphabets", "words"])
def test_every_pattern_takes_a_megabyte_in_a_second(shape: str) -> None:
    slow = {name: took for name, p in _patterns() if (took := _elapsed(_scan, p, SHAPES[shape])) > SECONDS}
    assert slow == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pattern_is_linear(shape: str) -> None:
    """A tenth of the text, in a tenth of the time and a margin; a quadratic pattern takes many seconds."""
    text = SHAPES[shape][-MEGABYTE // 10 :]
    slow = {name: took for name, p in _patterns() if (took := _elapsed(_scan, p, text)) > SECONDS / 5}
    assert slow == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rule_is_bounded_at_the_longest_text_it_sees(shape: str) -> None:
    draft = Draft(SHAPES[shape][: rules.MAX_CHARACTERS], instruction="Say it.")
    for one in (*MAGPIE_RULES, *RESPONSE_RULES):
        assert _elapsed(one.apply, draft) < SECONDS, one.name


@pytest.mark.parametrize("shape", SHAPES)
def test_a_megabyte_is_answered_at_once(shape: str) -> None:
    assert _elapsed(sanitize, SHAPES[shape]) < SECONDS
    assert _elapsed(check_response, SHAPES[shape]) < SECONDS
    assert _elapsed(is_refusal, SHAPES[shape]) < SECONDS
    assert sanitize(SHAPES[shape]).reason == "instruction_too_long"


def test_a_pattern_with_a_nested_repeat_would_fail_here() -> None:
    """The clock works: a quadratic pattern breaks the limit already on a fifth of the shorter text."""
    assert _elapsed(re.compile(r"a+b").search, "a" * (MEGABYTE // 50)) > SECONDS / 5
