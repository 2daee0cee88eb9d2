"""Each pair checked against its text, in the three filters of Genie (arXiv 2401.14367): format, faithfulness, quality.

`check` needs no model; `check_all` with an engine asks, too, whether the answer follows from the text: whether it is
likelier after text and question than after the question alone (the text is needed), and than after the text alone (the
question is). What these can find and what not is measured in `benchmarks/verification.py`; see docs/verify.md.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ojak._settings import Settings
from ojak.augment.pairs import Pair
from ojak.augment.parsed import fault, final_answer
from ojak.augment.rule_tasks import RULES, STATEMENTS, labels
from ojak.augment.verify_gain import gains
from ojak.augment.verify_text import Ground, compared, content, ground, holds, numbers, words_of
from ojak.engines.base import Engine
from ojak.rules import MAGPIE_RULES, RESPONSE_RULES, check_response, is_refusal
from ojak.rules.responses import boilerplate

Filter = Literal["format", "faithfulness", "quality"]
FILTERS: tuple[Filter, ...] = ("format", "faithfulness", "quality")
TAGS = ("<CON>", "</CON>", "<QUE>", "<ANS>", "</END>")
BLOCK = 128  # pairs that an engine is given at once
MOST_KIND_CHARS = 2_000  # of a question that are looked at for what it asks for
MOST_REMEMBERED = 1000  # questions of one text that a later one is compared with

_BROKEN = tuple(
    rule
    for rule in (*MAGPIE_RULES, *RESPONSE_RULES)
    if rule.name.partition("_")[2] in {"special_token", "role_leak", "control_characters", "repeats", "echo"}
)
_OF_QUESTION = tuple(rule for rule in _BROKEN if rule.name.startswith("instruction"))
_OF_ANSWER = tuple(rule for rule in _BROKEN if rule.name.startswith("response"))
_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|old|tall|far)|(?:what|which) (?:year|percentage|percent|number of|amount of))\b",
    re.IGNORECASE,
)
_ASKS_TIME = re.compile(r"\bwhen (?:did|do|does|was|were|is|are|will|has|have|had)\b", re.IGNORECASE)
_ASKS_WORDS = re.compile(r"\A(?:who|whom|whose|where|why)\b", re.IGNORECASE)
_UNCOUNTED = re.compile(
    r"\b(?:few|many|most|all|both|several|half|none|no|one|once|twice|double|every|dozens?|hundreds?|thousands?|"
    r"millions?|billions?|third|quarter|majority|single|pair|couple|century|centuries|decades?)\b",
    re.IGNORECASE,
)
_TIMED = re.compile(
    r"\b(?:during|after|before|until|since|when|while|whenever|upon|once|if|by|at|on|in|early|late|later|now|today|"
    r"never|always|ago|century|centuries|decades?|years?|months?|weeks?|days?|hours?|age|era|period|reign|war|spring|summer|"
    r"autumn|fall|winter|january|february|march|april|may|june|july|august|september|october|november|december|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|morning|evening|night|noon|midnight|first|second|third|last|easter|"
    r"christmas|renaissance|middle ages|upper|lower|end|beginning)\b",
    re.IGNORECASE,
)
_CHOOSES = re.compile(r"\b(?:or|oder|ou|o)\b|\nOptions:", re.IGNORECASE)
_YES_NO_TEXT = """
    yes no true false maybe ja nein oui non sí si verdadero falso vrai faux 예 아니요
"""
_YES_NO = frozenset(_YES_NO_TEXT.split())


class Reason(NamedTuple):
    """Why a pair is no good: the filter that says so, and what it saw."""

    filter: Filter
    what: str


REASONS: dict[str, Reason] = {
    "empty_question": Reason("format", "no question"),
    "empty_answer": Reason("format", "no answer"),
    "too_few_options": Reason("format", "one option"),
    "repeated_option": Reason("format", "an option twice"),
    "answer_not_an_option": Reason("format", "options, and an answer that is none of them"),
    "question_too_long": Reason("format", "a question longer than `most_question_chars`"),
    "answer_too_long": Reason("format", "an answer longer than `most_answer_chars`"),
    "no_content": Reason("format", "an answer without a word that says something"),
    "refusal": Reason("format", "declines to answer, or speaks of itself as a program (English)"),
    **{rule.name: Reason("format", rule.what) for rule in _BROKEN},
    "strange_number": Reason("faithfulness", "a number in the answer that is not in the text"),
    "unsupported": Reason("faithfulness", "too few of the answer's words are in the text (`least_support`)"),
    "scattered": Reason(
        "faithfulness", "its words are in the text, but in no one sentence (`least_together`)"
    ),
    "negation": Reason("faithfulness", "nearly a sentence of the text, with a negation more or less"),
    "false_statement": Reason(
        "faithfulness", "called true what the text does not say, or false what it says"
    ),
    "elsewhere": Reason(
        "faithfulness", "what the question speaks of stands elsewhere in the text (`least_nearness`)"
    ),
    "text_not_needed": Reason("faithfulness", "no likelier with the text than without (`least_text_gain`)"),
    "question_not_needed": Reason(
        "faithfulness", "no likelier with the question than with the text alone (`least_question_gain`)"
    ),
    "unreadable": Reason("faithfulness", "the model could not read the pair: too long for it"),
    "not_checkable": Reason(
        "faithfulness", "yes or no, and no rule that could tell; not wrong, but not verified"
    ),
    "off_text": Reason("quality", "a question with too few words of the text (`least_asked`)"),
    "answer_in_question": Reason("quality", "the question holds the answer"),
    "wrong_kind": Reason(
        "quality", "asks for a number or a time, a person, place or reason, and the answer is none (English)"
    ),
    "duplicate": Reason("quality", "a question that the text was asked before"),
}


class VerifyConfig(Settings):
    """What a pair must reach. Shares are in [0, 1]; gains in nats a token, None: not looked at.

    The defaults are for answers in the words of their text: of such right ones the rules turn away 0.5 % (XQuAD) and
    7 % (TAT-QA). Conclusions in other words need a low `least_support` and `least_together` (docs/verify.md).
    """

    least_support: Annotated[float, Field(ge=0, le=1)] = 0.8
    least_together: Annotated[float, Field(ge=0, le=1)] = 0.7
    least_nearness: Annotated[float, Field(ge=0, le=1)] = 0.35
    least_asked: Annotated[float, Field(ge=0, le=1)] = 0.1
    least_text_gain: float | None = 0.0
    least_question_gain: float | None = -0.5
    most_question_chars: Annotated[int, Field(ge=1)] = 2_000
    most_answer_chars: Annotated[int, Field(ge=1)] = 4_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """ok: True or False, None where nothing could tell. `reason`: a key of `REASONS`, empty for a good pair.

    scores: "support", "together", "nearness", "asked" (of the rules), "text_gain", "question_gain", "given" (of a
    model; nats a token), as far as they were worked out.
    """

    ok: bool | None
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)


def check(text: str, pair: Pair, config: VerifyConfig | None = None) -> Verdict:
    """What the rules say of a pair by itself. Duplicates are a matter of all pairs of a text: `check_all`."""
    config = config or VerifyConfig()
    if reason := _misshapen(pair, config):
        return Verdict(False, reason)
    there = ground(text)
    scores = rule_scores(there, pair)
    reason = _unfaithful(there, pair, scores, config) or _poor(pair, scores, config)
    if reason or not _undecidable(pair):
        return Verdict(not reason, reason, scores)
    return Verdict(None, "not_checkable", scores)


def rule_scores(there: Ground, pair: Pair) -> dict[str, float]:
    """support: 1 for an answer that stands in the text, else the share of its words that do, by weight. together: the
    same, of single sentences. nearness: how much of the question stands around the answer. asked: the share of the
    question's words that the text has."""
    answer = final_answer(pair.answer)
    if _is_bare(pair):
        return {"asked": round(there.asks_of(pair.question), 4)}
    support = 1.0 if there.holds(answer) else min(0.99, there.coverage(answer))
    found = {
        "support": support,
        "together": there.together(answer),
        "nearness": there.nearness(pair.question, answer),
        "asked": there.asks_of(pair.question),
    }
    return {name: round(value, 4) for name, value in found.items()}


def check_all(
    engine: Engine | None, items: Iterable[tuple[str, Pair]], config: VerifyConfig | None = None
) -> Iterator[Verdict]:
    """A verdict for each (text, pair), in order, read as needed. Pairs of one text follow each other.

    The engine reads what passes the rules and was not made by rules. Raises UsageError for one that cannot `score`.
    """
    config = config or VerifyConfig()
    stream = _with_rules(items, config)
    while block := list(islice(stream, BLOCK)):
        verdicts = [verdict for _, _, verdict in block]
        if engine is not None:
            asked = [
                i
                for i, (_, pair, verdict) in enumerate(block)
                if verdict.ok is not False and not _by_rule(pair)
            ]
            read = gains(engine, [(block[i][0], block[i][1]) for i in asked])
            for i, gain in zip(asked, read, strict=True):
                verdicts[i] = _with_gain(verdicts[i], gain, config)
        yield from verdicts


def _by_rule(pair: Pair) -> bool:
    return pair.source.startswith(RULES)


def _with_rules(
    items: Iterable[tuple[str, Pair]], config: VerifyConfig
) -> Iterator[tuple[str, Pair, Verdict]]:
    """Items with the verdicts of the rules, duplicates among the pairs of a text included."""
    before: str | None = None
    asked: deque[str] = deque(maxlen=MOST_REMEMBERED)
    for text, pair in items:
        if text != before:
            before, asked = text, deque(maxlen=MOST_REMEMBERED)
        verdict = check(text, pair, config)
        if verdict.ok is not False:
            question = " ".join(sorted(words_of(compared(pair.question))))
            if question in asked:
                verdict = Verdict(False, "duplicate", verdict.scores)
            else:
                asked.append(question)
        yield text, pair, verdict


def _with_gain(verdict: Verdict, gain: dict[str, float] | None, config: VerifyConfig) -> Verdict:
    if gain is None:
        return Verdict(False, "unreadable", verdict.scores)
    scores = {**verdict.scores, **gain}
    for name, least, reason in (
        ("text_gain", config.least_text_gain, "text_not_needed"),
        ("question_gain", config.least_question_gain, "question_not_needed"),
    ):
        if least is not None and gain[name] < least:
            return Verdict(False, reason, scores)
    return Verdict(True, "", scores)


# ------------------------------------------------------------------------------------------------------ the filters


def _misshapen(pair: Pair, config: VerifyConfig) -> str:
    if reason := fault(pair):
        return reason
    if len(pair.question) > config.most_question_chars:
        return "question_too_long"
    if len(pair.answer) > config.most_answer_chars:
        return "answer_too_long"
    if not _is_bare(pair) and not content(final_answer(pair.answer)):
        return "no_content"
    if is_refusal(pair.answer) or boilerplate(pair.answer):
        return "refusal"
    return (
        check_response(pair.question, rules=_OF_QUESTION, special_tokens=TAGS)
        or check_response(pair.answer, instruction=pair.question, rules=_OF_ANSWER, special_tokens=TAGS)
        or ""
    )


def _unfaithful(there: Ground, pair: Pair, scores: dict[str, float], config: VerifyConfig) -> str:
    answer = final_answer(pair.answer)
    if pair.source == STATEMENTS:
        says_true = answer.casefold() in labels()[0]
        return "" if there.states(pair.question) == says_true else "false_statement"
    if "support" not in scores:
        return ""
    if scores["support"] < 1 and there.strange_numbers(answer):
        return "strange_number"
    if scores["support"] < config.least_support:
        return "unsupported"
    if scores["together"] < config.least_together:
        return "scattered"
    if scores["support"] < 1 and not there.same_sense(answer):
        return "negation"
    return "elsewhere" if scores["nearness"] < config.least_nearness and not _by_rule(pair) else ""


def _poor(pair: Pair, scores: dict[str, float], config: VerifyConfig) -> str:
    answer, question = final_answer(pair.answer), pair.question
    if not _is_bare(pair) and tells(question, answer):
        return "answer_in_question"
    if not _is_bare(pair) and not fits_kind(question, answer):
        return "wrong_kind"
    return "off_text" if scores["asked"] < config.least_asked and not _by_rule(pair) else ""


def tells(question: str, answer: str) -> bool:
    """Whether a question holds its answer, unless it offers a choice."""
    return not _CHOOSES.search(question) and holds(compared(question), compared(answer))


def fits_kind(question: str, answer: str) -> bool:
    """False for a number where an English question asks for a person, a place or a reason, and for none where it asks
    for a number or a time."""
    question = question[:MOST_KIND_CHARS]
    counted = bool(numbers(answer)) or any(character.isdigit() for character in answer)
    if _ASKS_NUMBER.search(question):
        return counted or _UNCOUNTED.search(answer) is not None
    if _ASKS_TIME.search(question) and not _ASKS_WORDS.match(question):
        return counted or _TIMED.search(answer) is not None
    return not _ASKS_WORDS.match(question) or any(character.isalpha() for character in answer)


def _is_bare(pair: Pair) -> bool:
    """Whether the answer is a yes or no, which stands in no text."""
    return pair.source == STATEMENTS or _undecidable(pair)


def _undecidable(pair: Pair) -> bool:
    """Whether the answer is a bare yes or no, of which no rule can tell whether it is right."""
    return pair.source != STATEMENTS and compared(final_answer(pair.answer)) in _YES_NO


# ------------------------------------------------------------------------------------------------------- the counts


def counts(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """How many pairs came to each filter, passed it, and why not: {filter: {"in", "passed", "reasons": {code: n}}};
    and "verified", "unchecked" and "rejected" of all."""
    total, reasons, unchecked = 0, Counter[str](), 0
    for verdict in verdicts:
        total += 1
        unchecked += verdict.ok is None
        reasons.update([verdict.reason] if verdict.ok is False else [])
    found: dict[str, Any] = {}
    left = total
    for name in FILTERS:
        own = {code: n for code, n in sorted(reasons.items()) if REASONS[code].filter == name}
        found[name] = {"in": left, "passed": left - sum(own.values()), "reasons": own}
        left = found[name]["passed"]
    return {**found, "verified": left - unchecked, "unchecked": unchecked, "rejected": total - left}
