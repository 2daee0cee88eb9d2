"""Answers in OpenAI's shapes: whole or in chunks, for completions and for chat."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ojak.model.request import Completion, Drawn
from ojak.serve.text import GrowingText, Words, floor


@dataclass
class Choice:
    """One answer on its way: its text, and the tokens whose log-probabilities were not told yet."""

    index: int
    text: GrowingText
    tokens: list[tuple[Drawn, int]] = field(default_factory=list)  # with the place of each in the text
    done: Completion | None = None

    def hear(self, drawn: Drawn) -> str:
        """Takes a token; returns the text that can be sent now."""
        self.tokens.append((drawn, self.text.length))
        return self.text.add(drawn.token_id)

    def take_tokens(self) -> list[tuple[Drawn, int]]:
        taken, self.tokens = self.tokens, []
        return taken

    @property
    def finished(self) -> Completion:
        assert self.done is not None
        return self.done


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, int]:
    """Counts of tokens: prompts once, however many choices they have; what was drawn, the stop token too."""
    drawn = sum(len(choice.finished.token_ids) for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": prompt_tokens + drawn,
    }


class Shape(ABC):
    """What both kinds of answer share. `likeliest` None: no log-probabilities; else how many alternatives to tell."""

    kind = chunk_kind = prefix = ""

    def __init__(self, model: str, fingerprint: str, words: Words, likeliest: int | None) -> None:
        self.words, self.likeliest = words, likeliest
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[Choice], counts: dict[str, int]) -> dict[str, Any]:
        """The body of an answer that is sent at once."""
        shown = [self.choice(choice) for choice in choices]
        return {**self.head, "object": self.kind, "choices": shown, "usage": counts}

    def chunk(self, *choices: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**self.head, "object": self.chunk_kind, "choices": list(choices), **more}

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """A finished choice."""

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        """What a stream says of a choice before its first text."""
        return []

    @abstractmethod
    def piece(self, choice: Choice, text: str) -> dict[str, Any]:
        """More text of a choice, with the log-probabilities of its tokens."""

    @abstractmethod
    def last(self, choice: Choice) -> list[dict[str, Any]]:
        """The end of a choice: what was held back, and why it ended."""


class CompletionShape(Shape):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def choice(self, choice: Choice) -> dict[str, Any]:
        done = choice.finished
        return {**self.piece(choice, done.text), "finish_reason": done.finish_reason}

    def piece(self, choice: Choice, text: str) -> dict[str, Any]:
        logprobs = None if self.likeliest is None else self.logprobs(choice)
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def last(self, choice: Choice) -> list[dict[str, Any]]:
        done = choice.finished
        piece = self.piece(choice, choice.text.rest(done.text))
        return [{**piece, "finish_reason": done.finish_reason}]

    def logprobs(self, choice: Choice) -> dict[str, Any]:
        tokens = choice.take_tokens()
        return {
            "tokens": [self.words.plain(drawn.token_id) for drawn, _ in tokens],
            "token_logprobs": [floor(drawn.logprob) for drawn, _ in tokens],
            "top_logprobs": [self.alternatives(drawn) for drawn, _ in tokens],
            "text_offset": [place for _, place in tokens],
        }

    def alternatives(self, drawn: Drawn) -> dict[str, float]:
        """The likeliest tokens by name, the one that was drawn always among them."""
        pairs = (*drawn.likeliest, (drawn.token_id, drawn.logprob))
        return {self.words.plain(token_id): floor(logprob) for token_id, logprob in pairs}


class ChatShape(Shape):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def choice(self, choice: Choice) -> dict[str, Any]:
        done = choice.finished
        message = {"role": "assistant", "content": done.text, "refusal": None}
        logprobs = None if self.likeliest is None else self.logprobs(choice)
        head = {"index": choice.index, "message": message, "logprobs": logprobs}
        return {**head, "finish_reason": done.finish_reason}

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        return [self.delta(choice, {"role": "assistant", "content": ""})]

    def piece(self, choice: Choice, text: str) -> dict[str, Any]:
        logprobs = None if self.likeliest is None else self.logprobs(choice)
        return self.delta(choice, {"content": text}, logprobs)

    def last(self, choice: Choice) -> list[dict[str, Any]]:
        done = choice.finished
        rest = choice.text.rest(done.text)
        held = [self.piece(choice, rest)] if rest or (choice.tokens and self.likeliest is not None) else []
        return [*held, {**self.delta(choice, {}), "finish_reason": done.finish_reason}]

    def delta(self, choice: Choice, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def logprobs(self, choice: Choice) -> dict[str, Any]:
        return {"content": [self.words.chat(drawn) for drawn, _ in choice.take_tokens()], "refusal": None}
