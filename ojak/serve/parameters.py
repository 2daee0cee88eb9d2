"""What a body may ask for. Every parameter is used, refused with a reason, or one of a few that change no answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ojak.model.request import Sampling
from ojak.serve.refusal import Refusal, bad

MOST_CHOICES = 128  # answers of one request: prompts times n
MOST_STOPS = 16
MOST_LOGPROBS = 20
COMPLETION_TOKENS = 16  # what OpenAI's completions end after, where nothing is said

# Neither changes what is written here.
HARMLESS = frozenset({
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
})  # fmt: skip
# Not done here: refused, unless the value asks for nothing. None asks for nothing anywhere.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined(value: Any) -> Any:
    """A message's text, also where it comes in parts."""
    if not isinstance(value, list):
        return value
    texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(value) or not all(isinstance(text, str) for text in texts):
        raise ValueError("only parts of the type text can be read")
    return "".join(map(str, texts))


Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """A part of a body: values have the right type as they are, and no name is unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(Body):
    """What both kinds of request share. `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids` are not OpenAI's."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = Field(
        default_factory=lambda: secrets.randbits(63)
    )
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] = []
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; None for all that there is room for."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many alternatives to tell for each token, 0 for the token alone, None for no log-probabilities."""
        return None

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionAsked(Asked):
    """`POST /v1/completions`: a text is continued as it is."""

    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def limit(self) -> int:
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates want it; developer is OpenAI's newer word for system."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatAsked(Asked):
    """`POST /v1/chat/completions`: the next turn of a conversation."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] = 0

    @property
    def limit(self) -> int | None:
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit]
        return min(limits, default=None)

    @property
    def likeliest(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


Kind = TypeVar("Kind", bound=Asked)


def read_completion(body: Mapping[str, Any]) -> CompletionAsked:
    """Raises Refusal for a parameter that is wrong, unknown, or not available here."""
    return _read(CompletionAsked, body)


def read_chat(body: Mapping[str, Any]) -> ChatAsked:
    """Raises Refusal like `read_completion`."""
    body = dict(body)
    if isinstance(body.get("messages"), list):
        body["messages"] = [_without_nothing(message) for message in body["messages"]]
    found = _read(ChatAsked, body)
    if found.top_logprobs and not found.logprobs:
        raise bad("top_logprobs needs logprobs to be true", "top_logprobs")
    return found


def _without_nothing(message: Any) -> Any:
    """A message without the fields that say nothing; clients send an answer back with all of them."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name == "content" or value not in (None, [])}


def _read(kind: type[Kind], body: Mapping[str, Any]) -> Kind:
    refuse_unavailable(body)
    apart = HARMLESS | NEUTRAL.keys() | {"best_of"}
    given = {name: value for name, value in body.items() if name not in apart and value is not None}
    try:
        found = kind.model_validate(given)
    except ValidationError as error:
        raise explained(error) from error
    if found.stream_options and not found.stream:
        raise bad("stream_options needs stream to be true", "stream_options")
    return found


def refuse_unavailable(body: Mapping[str, Any]) -> None:
    """Raises Refusal for what is not done here, where the value asks for something."""
    for name, neutral in NEUTRAL.items():
        value = body.get(name)
        if value is not None and not any(value == each for each in neutral):
            raise bad(f"{name} is not available on this server", name, "unsupported_parameter")
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise bad("best_of is not available on this server: ask for n", "best_of", "unsupported_parameter")


def explained(error: ValidationError) -> Refusal:
    """The first thing that is wrong, in OpenAI's shape. What was sent is not repeated."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    name = name.lstrip(".")[:100]
    if first["type"] == "extra_forbidden":
        return bad(f"unknown parameter: {name!r}", name, "unknown_parameter")
    if first["type"] == "missing":
        return bad(f"{name} is missing", name, "missing_required_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    return bad(f"{name}: {message}", name, "invalid_value")
