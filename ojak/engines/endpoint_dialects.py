"""How each kind of server is asked to continue a text, and how its answers are read. Plain data in and out.

openai      POST /v1/completions as OpenAI has it; anything more is sent only where a setting asks for it
vllm        the same with stop ids, top_k, min_p, repetition_penalty
sglang      the same as vllm
llama.cpp   the same with its own names; it stops at its model's end tokens by itself
ollama      POST /api/generate with raw: true, which alone of its routes adds no template
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ojak.engines.endpoint_retry import Trouble
from ojak.model.request import Request, Sampling

Server = Literal["openai", "vllm", "sglang", "llama.cpp", "ollama"]
Prompt = str | list[int]
MOST_STOPS = 4  # of OpenAI's own route
MOST_COUNT = 1 << 40
SEED_BITS = 31  # what every server takes
FINISHED: Mapping[str, str] = {"stop": "stop", "length": "length", "eos": "stop", "stop_sequence": "stop"}


@dataclass(frozen=True, slots=True)
class Answer:
    """`finish_reason` is "stop" or "length"; a reason of another name, or none, counts as cut and stands in `odd`.

    Counts are tokens, None where the server gives none. `logprobs` as in Completion.
    """

    text: str
    finish_reason: str
    odd: str | None = None
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    logprobs: tuple[float, ...] | None = None


def path_of(server: Server) -> str:
    return "/api/generate" if server == "ollama" else "/v1/completions"


def fold(seed: int) -> int:
    """A row's seed in the bits that every server takes."""
    return (seed ^ (seed >> SEED_BITS)) & ((1 << SEED_BITS) - 1)


def body_of(
    server: Server, model: str, prompt: Prompt, request: Request, stops: Sequence[str], context: int | None
) -> dict[str, Any]:
    """The JSON of one request. stops: texts that end it, those of the stop ids too. context: tokens, for Ollama."""
    if server == "ollama":
        return _ollama_body(model, prompt, request, stops, context)
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": fold(request.seed),
        "n": 1,
        "stream": False,
    }
    if request.logprobs:
        body["logprobs"] = 1
    body |= {"vllm": _vllm, "sglang": _vllm, "llama.cpp": _llama_cpp, "openai": _openai}[server](
        request, stops
    )
    return {name: value for name, value in body.items() if value != []}


def _openai(request: Request, stops: Sequence[str]) -> dict[str, Any]:
    plain, sampling = Sampling(), request.sampling
    names = ("top_k", "min_p", "repetition_penalty")
    more = {
        name: getattr(sampling, name) for name in names if getattr(sampling, name) != getattr(plain, name)
    }
    return {"stop": list(stops)[:MOST_STOPS], **more}


def _vllm(request: Request, stops: Sequence[str]) -> dict[str, Any]:
    """All of it spelled out: a model's generation_config.json would fill in the rest."""
    sampling = request.sampling
    return {
        "stop": list(stops),
        "stop_token_ids": list(request.stop_ids),
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }


def _llama_cpp(request: Request, stops: Sequence[str]) -> dict[str, Any]:
    """`preserved_tokens` has it write out control tokens that are to stop it; its defaults cut and penalise."""
    sampling = request.sampling
    return {
        "stop": list(stops),
        "preserved_tokens": list(stops),
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": -1 if sampling.repetition_penalty != 1 else 0,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    }


def _ollama_body(
    model: str, prompt: Prompt, request: Request, stops: Sequence[str], context: int | None
) -> dict[str, Any]:
    sampling = request.sampling
    options: dict[str, Any] = {
        "num_predict": request.max_tokens,
        "seed": fold(request.seed),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": -1,
        "stop": list(stops),
    }
    if context:
        options["num_ctx"] = context
    body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": options}
    return body | ({"logprobs": True} if request.logprobs else {})


def read_answer(server: Server, found: Any, stops: Sequence[str]) -> Answer:
    """Raises Trouble for what is no answer."""
    answer = _read_ollama(found) if server == "ollama" else _read_openai(found)
    ends = [at for stop in stops if stop and (at := answer.text.find(stop)) >= 0]
    if not ends:
        return answer
    # A server that leaves the stop text in, or that does not know it as one.
    return replace(answer, text=answer.text[: min(ends)], finish_reason="stop", odd=None)


def _read_openai(found: Any) -> Answer:
    choices = found.get("choices") if isinstance(found, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise Trouble("broken", "an answer without choices")
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    reason, odd = _finish(choice.get("finish_reason"))
    return Answer(
        text=_text(choice.get("text")),
        finish_reason=reason,
        odd=odd,
        completion_tokens=_count(usage.get("completion_tokens")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _read_ollama(found: Any) -> Answer:
    if not isinstance(found, dict) or found.get("done") is not True:
        raise Trouble("broken", "an answer that is not done")
    if found.get("done_reason") in ("load", "unload"):
        raise Trouble("broken", "the server was loading its model")
    reason, odd = _finish(found.get("done_reason"))
    return Answer(
        text=_text(found.get("response")),
        finish_reason=reason,
        odd=odd,
        completion_tokens=_count(found.get("eval_count")),
        prompt_tokens=_count(found.get("prompt_eval_count")),
        logprobs=_logprobs(found.get("logprobs")),
    )


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise Trouble("broken", "an answer without text")
    return text


def _finish(reason: Any) -> tuple[str, str | None]:
    """The reason in our words; what is not known counts as cut."""
    known = FINISHED.get(reason) if isinstance(reason, str) else None
    return (known, None) if known else ("length", str(reason)[:40])


def _count(value: Any) -> int | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT
    return value if fine else None


def _logprobs(found: Any) -> tuple[float, ...] | None:
    """The three forms: {"token_logprobs": [x]}, {"content": [{"logprob": x}]}, [{"logprob": x}]."""
    values = found
    if isinstance(found, dict):
        values = found.get("token_logprobs", found.get("content"))
    if not isinstance(values, list):
        return None
    numbers = [item.get("logprob") if isinstance(item, dict) else item for item in values]
    fine = [
        float(x)
        for x in numbers
        if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    ]
    return tuple(fine) if len(fine) == len(numbers) else None
