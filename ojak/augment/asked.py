"""How an instruct model that is no synthesizer is asked for pairs: in words, and its answer read by labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ojak.augment.pairs import SYNTHESIZER, Pair
from ojak.augment.parsed import NO_ANSWER, STRAY, TRUNCATED, Parsed

PAIRS = "three"
# The text first: small models asked before it forget what they were asked. And their first word is given to them.
PROMPT = (
    "{text}\n\n"
    "Write {count} different questions about this text. Give each one a short answer that is in the text. "
    "Use the form\nQuestion: ...\nAnswer: ..."
)
BEGIN = "Question:"
_LABEL = re.compile(
    r"[ \t>*#_\-0-9.)(]{0,12}(?:(?P<question>question|q)|answer|a)[ \t]{0,2}[0-9]{0,3}[*_]{0,3}[ \t]?:[ \t*_]{0,4}",
    re.IGNORECASE,
)


def ask(text: str) -> str:
    """What a user says to get the pairs of a text."""
    return PROMPT.format(count=PAIRS, text=text)


def write_pairs(pairs: Sequence[Pair]) -> str:
    """What an assistant says that was asked: the few-shot examples of later texts."""
    return "\n\n".join(f"Question: {_line(pair.question)}\nAnswer: {_line(pair.answer)}" for pair in pairs)


def _line(text: str) -> str:
    return " ".join(text.split())


def parse(text: str, cut: bool = False) -> Parsed:
    """The pairs in an answer. `cut`: it was ended by the cap on its length.

    A piece begins at each question's label, and ends at the first blank line after its answer; text outside of pieces
    is dropped, too, a block at a time. Anything may come in.
    """
    found, pieces = Parsed(), list(_pieces(text))
    for number, (question, answer, raw) in enumerate(pieces, 1):
        if cut and number == len(pieces) and not text.endswith("\n\n"):
            found.drop(TRUNCATED, raw)
        elif question is None:
            found.drop(STRAY, raw)
        elif answer is None:
            found.drop(NO_ANSWER, raw)
        else:
            found.take(Pair(question.strip("*_ \t\n"), answer.strip("*_ \t\n"), (), SYNTHESIZER), raw)
    return found


def _pieces(text: str) -> Iterator[tuple[str | None, str | None, str]]:
    """(question, answer, the piece itself); None for what a piece lacks."""
    question: str | None = None
    answer: str | None = None
    lines: list[str] = []
    for line in (*text.split("\n"), None):
        label = _LABEL.match(line) if line is not None else None
        begins = line is None or (label and label["question"])
        ends_block = line is not None and not line.strip() and (answer is not None or question is None)
        if begins or ends_block:
            if any(each.strip() for each in lines):
                yield question, answer, "\n".join(lines).strip()
            question, answer, lines = None, None, []
        if line is None or ends_block:
            continue
        lines.append(line)
        said = line[label.end() :] if label else line
        if label and label["question"]:
            question = said
        elif label and question is not None and answer is None:
            answer = said
        elif answer is not None:
            answer += f"\n{said}"
        elif question is not None:
            question += f"\n{said}"
