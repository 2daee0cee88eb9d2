"""Rewards that rules give an answer: nobody is asked, no model judges. `rules:SPEC` names them.

    SPEC = TERM, several joined by " + "        for example  rules:words=20-40 + 0.5*stop + 0.5*no-repetition
    TERM = [WEIGHT*]RULE[=ARGUMENT]             weight 1 where none is given; it may be negative
    RANGE = LEAST-MOST, LEAST-, -MOST or N      (both ends belong to it; N: exactly so many)

Each rule gives a number from 0 to 1; the reward is their sum, each times its weight. A range gives 1 inside; outside it
falls in a line, to 0 where nothing is there, or at twice the most: so an answer that is merely nearer earns more.
`RULES` is the table of all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ojak._settings import meant
from ojak.errors import UsageError
from ojak.judge.language import identify, known_languages
from ojak.rules import check_response, is_refusal
from ojak.rules.form import bullets, has_word, is_json_object, letters, lines, paragraphs, sentences
from ojak.rules.responses import boilerplate, format_problems, repetition
from ojak.rules.rule import MAX_CHARACTERS, word_count

PREFIX = "rules:"
JOINT = re.compile(r"\s\+\s")
TERM = re.compile(
    r"(?:(?P<weight>-?[0-9]{1,6}(?:\.[0-9]{1,6})?)\s*\*\s*)?(?P<rule>[a-z][a-z-]{0,30})(?:=(?P<argument>.{1,200}))?",
    re.DOTALL,
)
RANGE = re.compile(r"(?P<exactly>[0-9]{1,6})|(?P<least>[0-9]{1,6})?-(?P<most>[0-9]{1,6})?")
LANGUAGE = re.compile(r"[a-z]{2}")


class Draft(NamedTuple):
    """An answer without its stop token, and whether it had one."""

    text: str
    stopped: bool


Value = Callable[[Draft], float]


class Kind(NamedTuple):
    """A rule: what it takes ("", "RANGE", "TEXT", "LANGUAGE"), what makes it of its argument, what it is about."""

    takes: str
    make: Callable[[str], Value]
    what: str


@dataclass(frozen=True, slots=True)
class Range:
    """From `least` to `most` (None: without end)."""

    least: int
    most: int | None

    def value(self, count: float) -> float:
        """1 inside, from 1 to 0 below and above."""
        if count < self.least:
            return count / self.least
        if self.most is not None and count > self.most:
            return max(0.0, 1 - (count - self.most) / max(1, self.most))
        return 1.0


def parse_range(text: str) -> Range:
    """The range that is written so. Raises UsageError."""
    found = RANGE.fullmatch(text)
    if found is None or text == "-":
        raise UsageError(f"{text[:40]!r} is no range", fix="write 20-40, 20-, -40 or 30")
    exactly = found["exactly"]
    least, most = (exactly, exactly) if exactly else (found["least"], found["most"])
    made = Range(int(least or 0), int(most) if most else None)
    if made.most is not None and made.most < made.least:
        raise UsageError(f"the range {text!r} is empty", fix=f"write {made.most}-{made.least}")
    return made


def _counted(count: Callable[[str], float]) -> Callable[[str], Value]:
    def make(argument: str) -> Value:
        allowed = parse_range(argument)
        return lambda draft: allowed.value(count(draft.text))

    return make


def _flag(check: Callable[[str], bool]) -> Callable[[str], Value]:
    return lambda _: lambda draft: float(check(draft.text))


def _with_text(check: Callable[[str, str], bool]) -> Callable[[str], Value]:
    return lambda argument: lambda draft: float(check(draft.text, argument))


def _language(argument: str) -> Value:
    if not LANGUAGE.fullmatch(argument) or argument not in known_languages():  # else no answer would earn it
        raise UsageError(f"{argument[:40]!r} is no language", fix="give an ISO 639-1 code such as en")

    def value(draft: Draft) -> float:
        code, sure = identify(draft.text)
        return sure if code == argument else 0.0

    return value


def _accepted(draft: Draft) -> float:
    return float(check_response(draft.text, "stop" if draft.stopped else "length") is None)


RULES: Mapping[str, Kind] = {
    "words": Kind("RANGE", _counted(word_count), "words"),
    "characters": Kind("RANGE", _counted(lambda text: len(text.strip())), "characters"),
    "sentences": Kind("RANGE", _counted(sentences), "sentences"),
    "lines": Kind("RANGE", _counted(lambda text: len(lines(text))), "lines that are not blank"),
    "paragraphs": Kind("RANGE", _counted(paragraphs), "blocks between empty lines"),
    "bullets": Kind("RANGE", _counted(bullets), "lines that begin with a bullet"),
    "stop": Kind("", lambda _: lambda draft: float(draft.stopped), "it ended by itself, not at the most tokens"),
    "no-repetition": Kind("", lambda _: lambda draft: 1 - repetition(draft.text), "1 - the share of repeated 4-grams"),
    "language": Kind("LANGUAGE", _language, "how sure it is of this language (ISO 639-1)"),
    "json": Kind("", _flag(is_json_object), "a JSON object and nothing else"),
    "sound": Kind("", _flag(lambda text: not format_problems(text)), "no open fence, broken code or wrong sum"),
    "accepted": Kind("", lambda _: _accepted, "none of the rules that reject a response (ojak.rules) applies"),
    "no-boilerplate": Kind("", _flag(lambda text: boilerplate(text) is None), "no talk of itself as a program"),
    "no-refusal": Kind("", _flag(lambda text: not is_refusal(text)), "it does not decline"),
    "no-commas": Kind("", _flag(lambda text: "," not in text), "no commas"),
    "lower-case": Kind("", _flag(lambda text: letters(text) == letters(text).lower()), "no capital letters"),
    "upper-case": Kind("", _flag(lambda text: letters(text) == letters(text).upper()), "capital letters alone"),
    "has": Kind("TEXT", _with_text(has_word), "it has this word"),
    "avoids": Kind("TEXT", _with_text(lambda text, word: not has_word(text, word)), "it does not have this word"),
    "starts": Kind("TEXT", _with_text(lambda text, start: text.lstrip().startswith(start)), "it starts with this"),
    "ends": Kind("TEXT", _with_text(lambda text, end: text.rstrip().endswith(end)), "it ends with this"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """A rule with its argument, its weight, and what finds its value."""

    weight: float
    rule: str
    argument: str
    value: Value

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"{self.weight:g}*"
        return f"{weight}{self.rule}" + (f"={self.argument}" if self.argument else "")


@dataclass(frozen=True, slots=True)
class Reward:
    """The weighted sum of rules. Called with an answer's text and whether it stopped by itself, it gives its reward."""

    terms: tuple[Term, ...]

    def __call__(self, text: str, stopped: bool) -> float:
        draft = Draft(text[:MAX_CHARACTERS], stopped)
        return sum(term.weight * term.value(draft) for term in self.terms)

    def __str__(self) -> str:
        return PREFIX + " + ".join(map(str, self.terms))


def parse_reward(text: str) -> Reward:
    """The reward that is written as `rules:SPEC`. Raises UsageError that names what is wrong."""
    if not text.startswith(PREFIX):
        raise UsageError(
            f"{text[:80]!r} is no reward", fix=f"write {PREFIX}RULE[=ARGUMENT], such as {PREFIX}words=20-40"
        )
    return Reward(tuple(_term(part.strip()) for part in JOINT.split(text.removeprefix(PREFIX))))


def _term(text: str) -> Term:
    found = TERM.fullmatch(text)
    if found is None:
        raise UsageError(f"{text[:80]!r} is no rule", fix="write [WEIGHT*]RULE[=ARGUMENT]")
    kind = RULES.get(found["rule"])
    if kind is None:
        raise UsageError(f"there is no rule {found['rule']!r}", fix=meant(found["rule"], list(RULES)))
    argument = found["argument"] or ""
    if bool(argument) != bool(kind.takes):
        wanted = f"{found['rule']}={kind.takes}" if kind.takes else found["rule"]
        raise UsageError(f"{text[:80]!r} cannot be a rule", fix=f"write {wanted}")
    return Term(float(found["weight"] or 1), found["rule"], argument, kind.make(argument))
