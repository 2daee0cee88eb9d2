"""Flattened prompts of context-grounded questions (T0's and Super-NI's prompt/completion files) taken apart again.

Each set was written by a template; where its words stand is what tells context, question and options.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ojak.augment.pairs import Pair
from ojak.augment.parsed import THOUGHT

END_OF_TEXT = "<|endoftext|>"
MOST_CHARACTERS = 200_000  # of a prompt that is looked at


class Grounded(NamedTuple):
    """A context and one pair about it."""

    context: str
    pair: Pair


# `c` the context, `q` the question, `o` options, one a line, `x` and `y` the only two. `a`: the answer stands in the
# prompt, and the completion is the question.
_LAYOUTS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r'Question: "(?P<q>[^\n]+)"\n\nContext: "(?P<c>.+)"\n\nAnswer:\s*',
        r"Given the following context:\n\n(?P<c>.+)\n\nanswer the following question:\n\n(?P<q>[^\n]+)\s*",
        r"Answer the following question given this paragraph: *\n\n(?P<c>.+)\n\n\nQ: (?P<q>[^\n]+)\n\n"
        r"(?: *Choices:\n\n(?P<o>(?:- [^\n]+\n+)+))?\s*A:\s*",
        r"Question: (?P<q>[^\n]+)\n(?:If there is no answer[^\n]*\n)?(?:Movie title: [^\n]+\n)?Context: (?P<c>.+)",
        r"Based on the context and the answer, generate a question. *\n\nContext: (?P<c>.+)\n\nAnswer:\n\n(?P<a>.+)",
        r"Dialogue:\n\n(?P<c>.+)\n\nQuestion: (?P<q>[^\n]+?) *\n\n(?P<o>(?:- [^\n]+\n\s*)+)",
        r"Read the passage below and choose the right answer to the following question "
        r"\(choices are (?P<x>[^\n]+?) or (?P<y>[^\n]+?) *\):\n\n(?P<c>.+?)\n\n\n(?P<q>.+)",
        r"Information:\n\n(?P<c>.+)\n\n\n\n(?P<q>What object entity[^\n]+?) *\n\nChoices:\n(?P<o>(?:- [^\n]+\n\s*)+)",
        r"Process:\n(?P<c>(?:- [^\n]*\n)+)\s*Question:\n(?P<q>.+)",
        r"(?P<c>[^\n]+\.) Given these facts, (?P<q>[^\n]+?) among the following options:\n(?P<o>(?:- [^\n]+\n\s*)+)",
        r"(?P<c>[^\n]{80,}\n\n.+)\n\n(?P<q>[^\n]+\?)\s*",
    )
)


def read_prompt(prompt: str, completion: str) -> Grounded | None:
    """The context, question and answer of a row; None for a prompt in no layout that is known, or without a context."""
    said = completion.removesuffix(END_OF_TEXT).strip()
    whole = f"{prompt.rstrip()}\n"[:MOST_CHARACTERS]
    for layout in _LAYOUTS:
        if match := layout.fullmatch(whole):
            parts = {name: value.strip() for name, value in match.groupdict().items() if value}
            question, answer = (said, parts["a"]) if "a" in parts else (parts["q"], said)
            return Grounded(parts["c"], Pair(_sentence(question), answer, _options(parts, answer)))
    return None


def _sentence(question: str) -> str:
    """A question that began within a sentence as one of its own."""
    return question if question == THOUGHT else question[:1].upper() + question[1:]


def _options(parts: dict[str, str], answer: str) -> tuple[str, ...]:
    """The options, if the answer is one of them."""
    lines = parts.get("o", "").split("\n") if "o" in parts else [parts.get("x", ""), parts.get("y", "")]
    found = tuple(dict.fromkeys(line.strip().removeprefix("- ").strip() for line in lines if line.strip()))
    return found if answer in found and len(found) > 1 else ()
