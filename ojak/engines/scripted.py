"""An engine without a model: answers come from a function or a queue. For tests, documentation and dry runs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ojak.chat import ChatPrefix
from ojak.engines.base import Capabilities, Scored
from ojak.errors import OjakError, UsageError
from ojak.model.request import Completion, Request

Answer = Callable[[Request], str]
_OPENINGS = (
    "Explain",
    "Describe",
    "Compare",
    "Summarise",
    "Plan",
    "Write a short text about",
    "Give three facts on",
)
_SUBJECTS = (
    "the tides",
    "bread baking",
    "prime numbers",
    "a town library",
    "photosynthesis",
    "bicycle gears",
    "rain",
)
_MANNERS = (
    "for a child",
    "in two sentences",
    "with an example",
    "as a list",
    "step by step",
    "for an engineer",
)


class ScriptedEngine:
    """Answers each request by `answers`: a function of the request, or texts used one after another.

    A word counts as a token. Up to `slots` requests are in flight, and finish in an order drawn from `shuffle_seed`,
    as they would on a real engine. Without `answers` it writes plausible questions and replies, the same for the same
    prompt and seed.
    """

    capabilities = Capabilities(raw_prompt=True, seed=True, stop_ids=True, scores=True)

    context_tokens: int | None = None
    stop_ids: tuple[int, ...] = (0,)

    def __init__(
        self, answers: Answer | Iterable[str] | None = None, *, slots: int = 8, shuffle_seed: int = 0
    ) -> None:
        queue = iter(()) if answers is None or callable(answers) else iter(answers)
        self._answer: Answer = answers if callable(answers) else lambda _request: _next_of(queue)
        if answers is None:
            self._answer = scripted_text
        self.slots, self._order = slots, random.Random(shuffle_seed)
        self.sent = self.drawn_tokens = 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"engine": "scripted", "model": "scripted", "model_sha256": "0" * 64, "dtype": "none"}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return ("<|im_start|>", "<|im_end|>")

    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        """That of ChatML."""
        opening = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
        pre, post = f"{opening}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        between = "<|im_end|>\n<|im_start|>user\n"
        layouts = tuple((pre, *(post, between) * (number - 1), post) for number in range(2, turns + 1))
        return ChatPrefix(pre, post, (0,), ("<|im_end|>",), system, layouts)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def first_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(range(len(texts)))

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        flight: list[Request] = []
        open_ = True
        while open_ or flight:
            while open_ and len(flight) < self.slots:
                request = next(requests, StopIteration)
                if request is StopIteration:
                    open_ = False
                if not isinstance(request, Request):
                    break
                flight.append(request)
            if not flight and open_:
                raise OjakError("the engine waits for requests that wait for the engine")
            if not flight:
                return
            yield self._complete(flight.pop(self._order.randrange(len(flight))))

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        """Words that the prompt has are likelier than those that it has not."""
        for text in texts:
            known = set(str(text.prompt).split())
            yield tuple(-1.0 if word in known else -3.0 for word in str(text.continuation).split())

    def provenance(self) -> dict[str, Any]:
        return {"license": None, "quantization": None}

    def stats(self) -> dict[str, Any]:
        return {"slots": self.slots, "requests": self.sent}

    def _complete(self, request: Request) -> Completion:
        self.sent += 1
        words = self._answer(request).split(" ")
        cut = len(words) >= request.max_tokens
        kept = words[: request.max_tokens]
        token_ids = tuple(range(1, len(kept) + (0 if cut else 1) + 1))
        self.drawn_tokens += len(token_ids)
        return Completion(
            request=request,
            text=" ".join(kept),
            token_ids=token_ids,
            finish_reason="length" if cut else "stop",
            prompt_tokens=self.count_tokens(str(request.prompt)),
        )


def _next_of(queue: Iterator[str]) -> str:
    """The next of the given answers. Raises UsageError where there are none left."""
    for answer in queue:
        return answer
    raise UsageError("the scripted engine has no answers left", fix="give it as many as there are requests")


def scripted_text(request: Request) -> str:
    """A question where the prompt ends with the user's header, a reply where it ends with the assistant's."""
    digest = hashlib.sha256(f"{request.prompt}\0{request.seed}".encode()).digest()
    if str(request.prompt).rstrip().endswith("assistant"):
        parts = digest[0] % 5 + 2
        return (
            f"Here is what can be said, in {parts} parts. First, it depends; second, case {digest.hex()[:8]}."
        )
    pick = [options[digest[i] % len(options)] for i, options in enumerate((_OPENINGS, _SUBJECTS, _MANNERS))]
    return f"{' '.join(pick)}, thinking of case number {int.from_bytes(digest[3:5], 'big')}."
