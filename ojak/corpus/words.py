"""Words and sentences as datatrove has them, and several times as fast.

datatrove splits an English text with spaCy: a new pass for each filter's view of it, each token an object, its caches
emptied after every text. spaCy looks at what stands between white space by itself, so a table of pieces that were
seen before gives the same tokens. (The one exception known: of two smileys with white space between their signs
spaCy may find another pair; no decision hangs on it.)
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any, NamedTuple

from datatrove.utils.word_tokenizers import SpaCyTokenizer

MOST_KNOWN_CHARACTERS = 800_000  # of the pieces in the table, some 100,000 of 300 bytes each
MOST_KNOWN_CHARACTERS_OTHERS = 200_000  # for each language but English: a corpus may hold a hundred
NEED_PACKAGES = frozenset({"ja", "ko", "th", "vi", "zh"})  # spaCy splits these with libraries of others
TRIP = "IS_ALPHA"  # spaCy fails on this word, which is also the name of a field of its own; datatrove knows a way
NORMAL, PUNCTUATION, STOP = range(3)
_PIECES = re.compile(r"\s+|\S+")


class Tokens(NamedTuple):
    """What a piece without white space is split into; a kind for each token; whether no sign is among them."""

    texts: tuple[str, ...]
    kinds: tuple[int, ...]
    is_plain: bool


class _Spans:
    """The sentences of a text, token by token."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int]] = []
        self._begin, self._end = -1, 0
        self._stopped = False

    def add(self, at: int, length: int, kind: int) -> None:
        """The next token."""
        if (self._stopped and kind == NORMAL) or self._begin < 0:
            if self._begin >= 0:
                self._found.append((self._begin, self._end))
            self._begin, self._stopped = at, kind == STOP
        elif kind == STOP:
            self._stopped = True
        self._end = at + length

    def all(self) -> list[tuple[int, int]]:
        """(begin, end) of each."""
        return [*self._found, (self._begin, self._end)] if self._begin >= 0 else []


class Words(SpaCyTokenizer):
    """spaCy's tokens and sentences for a language, "xx" (of any) where it has none of its own."""

    def __init__(self, language: str) -> None:
        there = (
            language not in NEED_PACKAGES and importlib.util.find_spec(f"spacy.lang.{language}") is not None
        )
        super().__init__(language if there else "xx")
        self._known: dict[str, Tokens] = {}
        self._held, self._most = (
            0,
            MOST_KNOWN_CHARACTERS if language == "en" else MOST_KNOWN_CHARACTERS_OTHERS,
        )
        sentences: Any = self.tokenizer.get_pipe("sentencizer")
        self._stops = frozenset(sentences.punct_chars)

    def word_tokenize(self, text: str) -> list[str]:
        """The words and signs of a text, in order."""
        if TRIP in text:
            return super().word_tokenize(text)
        pieces = text.split()
        known = self._looked_up(pieces)
        return [word for piece in pieces for word in known[piece].texts]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of each sentence: it ends with a stop and the signs after it (spaCy's Sentencizer)."""
        if TRIP in text:
            return super().span_tokenize(text)
        known, spans = self._looked_up(text.split()), _Spans()
        for match in _PIECES.finditer(text):
            at, piece = match.start(), match.group()
            found = known.get(piece)
            if found is None:  # white space: all but a blank after a word is a token
                skipped = piece[0] == " " and at > 0
                if len(piece) > skipped:
                    spans.add(at + skipped, len(piece) - skipped, NORMAL)
            elif found.is_plain:
                spans.add(at, len(piece), NORMAL)
            else:
                for word, kind in zip(found.texts, found.kinds, strict=True):
                    spans.add(at, len(word), kind)
                    at += len(word)
        return spans.all()

    def _looked_up(self, pieces: list[str]) -> dict[str, Tokens]:
        """The tokens of these pieces, and of others."""
        missing = {piece for piece in pieces if piece not in self._known}
        if missing and self._held > self._most:
            self._known, self._held, missing = {}, 0, set(pieces)
        if missing:
            with self.tokenizer.memory_zone():
                self._known.update((piece, self._split(piece)) for piece in missing)
            self._held += sum(map(len, missing))
        return self._known

    def _split(self, piece: str) -> Tokens:
        doc = self.tokenizer.tokenizer(piece)
        kinds = tuple(STOP if t.text in self._stops else PUNCTUATION if t.is_punct else NORMAL for t in doc)
        return Tokens(tuple(t.text for t in doc), kinds, kinds.count(NORMAL) == len(kinds))
