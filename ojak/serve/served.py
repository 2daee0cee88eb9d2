"""The model that is served: its name, its room, and how what clients send becomes token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ojak.chat import ChatPrefix, ChatTemplate, encode_prompt, special_pattern
from ojak.engines.native import NativeEngine, row_seed
from ojak.errors import InputRefused, ResourceExhausted
from ojak.model.request import Request
from ojak.serve.parameters import MOST_CHOICES, Asked, Message
from ojak.serve.refusal import bad

LEAST_ROOM = 256  # tokens; less would be no use to anyone
Ids = tuple[int, ...]


class Served:
    """`engine` with room for texts of `room` tokens, prompt and answer together.

    Made once: the engine plans its memory, readies its weights and writes a first token. Raises ResourceExhausted if
    not even texts of LEAST_ROOM tokens fit.
    """

    def __init__(self, engine: NativeEngine) -> None:
        model = engine.model
        self.engine, self.tokenizer, self.name = engine, model.tokenizer, model.name
        self.fingerprint = f"ojak-{model.sha256[:12]}-{engine.identity['dtype']}"
        self.vocabulary = model.config.vocab_size
        self.room = warm_up(engine)
        self.specials = special_pattern(model.tokenizer)
        self.template: ChatTemplate | None = None
        self.prefix: ChatPrefix | None = None
        self.why_no_chat = ""
        try:
            self.template = ChatTemplate.of(model.chat_template, model.tokenizer)
            self.prefix = engine.chat_prefix()
        except InputRefused as error:
            self.why_no_chat = f"{error.what}: {error.why}"

    # -- prompts ----------------------------------------------------------------------------------------------------

    def prompts(self, prompt: Any) -> list[Ids]:
        """Token ids of a `prompt`: a text, texts, ids, or lists of ids. Raises Refusal."""
        several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
        given = prompt if several else [prompt]
        if not 1 <= len(given) <= MOST_CHOICES:  # before any is encoded: a body has room for 300,000
            raise bad(f"one request has 1 to {MOST_CHOICES} prompts", "prompt")
        return [self.ids(each) for each in given]

    def ids(self, prompt: Any) -> Ids:
        """Token ids of one prompt; the tokenizer's BOS is added to a text where the model was trained with one."""
        if isinstance(prompt, str):
            return self.encoded(prompt, "prompt")
        if not isinstance(prompt, list) or not all(type(each) is int for each in prompt):
            raise bad("a prompt is a text or a list of token ids", "prompt")
        if not all(0 <= each < self.vocabulary for each in prompt):
            raise bad(f"token ids go from 0 to {self.vocabulary - 1}", "prompt")
        return tuple(prompt)

    def chat(self, messages: Sequence[Message]) -> Ids:
        """Token ids of a conversation as the model's template writes it, up to the assistant's first word.

        Raises Refusal if the model has no usable template, the template refuses the conversation, or a message holds
        the text of a special token: it would forge a turn.
        """
        if self.template is None or self.prefix is None:
            raise bad(f"this model cannot chat: {self.why_no_chat}; use /v1/completions")
        for n, message in enumerate(messages):
            if found := self.specials.search(message.content):
                why = f"it holds {found[0]!r}, which would end or forge a turn"
                raise bad(f"message {n} cannot be used: {why}", f"messages[{n}].content")
        try:
            plain = [message.plain() for message in messages]
            (text,) = self.template.render([plain], add_generation_prompt=True)
        except InputRefused as error:
            raise bad(f"{error.what}: {error.why}", "messages") from error
        return self.encoded(text, "messages")

    def encoded(self, text: str, param: str) -> Ids:
        """The ids of a raw text. Raises Refusal where the tokenizer has a token that the model has not."""
        ids = tuple(encode_prompt(self.tokenizer, text))
        if ids and max(ids) >= self.vocabulary:
            raise bad("the text holds a special token that the model does not have", param)
        return ids

    # -- requests ---------------------------------------------------------------------------------------------------

    def requests(self, asked: Asked, prompts: Sequence[Ids], *, chat: bool) -> list[Request]:
        """A request for each choice: `asked.n` for the first prompt, then for the next. Raises Refusal.

        Choice number i draws from the seed that `ojak.generate(..., seed=asked.seed)` gives its prompt number i.
        """
        if len(prompts) * asked.n > MOST_CHOICES:
            raise bad(f"one request has {MOST_CHOICES} choices at most, counting n for each prompt", "n")
        if not all(each < self.vocabulary for each in asked.stop_token_ids):
            raise bad(f"stop_token_ids go from 0 to {self.vocabulary - 1}", "stop_token_ids")
        own = self.prefix if chat else None
        stop_ids = (*(own.stop_ids if own else self.engine.model.stop_ids), *asked.stop_token_ids)
        rows = [prompt for prompt in prompts for _ in range(asked.n)]
        return [
            Request(
                prompt=prompt,
                max_tokens=self.limit(asked.limit, len(prompt)),
                sampling=asked.sampling,
                seed=row_seed(asked.seed, row),
                stop_ids=stop_ids,
                stop_strings=(*(own.stop_strings if own else ()), *asked.stop),
                logprobs=asked.likeliest is not None,
                top_logprobs=asked.likeliest or 0,
            )
            for row, prompt in enumerate(rows)
        ]

    def limit(self, wanted: int | None, prompt_tokens: int) -> int:
        """How many tokens an answer may have. Raises Refusal if they do not fit behind the prompt."""
        if not prompt_tokens:
            raise bad("a prompt must have at least one token", "prompt")
        left = self.room - prompt_tokens
        if left < (wanted or 1):
            raise bad(
                f"this server has room for {self.room} tokens: {prompt_tokens} of the prompt and {wanted or 1} of"
                " the answer are more",
                code="context_length_exceeded",
            )
        return wanted or left


def warm_up(engine: NativeEngine) -> int:
    """Readies the engine for the longest texts that fit: what the model was made for, or a half, a quarter of it."""
    room = engine.model.config.max_position_embeddings
    first = Request(prompt=(0,), max_tokens=1)
    while True:
        try:
            list(engine.generate(iter([first]), longest=room))
            return room
        except ResourceExhausted as error:
            if room < 2 * LEAST_ROOM:
                raise ResourceExhausted(
                    f"{engine.slots} answers of {room} tokens do not fit the memory",
                    why=error.why,
                    fix="lower --max-concurrent, or free memory",
                ) from error
            room //= 2
