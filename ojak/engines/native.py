"""The embedded engine: ojak's decoder with continuous batching, its memory planned before it is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ojak.chat import ChatPrefix, chat_prefix, encode_prompt
from ojak.engines.base import Capabilities, Scored
from ojak.errors import InputRefused, ResourceExhausted, UsageError
from ojak.model.cache import CacheShape, entry_bytes
from ojak.model.estimate import matrix_rate, parameters_of, token_rate
from ojak.model.fuse import ready
from ojak.model.generate import KEPT_TOKENS, LADDER, Generator
from ojak.model.load import Model
from ojak.model.memory import available_bytes, peak_rss_bytes
from ojak.model.request import Completion, Prompt, Request, Sampling
from ojak.model.score import score, score_greedy

MOST_SLOTS = {"cpu": 256, "cuda": 512}
MOST_LANES = 4
LEAST_LANE = 64  # slots from which on a lane of its own pays
FIXED_SLOTS = 32  # where another batch size would change a row's bits: this one, whatever memory is free
PREFIX_ROOM = 1024  # tokens of shared prefixes
CACHE_SHARE = 0.6  # of the free memory, at most
ALL_BROKEN = 16  # texts that fail while no token at all is drawn, before the model is given up
SCRATCH_BYTES = 256 << 20  # activations, masks, float32 logits of a few rows at a time


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that generation will take on top of the weights: key-value cache, kept contexts, logits and scratch."""

    shape: CacheShape
    slot_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.shape.slots * self.slot_bytes + SCRATCH_BYTES


class NativeEngine:
    """Runs a loaded model. `slots`: rows decoded at once; by default as many as memory and hardware make worthwhile.

    `memory_share`: of the memory that it may plan with, where other engines run on the same device.
    """

    capabilities = Capabilities(raw_prompt=True, seed=True, stop_ids=True, logprobs=True, scores=True)

    def __init__(self, model: Model, *, slots: int | None = None) -> None:
        self.model, self.slots = model, slots
        self.generator: Generator | None = None
        self.plan: MemoryPlan | None = None
        self.base_bytes = 0
        self._last_prompt: tuple[str | None, list[int]] = (None, [])
        self.memory_share = 1.0

    @property
    def identity(self) -> dict[str, Any]:
        """What shapes an answer: the same model in another dtype writes another text."""
        return {
            "engine": "native",
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return tuple(self.model.tokenizer.special_tokens)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.model.stop_ids

    @property
    def context_tokens(self) -> int | None:
        """The most tokens of prompt and completion together that the model was made for."""
        return self.model.config.max_position_embeddings

    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        model = self.model
        return chat_prefix(
            model.chat_template, model.tokenizer, eos_ids=model.stop_ids, system=system, turns=turns
        )

    def count_tokens(self, text: str) -> int:
        return len(encode_prompt(self.model.tokenizer, text))

    def first_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted({self.model.tokenizer.encode(text)[0] for text in texts if text}))

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        most = self.model.config.max_position_embeddings
        if longest > most:
            raise UsageError(
                f"a prompt and its completion may take {longest} tokens together",
                why=f"{self.model.name} was made for texts of up to {most}",
                fix="lower the limits on instruction and response tokens",
            )
        if self.generator is None or self.generator.shape.capacity < longest:
            self.generator = self._prepare(longest)
        return _watched(self.generator, requests, self.model)

    def expected_rate(self) -> float:
        """Tokens a second, as far as that can be known before any were written."""
        return token_rate(parameters_of(self.model.decoder)[1], matrix_rate())

    def halt(self) -> None:
        """Ends `generate` soon, from any thread, with rows in flight."""
        if self.generator is not None:
            self.generator.halt()

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        """Raises UsageError for a text longer than the model was made for."""
        ready(self.model.decoder)
        return score(self.model.decoder, map(self._ids, texts))

    def score_greedy(self, texts: Iterable[Scored]) -> Iterator[tuple[tuple[float, bool], ...]]:
        """`score`, and of each token whether greedy decoding would have written it."""
        ready(self.model.decoder)
        return score_greedy(self.model.decoder, map(self._ids, texts))

    def _ids(self, text: Scored) -> tuple[Sequence[int], Sequence[int]]:
        tokenizer, prompt, continuation = self.model.tokenizer, text.prompt, text.continuation
        before = self._prompt_ids(prompt) if isinstance(prompt, str) else prompt
        after = tokenizer.encode(continuation) if isinstance(continuation, str) else continuation
        most = self.model.config.max_position_embeddings
        if not before or len(before) + len(after) > most + 1:  # the last one is looked up, not read
            raise UsageError(
                f"a text of {len(before)} + {len(after)} tokens cannot be scored",
                why=f"{self.model.name} reads 1 to {most} tokens, and at least one stands before the scored ones",
            )
        return before, after

    def _prompt_ids(self, prompt: str) -> list[int]:
        """The last prompt is remembered: all labels of a question come one after another."""
        if self._last_prompt[0] != prompt:
            self._last_prompt = prompt, encode_prompt(self.model.tokenizer, prompt)
        return self._last_prompt[1]

    def provenance(self) -> dict[str, Any]:
        return {"license": self.model.license, "quantization": self.model.quantization}

    @property
    def drawn_tokens(self) -> int:
        return self.generator.drawn if self.generator else 0

    def stats(self) -> dict[str, Any]:
        if self.generator is None or self.plan is None:
            return {}
        generator = self.generator
        return {
            "device": str(self.model.device),
            "threads": torch.get_num_threads(),
            "lanes": len(generator.lanes),
            "slots": generator.shape.slots * len(generator.lanes),
            "capacity": generator.shape.capacity,
            "sizes": generator.sizes,
            "prefill_tiles": generator.found.tiled,
            "steps": generator.steps,
            "planned_bytes": self.base_bytes + self.plan.total_bytes,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def _prepare(self, longest: int) -> Generator:
        """Plans the memory, readies the weights and checks what keeps a row's bits; once for a given length."""
        model = self.model
        if self.generator is None:
            ready(self.model.decoder)
            self.base_bytes = peak_rss_bytes()
        else:
            self.generator.close()
            self.generator = None
        self.plan = plan_memory(model, longest, self.slots, self.memory_share)
        generator = self._generator(self.plan.shape.slots)
        size_matters = not generator.found.sizes
        if self.slots is None and size_matters and self.plan.shape.slots > FIXED_SLOTS:
            generator.close()
            del generator
            self.plan = plan_memory(model, longest, FIXED_SLOTS, self.memory_share)
            generator = self._generator(FIXED_SLOTS)
        return generator

    def _generator(self, slots: int) -> Generator:
        model, plan = self.model, self.plan
        assert plan is not None
        lanes = (
            min(MOST_LANES, torch.get_num_threads(), max(1, slots // LEAST_LANE))
            if model.device.type == "cpu"
            else 1
        )
        shape = replace(plan.shape, slots=-(-slots // lanes))
        tokenizer = model.tokenizer
        return Generator(
            model.decoder, tokenizer, lambda text: encode_prompt(tokenizer, text), shape, lanes=lanes
        )


def plan_memory(model: Model, longest: int, slots: int | None = None, share: float = 1.0) -> MemoryPlan:
    """How many slots of `longest` tokens fit a share of the free memory; ResourceExhausted if not even one does."""
    config, dtype = model.config, model.dtype
    budget = int(available_bytes(model.device) * CACHE_SHARE * share)
    shape = CacheShape(slots=1, capacity=longest, prefix_capacity=PREFIX_ROOM)
    kept = KEPT_TOKENS * config.num_hidden_layers * entry_bytes(config, dtype)
    resizing = (
        shape.bytes_per_slot(config, dtype) // config.num_hidden_layers
    )  # one layer is copied at a time
    logits = 2 * config.vocab_size * dtype.itemsize
    a_slot = shape.bytes_per_slot(config, dtype) + kept + resizing + logits
    fitting = max(0, budget - SCRATCH_BYTES) // a_slot
    most = slots or max(size for size in LADDER if size <= MOST_SLOTS.get(model.device.type, 256))
    if fitting < (slots or 1):
        raise ResourceExhausted(
            f"{slots or 1} rows of {longest} tokens do not fit the memory",
            why=f"a row takes {a_slot / 2**20:.0f} MiB, {budget / 2**20:.0f} MiB may be used",
            fix="lower --max-instruction-tokens and --max-response-tokens, or free memory",
        )
    chosen = slots or max(size for size in LADDER if size <= min(most, fitting))
    return MemoryPlan(replace(shape, slots=chosen), a_slot)


def _watched(generator: Generator, requests: Iterator[Request | None], model: Model) -> Iterator[Completion]:
    """The generator's completions; raises InputRefused if all fail, early if ALL_BROKEN do before a token is drawn."""
    failed, sound, error, before = 0, False, None, generator.drawn
    for done in generator.run(requests):
        yield done
        failed, sound, error = failed + bool(done.error), sound or not done.error, done.error
        if failed >= ALL_BROKEN and generator.drawn == before:
            break
    if failed and not sound:
        raise InputRefused(
            f"the weights of {model.name} are broken: none of its {failed} texts could be written",
            why=f"{error}; it ran as {str(model.dtype).removeprefix('torch.')}",
            fix="use another copy of the model; if it ran as float16, use bfloat16 or float32",
        )


def row_seed(*parts: int | str) -> int:
    """A seed of 63 bits from what names a row: run seed, row, turn, sample."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def generate(
    model: Model,
    prompts: Sequence[Prompt | Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    stop: Iterable[str | int] = (),
    logprobs: bool = False,
) -> list[Completion]:
    """Continues each prompt; completions in the order of the prompts.

    prompts: raw text (no chat template is added; the tokenizer's BOS is, if the model was trained with one) or token
    ids. stop: texts or token ids that end a completion, besides the model's own. Each prompt draws from its own seed,
    derived from `seed` and its place.

    Raises UsageError for settings out of range, ResourceExhausted for lack of memory, InputRefused if every text fails
    because the model gives no finite numbers; where some do, their completions say "failed".
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    stops = [stop] if isinstance(stop, str) else list(stop)
    strings = tuple(item for item in stops if isinstance(item, str))
    ids = (*model.stop_ids, *(int(item) for item in stops if not isinstance(item, str)))
    if isinstance(prompts, str) or "" in strings or type(max_tokens) is not int:
        raise UsageError(
            "these arguments cannot be meant",
            why="`prompts` is a list of texts, a stop text is not empty, `max_tokens` is a whole number",
        )
    encoded = [tuple(encode_prompt(model.tokenizer, p)) if isinstance(p, str) else tuple(p) for p in prompts]
    if any(not 0 <= token < model.config.vocab_size for prompt in encoded for token in prompt):
        raise UsageError("a prompt holds a token id that the model does not have")
    requests = [
        Request(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            seed=row_seed(seed, row),
            stop_ids=ids,
            stop_strings=strings,
            logprobs=logprobs,
            tag=row,
        )
        for row, prompt in enumerate(encoded)
    ]
    longest = max((len(prompt) for prompt in encoded), default=1) + max_tokens
    found = {done.request.tag: done for done in engine_of(model).generate(iter(requests), longest=longest)}
    return [found[row] for row in range(len(requests))]


def engine_of(model: Model) -> NativeEngine:
    """The model's own engine, made at the first call and kept with it."""
    engine = getattr(model, "_engine", None)
    if engine is None:
        engine = NativeEngine(model)
        model._engine = engine  # pyright: ignore[reportAttributeAccessIssue]
    return engine
