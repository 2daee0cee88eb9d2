"""What is asked of a generator and what comes back: plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from ojak.errors import UsageError

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; `top_p` 1, `top_k` 0 and `min_p` 0 cut nothing off.

    `repetition_penalty` divides positive and multiplies negative logits of tokens seen (CTRL, arXiv 1909.05858).
    `banned_first` and `first_temperature` hold for the first token alone: Magpie's two logit rules.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    first_temperature: float | None = None
    banned_first: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        first = self.first_temperature
        ranges = {
            "temperature": (0 <= self.temperature < 100, "0 or more and below 100; 0 is greedy"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1; 1 cuts nothing off"),
            "top_k": (self.top_k >= 0, "0 or more; 0 cuts nothing off"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1; 0 cuts nothing off"),
            "repetition_penalty": (
                0 < self.repetition_penalty < 100,
                "above 0 and below 100; 1 changes nothing",
            ),
            "first_temperature": (first is None or 0 <= first < 100, "0 or more and below 100, or None"),
        }
        for name, (fits, allowed) in ranges.items():
            if not fits:
                raise UsageError(
                    f"{name} = {getattr(self, name)} is out of range", fix=f"give a number that is {allowed}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from plain sampling, with temperature and top_p always there."""
        values = {"temperature": self.temperature, "top_p": self.top_p}
        defaults = Sampling()
        for name in ("top_k", "min_p", "repetition_penalty", "first_temperature", "banned_first"):
            if getattr(self, name) != getattr(defaults, name):
                values[name] = getattr(self, name)
        return values


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token at the moment when it was drawn.

    `logprob` has a meaning where the request asks for it. `likeliest` holds the `Request.top_logprobs` most probable
    tokens with their log-probabilities, the largest first.
    """

    token_id: int
    logprob: float = 0.0
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to continue. `prompt` is raw text (no template is added) or token ids.

    `shared_prefix` is a text that many requests begin with; an engine may compute it once. An engine may also keep what
    it worked out for a request under the name `keep`, and begin with it on a later one that names it in `reuse`, as far
    as the two texts agree. `tag` is the caller's own and comes back untouched. The completion depends on prompt,
    sampling, seed and stops alone.

    `on_token` hears each token as it is drawn, and ends the row by returning False. It is called in the engine's own
    thread: it must be quick, and raise nothing. Only the native engine calls it.
    """

    prompt: Prompt
    max_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    shared_prefix: Prompt | None = None
    keep: Hashable = None
    reuse: Hashable = None
    logprobs: bool = False
    tag: Any = None
    top_logprobs: int = 0
    on_token: Callable[[Drawn], bool] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a request got. `token_ids` includes the stop token, `text` does not.

    `finish_reason` is "stop" (a stop id or string), "length" (`max_tokens` reached), "cancelled" (by `on_token`), or
    "failed": `error` then says why it was given up, and there is no text. `logprobs` holds, for each token, its natural
    log-probability under the model before any temperature or cut. An engine that does not see the ids gives their
    number, `completion_tokens`.
    """

    request: Request
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int = 0
    logprobs: tuple[float, ...] | None = field(default=None)
    completion_tokens: int | None = None
    error: str | None = None

    @property
    def token_count(self) -> int:
        """How many tokens were drawn, the stop token included."""
        return len(self.token_ids) if self.completion_tokens is None else self.completion_tokens
