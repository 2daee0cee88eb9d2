"""Tokens to text while they come, such that what was sent stays true: the pieces joined are the text of the whole.

Held back are characters of which only some bytes are there, and whatever may turn out to be a stop text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ojak.model.request import Drawn
from ojak.model.tokenizer import Tokenizer

BROKEN = "\ufffd"  # how a decoder shows bytes that are no character, or not yet one
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of a vocabulary that spells rare characters byte by byte


class GrowingText:
    """The text of one answer. `length`: characters so far, those held back included."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], stop_strings: Sequence[str]) -> None:
        self.tokenizer, self.stop_ids, self.stop_strings = tokenizer, frozenset(stop_ids), tuple(stop_strings)
        self.ids: list[int] = []
        self.begin = self.read = 0  # ids[begin:read] are known text, decoded again with what follows them
        self.held = ""
        self.sent = 0
        self.ended = False

    @property
    def length(self) -> int:
        return self.sent + len(self.held)

    def add(self, token_id: int) -> str:
        """Takes a token; returns the text that can be sent now."""
        if token_id in self.stop_ids or self.ended:
            return ""
        self.ids.append(token_id)
        if not BYTE.fullmatch(self.tokenizer.backend.id_to_token(token_id) or ""):
            self.held += self._new_text()
        return self._release()

    def rest(self, whole: str) -> str:
        """What of the finished text was not sent yet."""
        return whole[self.sent :]

    def _new_text(self) -> str:
        """The text of the ids since the last whole character; "" while one is incomplete.

        Some decoders treat the first token of a text differently, so known ones are put before the new ones.
        """
        known = self.tokenizer.decode(self.ids[self.begin : self.read])
        text = self.tokenizer.decode(self.ids[self.begin :])
        if text.endswith(BROKEN):
            return ""
        if len(text) > len(known):  # else the next text still needs these before it
            self.begin = self.read
        self.read = len(self.ids)
        return text[len(known) :]

    def _release(self) -> str:
        found = [at for stop in self.stop_strings if (at := self.held.find(stop)) >= 0]
        self.ended = bool(found)
        end = min(found) if found else len(self.held) - self._doubtful()
        text, self.held = self.held[:end], "" if found else self.held[end:]
        self.sent += len(text)
        return text

    def _doubtful(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        return max((overlap(self.held, stop) for stop in self.stop_strings), default=0)


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, without being all of it."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)


class Words:
    """The names of tokens, for lists of log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def chat(self, drawn: Drawn) -> dict[str, object]:
        """An entry of a chat answer's `logprobs.content`."""
        likeliest = [self._named(token_id, logprob) for token_id, logprob in drawn.likeliest]
        return {**self._named(drawn.token_id, drawn.logprob), "top_logprobs": likeliest}

    def plain(self, token_id: int) -> str:
        """A token's text; the bytes of one that is no text are spelled out, so that no two have the same name."""
        raw = self.tokenizer.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _named(self, token_id: int, logprob: float) -> dict[str, object]:
        raw = self.tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": floor(logprob), "bytes": list(raw)}


def floor(logprob: float) -> float:
    """OpenAI's stand-in for minus infinity, which JSON lacks."""
    return max(logprob, -9999.0)
