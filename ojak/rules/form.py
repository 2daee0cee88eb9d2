"""What can be counted or seen in the form of an answer, whatever it says: lines, sentences, bullets, letters, JSON."""

from __future__ import annotations

import json
import re

from ojak.rules.rule import MAX_CHARACTERS

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)


def lines(text: str) -> list[str]:
    """The lines that are not blank, without what surrounds them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def sentences(text: str) -> int:
    """Runs that end in a full stop, a question mark or an exclamation mark; a rest without one counts, too."""
    return sum(1 for piece in _SENTENCE_END.split(text) if re.search(r"\w", piece))


def paragraphs(text: str) -> int:
    """Blocks between empty lines."""
    return sum(1 for part in re.split(r"\n\s*\n", text) if part.strip())


def bullets(text: str) -> int:
    """Lines that begin with a bullet."""
    return sum(1 for line in lines(text) if re.match(r"[-*•]\s+\S", line))


def letters(text: str) -> str:
    """The letters alone."""
    return "".join(letter for letter in text if letter.isalpha())


def has_word(text: str, word: str) -> bool:
    """Whether `word` stands in the text as a word, in any case of letters."""
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def is_json_object(text: str) -> bool:
    """Whether the text is a JSON object and nothing else, in a fenced block or not."""
    if len(text) > MAX_CHARACTERS:
        return False
    fenced = _FENCED.fullmatch(text)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), dict)
    except (ValueError, RecursionError):
        return False
