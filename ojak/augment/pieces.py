"""A text in pieces that a model can read at once, each ending where a paragraph, a sentence or a word does."""

from __future__ import annotations

import re
from collections.abc import Callable

CHARACTERS = 16  # of a token, at most, where a text is looked at for the first time
_ENDS = (re.compile(r"\n[ \t]*\n"), re.compile(r"[.!?。！？…][\"'”’)]?\s+|\n"), re.compile(r"\s+"))


def cut(text: str, limit: int, most: int, count: Callable[[str], int]) -> tuple[list[str], int]:
    """The first `most` pieces of at most `limit` tokens, as `count` counts them; and how many characters are left."""
    found: list[str] = []
    begin = 0
    while begin < len(text) and len(found) < most:
        end = begin + _length(text[begin : begin + limit * CHARACTERS], limit, count)
        piece = text[begin:end].strip()
        found += [piece] if piece else []
        begin = end
    return found, len(text[begin:].strip())


def _length(head: str, limit: int, count: Callable[[str], int]) -> int:
    """How many characters of `head` are one piece."""
    if len(head) < limit * CHARACTERS and count(head) <= limit:
        return len(head)
    low, high = 1, len(head)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(head[:middle]) <= limit else (low, middle - 1)
    for ends in _ENDS:
        last = max((match.end() for match in ends.finditer(head, low // 2, low)), default=0)
        if last:
            return last
    return low
