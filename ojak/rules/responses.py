"""Looks at a response that need no model: does it loop, does it speak of itself, is what it shows sound?

Like all rules these take time linear in the text, and look at `MAX_CHARACTERS` of it at most.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from fractions import Fraction

import orjson

from ojak.rules.rule import MAX_CHARACTERS, WIDE, plain, words

GRAM_WORDS = 4
_MOST_WORDS = 20_000
_MOST_CODE = 20_000  # characters of a block that are parsed
_MOST_NESTING = 60  # brackets and operators in a row that the parser of Python may be given
_MOST_PROBLEMS = 5

_SELF = re.compile(
    r"""\b(?:as|i'm|i[ ]am)[ ](?:just[ ]|only[ ])?an?[ ](?:ai\b|artificial[ ]intelligence|(?:large[ ])?language[ ]model)
      | \bmy[ ](?:knowledge|training)(?:[ ]data)?[ ](?:cutoff|cut-off|ends|only[ ]goes)\b
      | \bi[ ](?:do[ ]not|don't)[ ]have[ ](?:personal[ ](?:experiences?|opinions?|feelings?|beliefs?)|real-time)
      | \bi[ ]was[ ](?:trained|developed|created)[ ]by[ ](?:openai|meta|google|anthropic|alibaba|hugging[ ]?face)\b
      | \A(?:i[ ]hope[ ]this[ ]helps|let[ ]me[ ]know[ ]if[ ]you)""",
    re.VERBOSE | re.IGNORECASE,
)
# One of these stands in whatever the pattern above finds: looked for first, as that is twenty times as fast.
_SELF_HINTS = (
    " an ai", "artificial intelligence", "language model", "knowledge", "training", "have personal", "have real-time",
    "i was trained", "i was developed", "i was created", "i hope this helps", "let me know if you",
)  # fmt: skip
_FENCE = re.compile(
    r"^[ \t]{0,12}(?P<marks>`{3,}|~{3,})[ \t]{0,4}(?P<language>[\w+#.-]{0,20})[^\n`]{0,200}$", re.MULTILINE
)
_PYTHON, _JSON = {"python", "py", "python3"}, {"json"}
_SHELL_LINE = re.compile(r"^\s{0,80}(?:>>> |%|!|\$ |In \[)", re.MULTILINE)
_CHAIN = re.compile(r"(?:[-+~][ \t\\\n]{0,9}){60}|(?:\b(?:not|await|lambda:)[ \t\\\n]{1,9}){60}")
_INLINE_CODE = re.compile(r"`[^`\n]{0,500}`")
_NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,10})?"
_SUM = re.compile(
    rf"(?<![\w.,])[$€£]?{_NUMBER}(?:[ ]?[-+*/×÷−·][ ]?[$€£]?{_NUMBER}){{1,12}}[ ]?=[ ]?[-−]?[$€£]?{_NUMBER}"
    r"(?![\w,.]?\d|[ ]?[-+*/×÷−·^%=°:!(\[]|[ ]?(?:r|rem|remainder|mod)\b|[a-z²³])",
    re.IGNORECASE,
)
_PART = re.compile(rf"{_NUMBER}|[-+*/×÷−·]")
_BREAKS_A_SUM = frozenset("+*/×÷−·^(%<>,:_\\")  # before it: then the first number is not where the sum begins


def repetition(text: str) -> float:
    """The share of the runs of four words that occurred before in the text: 0 for none, towards 1 for a loop.

    One minus distinct-4 (Li et al. 2016, arXiv:1510.03055, with n = 4). A text of fewer words has 0.
    """
    spaced = WIDE.sub(r" \g<0> ", text[:MAX_CHARACTERS].lower())
    found = words(spaced)[:_MOST_WORDS]
    grams = len(found) - GRAM_WORDS + 1
    if grams <= 1:
        return 0.0
    distinct = len(set(zip(*(found[offset:] for offset in range(GRAM_WORDS)), strict=False)))
    return 1.0 - distinct / grams


def boilerplate(text: str) -> str | None:
    """The phrase in which a model speaks of itself as a program, in English; None if there is none."""
    text = plain(text[:MAX_CHARACTERS])
    lower = text.lower()
    if not any(hint in lower for hint in _SELF_HINTS):
        return None
    found = _SELF.search(text)
    return found.group()[:80] if found else None


def format_problems(text: str) -> list[str]:
    """What is unsound in what a response shows, five at most.

    Each begins with its kind and a colon: "fence", "python", "json" or "arithmetic".
    Blocks of Python that hold a prompt or a shell's line are left alone, and so is what no check understands.
    """
    text = text[:MAX_CHARACTERS]
    blocks, prose, is_open = _blocks(text)
    problems = ["fence: a block of code is not closed"] if is_open else []
    for language, code in blocks:
        if language in _PYTHON:
            problems += _python_problem(code)
        elif language in _JSON:
            problems += _json_problem(code)
        if len(problems) >= _MOST_PROBLEMS:
            break
    problems += wrong_sums(_INLINE_CODE.sub(" ", prose))
    return problems[:_MOST_PROBLEMS]


def _blocks(text: str) -> tuple[list[tuple[str, str]], str, bool]:
    """The fenced blocks as (language, code), the text without them, and whether the last one is open."""
    blocks: list[tuple[str, str]] = []
    prose: list[str] = []
    begin, opened = 0, None
    for fence in _FENCE.finditer(text):
        marks, language = fence["marks"], fence["language"].lower()
        if opened is None:
            prose.append(text[begin : fence.start()])
            opened, begin = (marks, language), fence.end()
        elif marks.startswith(opened[0]) and not language:
            blocks.append((opened[1], text[begin : fence.start()]))
            opened, begin = None, fence.end()
    if opened is None:
        prose.append(text[begin:])
    return blocks, "\n".join(prose), opened is not None


def _python_problem(code: str) -> Iterator[str]:
    """Parsed, never run. Code that nests deep could end the process inside the parser, so it is left alone."""
    if len(code) > _MOST_CODE or _SHELL_LINE.search(code) or _nests(code):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(textwrap.dedent(code))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        message = getattr(error, "msg", None) or str(error)
        yield f"python: {message[:80]}" + (f" (line {line})" if line else "")
    except (RecursionError, MemoryError):
        return


def _nests(code: str) -> bool:
    """Whether brackets or indentation go deeper than code that is written for people."""
    depth = deepest = 0
    for character in code:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    indents = max((len(line) - len(line.lstrip()) for line in code.split("\n")), default=0)
    return deepest > _MOST_NESTING or indents > 4 * _MOST_NESTING or _CHAIN.search(code) is not None


def _json_problem(code: str) -> Iterator[str]:
    try:
        orjson.loads(code.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        if code.strip():
            yield f"json: {str(error)[:100]}"


def wrong_sums(text: str) -> list[str]:
    """The sums of plain numbers in a text, such as "3 * 4 + 1 = 12", that do not check out, five at most.

    A result may be rounded or cut at its last digit; one without decimals, to a whole number. Percent signs,
    powers, brackets, letters or a remainder at either end, and it is not taken for a plain sum.
    """
    found: list[str] = []
    for match in _SUM.finditer(text):
        if _begins_inside(text, match.start()):
            continue
        left, _, right = match.group().partition("=")
        if not _checks_out(_PART.findall(left), right):
            found.append(f"arithmetic: {match.group()}")
        if len(found) >= _MOST_PROBLEMS:
            break
    return found


def _begins_inside(text: str, start: int) -> bool:
    """Whether the numbers go on to the left, so that what was matched is only the end of something."""
    line = text[text.rfind("\n", 0, start) + 1 : start].rstrip()
    if line.strip() in ("-", "*", "+", "•"):  # a bullet
        return False
    return line[-1:] in _BREAKS_A_SUM or line.endswith(("-", ")"))


def _checks_out(terms: list[str], result: str) -> bool:
    """Whether numbers and operators in turn give `result`, as far as it has decimals."""
    value = _value(terms)
    if value is None:
        return True
    digits = re.sub(r"[^\d.]", "", result)
    told = Fraction(digits) * (-1 if result.strip()[:1] in "-−" else 1)
    decimals = len(digits.partition(".")[2])
    return value == told or (not _is_whole(value, decimals) and abs(value - told) < Fraction(1, 10**decimals))


def _is_whole(value: Fraction, decimals: int) -> bool:
    """Whether the value needs no rounding at so many decimals."""
    return (value * 10**decimals).denominator == 1


def _value(terms: list[str]) -> Fraction | None:
    """The value of numbers and operators in turn, products before sums; None for a division by zero."""
    total, product = Fraction(0), Fraction(terms[0].replace(",", ""))
    for operator, term in zip(terms[1::2], terms[2::2], strict=True):
        number = Fraction(term.replace(",", ""))
        if operator in "*×·":
            product *= number
        elif operator in "/÷":
            if number == 0:
                return None
            product /= number
        else:
            total, product = total + product, number if operator == "+" else -number
    return total + product
