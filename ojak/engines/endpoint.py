"""Engines elsewhere: any server that continues a text over HTTP (vLLM, llama.cpp, SGLang, Ollama).

A chat route is of no use here: it puts its template around every text. `endpoint_probe` looks what a server is and can
do, `endpoint_text` finds the template and decides between token ids and text, so that no prompt begins with two BOS,
`endpoint_dialects` knows the servers' words, `endpoint_courier` carries the requests, `endpoint_wire` speaks HTTP.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ojak.chat import ChatPrefix, chat_prefix, encode_prompt
from ojak.engines.base import Capabilities, Scored
from ojak.engines.endpoint_courier import Courier
from ojak.engines.endpoint_dialects import Prompt
from ojak.engines.endpoint_key import Key
from ojak.engines.endpoint_probe import Found, Prober, unavailable
from ojak.engines.endpoint_retry import Policy, Trouble
from ojak.engines.endpoint_text import ask_tokens, local_texts, prompt_ids
from ojak.engines.endpoint_url import parse_address
from ojak.engines.endpoint_wire import Wire
from ojak.errors import OjakError, UsageError
from ojak.model.request import Completion, Request

STEP_S = 0.2  # how often a caller that has nothing ready now is asked again
CONTEXT_STEP = 1024  # Ollama loads a model anew for every other length


class EndpointEngine:
    """The model `model` of the server at `url`; made only after the probe (`open`), so that it can do what it says."""

    context_tokens: int | None = None

    def __init__(self, url: str, key: Key, found: Found, policy: Policy) -> None:
        self._address, self._key, self._policy, self.found = parse_address(url), key, policy, found
        self.capabilities = Capabilities(
            raw_prompt=True,
            seed=found.seed == "followed",
            stop_ids=found.server in ("vllm", "sglang"),
            logprobs=found.logprobs,
        )
        self.drawn_tokens = 0
        self._stats: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()

    @classmethod
    def open(
        cls,
        model: str,
        url: str,
        *,
        tokenizer: str | None = None,
        key_variable: str | None = None,
        accept_license: Collection[str] = (),
        policy: Policy | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> EndpointEngine:
        """Probes the server. tokenizer: where template and tokenizer come from, if not from `model` or the server.

        Raises EngineUnavailable, UsageError (no raw route, no such model) or InputRefused (wrong tokenizer, no
        template).
        """
        address, policy = parse_address(url), policy or Policy()
        key = Key.of(address, key_variable)
        texts = local_texts(model, tokenizer, accept_license, notify)
        with Wire(address, key, policy) as wire:

            def tokenize(text: str, special: bool) -> list[int]:
                return _lend(Wire(address, key, policy), text, special)

            found = Prober(wire, model, policy).find(texts, tokenize)
        if found.seed == "ignored" and notify:
            notify(f"{address.origin} does not follow seeds: a row that is asked again will be another")
        return cls(url, key, found, policy)

    @property
    def identity(self) -> dict[str, Any]:
        """A server does not show its weights: the name it serves and the chat template stand for them."""
        template = hashlib.sha256(
            (self.found.texts.template or "").encode("utf-8", "surrogatepass")
        ).hexdigest()
        named = f"endpoint\0{self.found.model}\0{template}".encode("utf-8", "surrogatepass")
        return {
            "engine": "endpoint",
            "model": self.found.model,
            "model_sha256": hashlib.sha256(named).hexdigest(),
            "template_sha256": template,
            "dtype": "unknown",
        }

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return tuple(self.found.texts.tokenizer.special_tokens)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.found.texts.stop_ids

    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        texts = self.found.texts
        return chat_prefix(
            texts.template, texts.tokenizer, eos_ids=texts.stop_ids, system=system, turns=turns
        )

    def count_tokens(self, text: str) -> int:
        return len(encode_prompt(self.found.texts.tokenizer, text))

    def first_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Raises UsageError: no server has a rule for the first token alone."""
        raise UsageError("an endpoint cannot ban first tokens", fix="use a local model, or no --ban-first")

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        """As the protocol has it; a request that the server fails for good comes back with its `error`.

        Raises EngineUnavailable when the server is gone; requests under way are then without a completion.
        """
        context = self.found.context
        if context and longest > context:
            raise UsageError(
                f"a prompt and its completion may take {longest} tokens together",
                why=f"the server was started for texts of up to {context}",
                fix="lower the limits on instruction and response tokens, or start the server with a longer context",
            )
        return self._generate(requests, -(-longest // CONTEXT_STEP) * CONTEXT_STEP)

    def _generate(self, requests: Iterator[Request | None], context: int) -> Iterator[Completion]:
        with Wire(self._address, self._key, self._policy) as wire:
            courier = Courier(wire, self.found, self._policy, context)
            try:
                for completion in _pump(courier, requests, self._prompt):
                    completion = self._counted(completion)
                    self.drawn_tokens += completion.token_count
                    yield completion
            finally:
                self._note(wire, courier)

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        """Raises UsageError: endpoints draw, they do not read (`capabilities.scores` is off)."""
        raise UsageError(
            "an endpoint does not give the probabilities of a given text", fix="use a local model"
        )

    def provenance(self) -> dict[str, Any]:
        return {"license": None, "quantization": None}

    def stats(self) -> dict[str, Any]:
        found = self.found
        return {
            "server": found.server,
            "server_version": found.version,
            "prompts": "token ids" if found.sends_ids else "text",
            "server_adds_bos": found.adds_bos,
            "seed": found.seed,
            "raw_prompt": "counted" if found.is_counted else "not counted by the server",
            **self._stats,
            "odd_finish_reasons": dict(self._odd),
        }

    def _prompt(self, request: Request) -> Prompt:
        """What is sent for a prompt: ids where the server takes them, else the text with one BOS."""
        sampling, found = request.sampling, self.found
        if sampling.banned_first or sampling.first_temperature is not None:
            raise UsageError("an endpoint has no rules for the first token alone", fix="use a local model")
        if found.sends_ids:
            return prompt_ids(found.texts, request.prompt)
        if not isinstance(request.prompt, str):
            raise UsageError("this endpoint takes texts, not token ids")
        return found.texts.with_one_bos(request.prompt, found.adds_bos)

    def _counted(self, completion: Completion) -> Completion:
        """With a count of its own where the server gave none."""
        if completion.error is not None or completion.completion_tokens is not None:
            return completion
        return replace(completion, completion_tokens=len(self.found.texts.tokenizer.encode(completion.text)))

    def _note(self, wire: Wire, courier: Courier) -> None:
        """Adds what a courier saw to the record."""
        most = max(self._stats["most_in_flight"], courier.most_in_flight)
        self._stats.update({"attempts": wire.attempts, "failed_requests": courier.failed})
        self._stats.update({f"trouble_{kind}": count for kind, count in courier.tally.items()})
        self._stats["most_in_flight"] = most
        self._odd.update(courier.odd)


def _pump(
    courier: Courier, requests: Iterator[Request | None], prompt_of: Callable[[Request], Prompt]
) -> Iterator[Completion]:
    """Asks for requests wherever there is room, and gives completions as they come."""
    more = True
    while more or courier.in_flight:
        while more and courier.has_room:
            request = next(requests, StopIteration)
            if request is StopIteration:
                more = False
            if not isinstance(request, Request):
                break
            courier.send(request, prompt_of(request))
        if not courier.in_flight:
            if more:
                raise OjakError("the engine waits for requests that wait for the engine")
            return
        completion = courier.wait(STEP_S)
        if completion is not None:
            yield completion


def _lend(wire: Wire, text: str, special: bool) -> list[int]:
    """The ids of a text from the server, for the few texts that are counted before a run."""
    with wire:
        try:
            return wire.run(ask_tokens(wire, text, special=special))
        except Trouble as trouble:
            raise unavailable(wire, trouble) from None
