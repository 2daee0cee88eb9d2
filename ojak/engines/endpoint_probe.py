"""What an endpoint is and can do, found by asking it a few tokens' worth before any work.

Is the model served? Is there a route that continues a text as it is, and does it (the server counts as many prompt
tokens as we do, on two texts), or is a chat template put around it? Does it take token ids, give log-probabilities,
follow seeds? Whatever cannot be used is refused here, with the reason.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ojak.engines.endpoint_dialects import Answer, Prompt, Server, body_of, path_of, read_answer
from ojak.engines.endpoint_retry import Pace, Policy, Trouble, persist
from ojak.engines.endpoint_text import Texts, Tokenize, ask_tokens, lent_texts, prompt_ids
from ojak.engines.endpoint_wire import Wire
from ojak.errors import EngineUnavailable, InputRefused, UsageError
from ojak.model.request import Request, Sampling

AGAIN = {"busy": 4, "broken": 3, "slow": 0}
NO_ROUTE = frozenset({404, 405, 501})
MOST_SHOWN = 8  # names of models in a refusal
SEED_TRIES = 3
DRAWN = Sampling(temperature=1.0)
OWNERS: dict[str, Server] = {"vllm": "vllm", "sglang": "sglang"}
T = TypeVar("T")
LOCAL = (
    "use a local model, or a server with /v1/completions (vLLM, SGLang, llama.cpp) or Ollama's /api/generate"
)


@dataclass(frozen=True, slots=True)
class Program:
    """What answers: which kind of server, the model's name there, and what a llama.cpp server tells of itself."""

    server: Server
    model: str
    version: str | None
    context: int | None
    slots: int | None
    props: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What the probe found. `sends_ids`: prompts go as token ids. `adds_bos`: the server puts one before a text.

    `seed`: "followed", "ignored" (draws differ under one seed) or "stuck" (all draws are the same). `context` is the
    most tokens of prompt and completion, None where it is not told.
    """

    server: Server
    model: str
    texts: Texts
    version: str | None = None
    context: int | None = None
    slots: int | None = None
    sends_ids: bool = False
    adds_bos: bool = False
    is_counted: bool = False
    logprobs: bool = False
    seed: str = "followed"


class Prober:
    """Asks the questions over one wire; one object for one probe."""

    def __init__(self, wire: Wire, model: str, policy: Policy) -> None:
        self.wire, self.model = wire, model
        self.policy = replace(policy, again=AGAIN)
        self.pace, self.tally = Pace(1), Counter[str]()

    def find(self, texts: Texts | None, tokenize: Tokenize) -> Found:
        """All that is asked, in order. texts: those from this machine, if there are any.

        Raises EngineUnavailable (nothing answers, or it refuses us), UsageError (no such model, no raw route),
        InputRefused (another tokenizer than the server's; no template known).
        """
        program = self._or_unavailable(self._detect)
        texts = texts or self._or_unavailable(lambda: lent_texts(self.wire, program.props, tokenize))
        if texts is None:
            raise InputRefused(
                f"the chat template of {self.model!r} is not known here",
                why="the server does not tell it, and no model of this name is on this machine",
                fix="give --tokenizer NAME|PATH: a known model, a Hugging Face folder or name, or a GGUF file",
            )
        found = Found(program.server, program.model, texts, program.version, program.context, program.slots)
        for look in (self._raw, self._ids, self._seed):
            found = self._or_unavailable(partial(look, found))
        return found

    def _or_unavailable(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work()`, a coroutine's; trouble that is left by now is the end."""
        try:
            return self.wire.run(work())
        except Trouble as trouble:
            raise unavailable(self.wire, trouble) from None

    # -- what it is -------------------------------------------------------------------------------------------------

    async def _detect(self) -> Program:
        """Which program it is, and whether it serves the model."""
        models = await self._get("/v1/models", first=True)
        entries = _objects(models, "data")
        server, version, props = await self._program(entries)
        if server == "ollama":
            entries = [
                {"id": entry.get("name")} for entry in _objects(await self._get("/api/tags"), "models")
            ]
        names = [name for entry in entries if isinstance(name := entry.get("id"), str)]
        model = self._served(names, server)
        own = next((entry for entry in entries if entry.get("id") == model), {})
        defaults = props.get("default_generation_settings")
        context = own.get("max_model_len") or (defaults.get("n_ctx") if isinstance(defaults, dict) else None)
        return Program(server, model, version, _positive(context), _positive(props.get("total_slots")), props)

    async def _program(self, entries: list[dict[str, Any]]) -> tuple[Server, str | None, dict[str, Any]]:
        owners = {str(entry.get("owned_by", "")).lower() for entry in entries}
        known: Server | None = next((kind for owner, kind in OWNERS.items() if owner in owners), None)
        if known:
            told = await self._get("/version" if known == "vllm" else "/get_server_info")
            return known, _word(told.get("version") if isinstance(told, dict) else None), {}
        props = await self._get("/props")
        if isinstance(props, dict) and ("chat_template" in props or "default_generation_settings" in props):
            return "llama.cpp", _word(props.get("build_info")), props
        told = await self._get("/api/version")
        if isinstance(told, dict) and isinstance(told.get("version"), str):
            return "ollama", _word(told["version"]), {}
        return "openai", None, {}

    def _served(self, names: list[str], server: Server) -> str:
        """The model's name as the server has it. A llama.cpp server of one model takes any."""
        for name in (self.model, f"{self.model}:latest"):
            if name in names:
                return name
        if not names or (server == "llama.cpp" and len(names) == 1):
            return self.model
        shown = ", ".join(repr(name[:120]) for name in names[:MOST_SHOWN])
        raise UsageError(
            f"{self.wire.address.origin} does not serve {self.model[:120]!r}",
            why=f"it serves {shown}" + (", ..." if len(names) > MOST_SHOWN else ""),
            fix="give one of these as --model, and --tokenizer if its chat template is not known here",
        )

    # -- what it can do ---------------------------------------------------------------------------------------------

    async def _raw(self, found: Found) -> Found:
        """That a text is continued as it is: the server counts the tokens that we count, give or take a BOS.

        A third text holds a control token: where that is counted otherwise, prompts are better sent as text.
        """
        texts, nonce = found.texts, secrets.token_hex(4)
        mark = next(iter(texts.tokenizer.special_tokens), "")
        plain = [
            f"{nonce} said good day",
            f"{nonce} counted to 12, then wrote: déjà vu, naïve café (and so on)\n\n {{1}}",
        ]
        there = [(await self._first(found, text)).prompt_tokens for text in [*plain, f"{plain[0]}{mark}so"]]
        here = [await self._count(texts, text) for text in [*plain, f"{plain[0]}{mark}so"]]
        if not all(there):
            return replace(found, adds_bos=texts.tokenizer.adds_bos)
        more = [(count or 0) - own for count, own in zip(there, here, strict=True)]
        if more[0] != more[1]:
            raise InputRefused(
                "this tokenizer is not that of the server",
                why=f"of two texts the server counts {there[0]} and {there[1]} tokens, we {here[0]} and {here[1]}",
                fix="give the tokenizer of the model that is served (--tokenizer)",
            )
        if more[0] not in (0, 1):
            raise UsageError(
                f"{self.wire.address.origin} does not continue a text as it is",
                why=f"it sees {more[0]:+} tokens besides the text: most likely a chat template, put around it",
                fix=LOCAL,
            )
        return replace(found, adds_bos=more[0] == 1, is_counted=True, sends_ids=more[2] == more[0])

    async def _first(self, found: Found, text: str) -> Answer:
        """One token after `text`. Raises UsageError where there is no such route."""
        try:
            return await self._draw(found, text, 1)
        except Trouble as trouble:
            if trouble.status not in NO_ROUTE:
                raise
            raise UsageError(
                f"{self.wire.address.origin} has no route that continues a text as it is",
                why=f"{path_of(found.server)}: {trouble.what}; a chat route puts its own template around every text,"
                " so that no instruction can be sampled over it",
                fix=LOCAL,
            ) from None

    async def _count(self, texts: Texts, text: str) -> int:
        if texts.is_local:
            return len(texts.tokenizer.encode(text))
        return len(await self._persist(lambda: ask_tokens(self.wire, text)))

    async def _ids(self, found: Found) -> Found:
        """Whether it takes token ids and gives log-probabilities; a server that takes neither says so with a 4xx."""
        text = f"{secrets.token_hex(4)} one two three"
        sends_ids = found.sends_ids and found.server != "ollama" and found.texts.is_local
        if sends_ids:
            ids = prompt_ids(found.texts, text)
            answer = await self._unless_refused(found, ids)
            sends_ids = answer is not None and answer.prompt_tokens == len(ids)
        answer = await self._unless_refused(found, text, logprobs=True)
        return replace(found, sends_ids=sends_ids, logprobs=bool(answer and answer.logprobs))

    async def _unless_refused(self, found: Found, prompt: Prompt, logprobs: bool = False) -> Answer | None:
        try:
            return await self._draw(found, prompt, 1, logprobs=logprobs)
        except Trouble as trouble:
            if trouble.kind != "final":
                raise
            return None

    async def _seed(self, found: Found) -> Found:
        """Whether draws follow their seeds."""
        text = f"A list of words that begin with {secrets.choice('abcdefgh')}:"
        first, same = [await self._draw(found, text, 8, seed=1) for _ in range(2)]
        if first.text != same.text:
            return replace(found, seed="ignored")
        for seed in range(2, 2 + SEED_TRIES):
            if (await self._draw(found, text, 8, seed=seed)).text != first.text:
                return found
        raise UsageError(
            f"{self.wire.address.origin} draws the same text whatever the seed",
            why="every row of a data set would be the same",
            fix="use a server that samples, and takes a seed",
        )

    # -- asking -----------------------------------------------------------------------------------------------------

    async def _draw(
        self, found: Found, prompt: Prompt, tokens: int, *, seed: int = 1, logprobs: bool = False
    ) -> Answer:
        text = prompt if isinstance(prompt, str) else ""
        request = Request(prompt=text, max_tokens=tokens, sampling=DRAWN, seed=seed, logprobs=logprobs)
        body = body_of(found.server, found.model, prompt, request, (), None)

        async def ask() -> Answer:
            return read_answer(found.server, await self.wire.ask(path_of(found.server), body), ())

        return await self._persist(ask)

    async def _get(self, path: str, *, first: bool = False) -> Any:
        """What it answers, {} where it has no such route. The first question may find nothing there at all."""
        policy = self.policy if first else replace(self.policy, again={"busy": AGAIN["busy"]})
        try:
            return await persist(lambda: self.wire.ask(path), policy, self.pace, self.tally)
        except Trouble as trouble:
            elsewhere = trouble.status in NO_ROUTE or trouble.kind == "final"
            if elsewhere or (not first and trouble.status not in (401, 503)):
                return {}
            raise

    async def _persist(self, send: Callable[[], Awaitable[T]]) -> T:
        return await persist(send, self.policy, self.pace, self.tally)


def _objects(found: Any, name: str) -> list[dict[str, Any]]:
    """The objects in the list `name` of an answer."""
    listed = found.get(name) if isinstance(found, dict) else None
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _word(value: Any) -> str | None:
    return value[:60] if isinstance(value, str) and value.isprintable() else None


def unavailable(wire: Wire, trouble: Trouble) -> EngineUnavailable:
    """The error for a server that does not answer, or not us."""
    what = "does not answer"
    if trouble.status in (401, 403):
        what = "does not let us in"
        fix = f"put the key into {wire.key.variable}, and its origin into {wire.key.variable}_ORIGIN"
    elif trouble.kind == "busy":
        fix = "run the same command again later to go on"
    else:
        fix = "check the address and the server; then run the same command to go on"
    return EngineUnavailable(f"{wire.address.origin} {what}", why=trouble.what, fix=fix)


async def is_up(wire: Wire, found: Found) -> bool:
    """Whether the server answers one short question now."""
    request = Request(prompt="One, two,", max_tokens=1, sampling=DRAWN, seed=1)
    body = body_of(found.server, found.model, "One, two,", request, (), None)
    try:
        read_answer(found.server, await wire.ask(path_of(found.server), body), ())
    except Trouble:
        return False
    return True
