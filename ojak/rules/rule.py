"""What a rule is, and the looks at a text that several rules share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_CHARACTERS = 100_000  # longer than any instruction worth having

Action = Literal["reject", "cut", "strip"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A text on its way through the rules. `cut`: a rule has already removed everything after its request."""

    text: str
    finish_reason: str = "stop"
    special_tokens: tuple[str, ...] = ()
    instruction: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One check. `apply` returns None where the rule has nothing to say; else, for "reject", the evidence, and for
    "cut" (drops what follows the request) and "strip" (drops what surrounds it) the text that is left."""

    name: str
    action: Action
    what: str
    why: str
    apply: Callable[[Draft], str | None]


QUESTION_MARKS = re.compile(r"[?\uff1f\u061f\u037e]")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W\d_]+)?")
WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # kana and Han: no spaces between words
# Words that ask, wherever they stand: interrogatives and courtesies, writer and reader, verbs that open instructions.
_ASKING = """
    how what whats why please help need want wish looking wonder wondering curious suppose assume imagine pretend
    consider should i me my mine we our us you your let's
    act add advise analyse analyze answer apply arrange assess assign brainstorm build calculate
    categorise categorize change check choose classify combine come compare compile complete compose
    compute conduct construct continue contrast convert correct count craft create critique cut
    debate debug decide define delete demonstrate derive describe design detect determine develop
    devise differentiate discover discuss divide draft draw edit elaborate estimate evaluate examine
    explain explore express extract factor fill find fix form formulate generate get give go group
    guess highlight identify illustrate implement improve infer insert interpret invent join judge
    justify label list locate look make match modify name note optimise optimize order organise
    organize outline paraphrase parse perform pick plan play predict prepare present print produce
    proofread propose prove provide rank rate read rearrange recommend reduce refactor rephrase
    replace research respond restate return reverse review revise reword rewrite say select separate
    show simplify solve sort speak specify spell split standardise standardize state suggest
    summarise summarize tag tell test think transform translate try turn update use verify view
    visualise visualize write
"""
_ASKING_WORDS = frozenset(_ASKING.split())
_SURELY_ENGLISH = frozenset(
    {"the", "and", "with", "this", "that", "from", "for", "which", "these", "those", "their", "there"}
)
_ALSO_ENGLISH = """
    of to is are was were in on at by it its as an a be has have had he she they his her not or but been will would
"""
_ENGLISH = _SURELY_ENGLISH | frozenset(_ALSO_ENGLISH.split())


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def word_count(text: str) -> int:
    """Words, two characters of kana or Han counting as one."""
    wide = len(WIDE.findall(text))
    return (wide + 1) // 2 + (len(words(WIDE.sub(" ", text))) if wide else len(words(text)))


def asks(text: str) -> bool:
    """Whether anything in an English text asks, instructs, or speaks of its writer or to its reader."""
    return bool(QUESTION_MARKS.search(text)) or any(_is_asking(word) for word in words(text))


def opens_with_request(text: str) -> bool:
    """Whether the first word asks or instructs."""
    first = next(iter(words(text[:80])), "")
    return _is_asking(first)


def _is_asking(word: str) -> bool:
    """Also in contractions: "I'm", "what's"."""
    lower = plain(word).lower()
    return lower in _ASKING_WORDS or lower.partition("'")[0] in _ASKING_WORDS


def is_english(text: str) -> bool:
    """Whether common English words make up enough of it; short texts without one count as unknown."""
    found = [word.lower() for word in words(text)]
    common = sum(word in _ENGLISH for word in found)
    return common >= 0.15 * len(found) and any(word in _SURELY_ENGLISH for word in found)


def plain(text: str) -> str:
    """`text` with straight apostrophes, for patterns."""
    return text.replace("\u2019", "'")
