"""Edits: what is cut off a sampled instruction, or stripped from around it. Each returns what is left, or None."""

from __future__ import annotations

import re
from itertools import islice

from ojak.rules.rule import QUESTION_MARKS, Draft, opens_with_request, plain, word_count

_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_MOST_MARKERS = 8  # each looks at all text before it: bounds the time on a text made of markers
_BLANK_LINES = re.compile(r"\n{3,}")
_ANSWER = re.compile(
    r"""^[ \t>*_#]{0,8}(?:the[ ])?(?:(?:correct|final|right|sample|example|suggested|possible|model)[ ])?
        (?:answers?|solution|response|explanation|ans)(?:[ ](?:key|approach))?[ \t*_]{0,4}[:\uff1a]
      | ^[ \t]{0,4}\#{1,4}[ *]{0,4}step[ ]1\b
      | ^(?:sure|certainly|of[ ]course|absolutely)[,!]
      | ^the[ ](?:correct[ ]|final[ ]|right[ ])?answer[ ](?:is|to[ ]this)\b
      | ^[ *]{0,3}a[ *]{0,3}[:][ *]""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_QUESTION_LABEL = re.compile(
    r"^[ \t>*_#]{0,8}(?:q|question|problem|exercise)\b[ #\d]{0,6}[*_ ]{0,4}[:.]", re.IGNORECASE | re.MULTILINE
)
_ABOUT_ANSWERS = re.compile(
    r"\b(?:(?:this|my|his|her|their|student'?s|given|following|these|each|two|both)(?: \w{1,20}){0,2} "
    r"(?:answer|solution|response|explanation)s?|grade|evaluate|critique|proofread|rate|compare|format)\b",
    re.IGNORECASE,
)
_LIKE_THIS = re.compile(r"\b(?:following|example|like this|similar|joke|riddle|format)\b", re.IGNORECASE)
_LABEL = re.compile(
    r"""^(?:\#{1,4}[ \t]{0,4})?(?:\*\*|__|\[)?(?:(?:original|writing|user|coding|math|creative|sample|example)[ ])?
    (?:task|prompt|question|problem(?:[ ]statement)?|query|request|instructions?|challenge|exercise|user|human|q)
    (?:[ \t]{0,3}\#?\d{1,3})?\]?(?:\*\*|__)?
    (?:[ \t]{0,3}[:\uff1a](?:\*\*|__)?|(?<=\*\*)[ \t]{0,3}\n|(?<=\d)[.)](?:\*\*)?(?=\s))\s{0,8}(?=\S)""",
    re.VERBOSE | re.IGNORECASE,
)
_HEADING_LABEL = re.compile(
    r"^#{1,4}[ \t]{0,4}(?:task|prompt|question|problem|query|instructions?|challenge|exercise)(?: \d{1,3})?"
    r"[ \t]{0,4}\n\s{0,8}(?=\S)",
    re.IGNORECASE,
)
_ENUMERATOR = re.compile(r"^(?:\(?\d{1,3}[.)]|\([a-z]\)|[-*\u2022])[ \t]{1,4}(?=[^\W\d_]|[\"'*\u201c])")
_LIST_LINE = re.compile(r"^[ \t]{0,8}(?:\(?\d{1,3}[.)]|\([a-z]\)|[-*\u2022])[ \t]", re.MULTILINE)
_QUOTES = {'"': '"', "\u201c": "\u201d", "\u00ab": "\u00bb", "\u300c": "\u300d"}


def tidy(draft: Draft) -> str | None:
    """Line ends unified, trailing blanks and invisible characters dropped, at most one empty line in a row. The
    indentation of pasted code stays."""
    text = _INVISIBLE.sub("", draft.text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.rstrip(" \t\u00a0\u3000") for line in text.split("\n"))
    text = _BLANK_LINES.sub("\n\n", text).strip("\n")
    if "\n" not in text or not text.startswith(("  ", "\t")):
        text = text.lstrip()  # else it may be the first line of indented code
    return text if text != draft.text else None


def cut_answer(draft: Draft) -> str | None:
    """The text up to a line that starts an answer, where a request stands before it. Examples (another question
    after the answer) and requests about an answer stay whole."""
    for found in islice(_ANSWER.finditer(draft.text), _MOST_MARKERS):
        head = draft.text[: found.start()].rstrip()
        labelled = _QUESTION_LABEL.search(head) is not None
        if found.group().strip(" *").lower() == "a:" and not (labelled and _LIKE_THIS.search(head) is None):
            continue  # without a "Q:" it may be the first choice of several; below "like this", an example
        if word_count(head) < 3 or not (labelled or QUESTION_MARKS.search(head) or opens_with_request(head)):
            continue
        if _ABOUT_ANSWERS.search(plain(head)) or _QUESTION_LABEL.search(draft.text, found.end()):
            return None
        return head
    return None


def strip_label(draft: Draft) -> str | None:
    """Without a label in front, unless it is the first of several: those are examples."""
    found = _LABEL.match(draft.text) or _HEADING_LABEL.match(draft.text)
    if found is None or _QUESTION_LABEL.search(draft.text, found.end()):
        return None
    return draft.text[found.end() :]


def strip_enumerator(draft: Draft) -> str | None:
    """Without a leading number or bullet, unless it is the first of several: then the list is the content."""
    found = _ENUMERATOR.match(draft.text)
    if found is None or _LIST_LINE.search(draft.text, found.end()):
        return None
    return draft.text[found.end() :]


def strip_quotes(draft: Draft) -> str | None:
    """Without quotation marks that enclose all of it, or one that opens and never closes."""
    text = draft.text
    closing = _QUOTES.get(text[:1])
    if closing is None or len(text) < 3:
        return None
    inner = text[1:-1]
    if text.endswith(closing) and text[0] not in inner and closing not in inner:
        return inner.strip()
    return text[1:].lstrip() if closing not in text[1:] else None


def strip_emphasis(draft: Draft) -> str | None:
    """Without bold marks that enclose all of it."""
    text = draft.text
    inner = text[2:-2]
    enclosed = len(text) > 4 and text[:2] == text[-2:] and text[:2] in ("**", "__")
    return inner.strip() if enclosed and text[:2] not in inner and inner.strip() else None
