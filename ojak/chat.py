"""Chat templates: rendering, the text around a user's turn, stop tokens, token ids with a loss mask.

Nothing here knows a model family. What a family puts before a user's text is found by rendering its template with a
sentinel in the user's place (Magpie, arXiv 2406.08464, section 2.1): what stands before the sentinel is the pre-query
text, what stands after it the post-query text. Templates are hostile programs and are rendered in another process.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ojak._chat_spans import (
    ChatTokenizer,
    Conversation,
    Spans,
    check_contents,
    encode_prompt,
    encode_spans,
    find_spans,
    marked,
    special_pattern,
    split_at,
)
from ojak._template_sandbox import Limits, TemplateSandbox, refuse, shared_sandbox
from ojak.errors import InputRefused, UsageError

__all__ = [
    "ChatPrefix",
    "ChatTemplate",
    "ChatTokenizer",
    "Conversation",
    "Limits",
    "TemplateSandbox",
    "chat_prefix",
    "describe",
    "encode_chat",
    "encode_chats",
    "encode_prompt",
    "shared_sandbox",
    "special_pattern",
]

# ------------------------------------------------------------------------------------------- templates and prefixes


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template with the names it is rendered with. `variables` are passed to it as they are."""

    source: str
    bos_token: str | None = None
    eos_token: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    sandbox: TemplateSandbox = field(default_factory=shared_sandbox, repr=False, compare=False)

    @classmethod
    def of(cls, source: ChatTemplate | str | None, tokenizer: ChatTokenizer) -> ChatTemplate:
        """The template of a model; raises InputRefused when it has none, as a base model."""
        if isinstance(source, ChatTemplate):
            return source
        if not source or not source.strip():
            refuse(
                "the model has no chat template",
                why="it looks like a base model: it continues text, and no turn of a user can be told from its answer",
                fix="use an instruction-tuned model, for example smollm2-135m-instruct",
            )
        return cls(source, tokenizer.bos_token, tokenizer.eos_token)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()

    def render(self, conversations: Sequence[Conversation], add_generation_prompt: bool = False) -> list[str]:
        """Each conversation (a list of `{role, content}`) as text, in one round trip."""
        contexts = [self.context(messages, add_generation_prompt) for messages in conversations]
        return self.sandbox.render(self.source, contexts)

    def attempt(self, conversations: Sequence[Conversation]) -> list[str | InputRefused]:
        """Like `render`; a conversation that the template refuses gives the error in its place."""
        return self.sandbox.attempt(
            self.source, [self.context(messages, False) for messages in conversations]
        )

    def context(self, messages: Conversation, add_generation_prompt: bool) -> dict[str, Any]:
        """What Hugging Face's `apply_chat_template` passes to a template."""
        return {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token or "",
            "eos_token": self.eos_token or "",
            **self.variables,
        }

    def prefix(self, system: str | None = None) -> tuple[str, str]:
        """(pre-query, post-query): the text before a user's first turn, and from there to the assistant's first word.

        The template's own system turn is part of it, unless `system` replaces it.

        Raises:
            InputRefused: the template changes, drops or repeats what a user says, or leaves out the system turn.
        """
        short, long = self.sentinels()
        opening = [] if system is None else [turn("system", system)]
        chats = [[*opening, turn("user", sentinel)] for sentinel in (short, long)]
        first, second = self.render(chats, add_generation_prompt=True)
        pre, post = split_at(first, short)
        if (pre, post) != split_at(second, long):
            refuse(
                "the chat template is refused", why="what it writes around a user's turn depends on the turn"
            )
        if system is not None and system.strip() not in pre:
            refuse(
                "the chat template is refused", why="it leaves out the system turn", fix="give no system text"
            )
        if not pre.removeprefix(self.bos_token or "").strip():
            refuse(
                "the chat template is refused",
                why="it writes nothing before a user's turn that would mark it",
            )
        return pre, post

    def layout(self, turns: int, system: str | None = None) -> tuple[str, ...]:
        """The texts around the turns of a conversation that waits for its answer number `turns`: 2 * `turns` texts.

        They stand before the user's first turn, between it and the answer, between that and the user's second turn,
        and so on, up to the assistant's next word; without the last one, the text ends with the user's header.
        `prefix` is the layout of one turn. A template that places its system turn anew in each turn is no obstacle:
        every number of turns has a layout of its own.

        Raises:
            InputRefused: the template takes no such conversation, or drops, moves, changes or repeats one of its turns.
        """
        marks = [self._marks(2 * turns - 1, length) for length in (12, 28)]
        opening = [] if system is None else [turn("system", system)]
        chats = [[*opening, *map(turn, itertools.cycle(("user", "assistant")), each)] for each in marks]
        try:
            first, second = self.render(chats, add_generation_prompt=True)
            pieces = split_turns(first, marks[0])
            if pieces != split_turns(second, marks[1]):
                refuse("the chat template is refused", why="what it writes around a turn depends on the turn")
            if system is not None and system.strip() not in "".join(pieces):
                refuse("the chat template is refused", why="it leaves out the system turn")
        except InputRefused as error:
            refuse(
                f"the chat template cannot hold a conversation of {turns} turns",
                why=error.why or error.what,
                fix="use --turns 1, or a model whose template takes several turns",
            )
        return pieces

    def _marks(self, count: int, length: int) -> list[str]:
        """Sentinels for so many turns, of which no two have a piece in common."""
        names = (f"{self.sha256} {length} {number}" for number in range(count))
        return [f"Zq{hashlib.sha256(name.encode()).hexdigest()[:length]}Xw" for name in names]

    def sentinels(self) -> tuple[str, str]:
        """Two words that no text holds; any change of case changes them."""
        digest = self.sha256
        return f"Zq{digest[:12]}Xw", f"Kv{digest[12:40]}Jp"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def split_turns(rendered: str, marks: Sequence[str]) -> tuple[str, ...]:
    """The texts around `marks`, each of which must stand in `rendered` once, unchanged and in this order."""
    pieces: list[str] = []
    rest = rendered
    for number, mark in enumerate(marks):
        split_at(rendered, mark, "the assistant" if number % 2 else "a user")
        before, found, rest = rest.partition(mark)
        if not found:
            refuse("the chat template is refused", why="it changes the order of the turns")
        pieces.append(before)
    return (*pieces, rest)


@dataclass(frozen=True, slots=True)
class ChatPrefix:
    """What Magpie needs of a chat model: the text before and after a user's turn, and what ends a turn.

    `stop_ids` are sorted: the end of text, the tokens that close a turn, those that open the next one.
    `stop_strings` mark the turns of templates that have no tokens for it. `system` is the text asked for, None for
    the template's default. `layouts` holds, for the user's second turn, the third and so on as far as they were asked
    for, the texts around all turns (`ChatTemplate.layout`).
    """

    pre_query: str
    post_query: str
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    system: str | None = None
    layouts: tuple[tuple[str, ...], ...] = ()

    def text(self, turns: Sequence[str]) -> str:
        """What stands before the next turn, header included, after these turns (user's, assistant's, in turn).

        Their number decides who speaks next: none or an even number is the user. Raises UsageError for more turns than
        there are layouts for.
        """
        number = len(turns) // 2 + 1
        if number - 1 > len(self.layouts):
            raise UsageError(
                f"this prefix has no layout of {number} turns", fix="ask for it: chat_prefix(..., turns=N)"
            )
        pieces = (self.pre_query, self.post_query) if number == 1 else self.layouts[number - 2]
        around = zip(pieces, [*turns, ""], strict=False)
        return "".join(itertools.chain.from_iterable(around))


def chat_prefix(
    template: ChatTemplate | str | None,
    tokenizer: ChatTokenizer,
    *,
    eos_ids: Collection[int] = (),
    system: str | None = None,
    turns: int = 1,
) -> ChatPrefix:
    """The prefix of any chat template. `eos_ids`: more ids that end a text, as the model's configuration has them.

    `turns`: the most turns of a user that conversations will have.

    Raises:
        InputRefused: there is no template (a base model), or it cannot be used (`ChatTemplate.prefix` and
            `ChatTemplate.layout` say when).
    """
    template = ChatTemplate.of(template, tokenizer)
    pre, post = template.prefix(system)
    specials = special_pattern(tokenizer)
    ends = [read_turn_end(text, specials) for text in turn_boundaries(template, system) or [post]]
    names = {name for tokens, _ in ends for name in tokens}
    ids = {tokenizer.special_tokens[name] for name in names} | set(eos_ids)
    # A BOS in the middle of a text says that the model has begun another one.
    ids |= {i for i in (tokenizer.eos_id, tokenizer.bos_id) if i is not None}
    strings = sorted({marker for _, marker in ends if marker})
    layouts = tuple(template.layout(number, system) for number in range(2, turns + 1))
    return ChatPrefix(pre, post, tuple(sorted(ids)), tuple(strings), system, layouts)


def turn_boundaries(template: ChatTemplate, system: str | None = None) -> list[str]:
    """The texts between user and assistant, assistant and user, and after the last turn, as the template writes them.

    The generation prompt is no source for this: some templates open a thought in it. Empty for a template that takes
    no assistant turn or changes it.
    """
    marks = [f"{sentinel}{i}" for i, sentinel in enumerate(template.sentinels() * 2)]
    chat = [turn(role, mark) for role, mark in zip(("user", "assistant") * 2, marks, strict=True)]
    if system is not None:
        chat = [turn("system", system), *chat]
    rendered = template.attempt([chat, chat[:-2]])
    text = next((text for text in rendered if isinstance(text, str)), "")
    pieces = re.split("|".join(marks), text)
    return pieces[1:]


def read_turn_end(text: str, specials: re.Pattern[str]) -> tuple[list[str], str]:
    """What ends a turn in `text`, the template's words after it: (special tokens, marker to use where there are none).

    The tokens are those at the beginning, with nothing but white space between them: the end of this turn and the
    start of the next one. A marker is the first line, unless it is a plain word that a text may hold as well.
    """
    tokens: list[str] = []
    at = 0
    while match := re.compile(r"\s*(" + specials.pattern + ")").match(text, at):
        tokens.append(match[1])
        at = match.end()
    line = specials.split(text, maxsplit=1)[0].strip().partition("\n")[0].strip()
    if tokens or len(line) < 4 or line.isalnum():
        return tokens, ""
    return tokens, ("\n" if text[0] == "\n" else "") + line


# ---------------------------------------------------------------------------------------------------- token ids


def encode_chat(
    template: ChatTemplate | str | None, tokenizer: ChatTokenizer, messages: Conversation
) -> tuple[list[int], list[bool]]:
    """Token ids of a whole conversation, and which of them a model learns to write (a list of the same length).

    Those are what the assistant says and the token that ends its turn.

    Raises:
        InputRefused: there is no assistant turn, the template refuses the conversation or ends no turn with a special
            token, or a message holds the text of a special token.
    """
    encoded = encode_chats(template, tokenizer, [messages])[0]
    if isinstance(encoded, InputRefused):
        raise encoded
    return encoded


def encode_chats(
    template: ChatTemplate | str | None,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Conversation],
    roles: Collection[str] = ("assistant",),
) -> list[tuple[list[int], list[bool]] | InputRefused]:
    """`encode_chat` of many conversations in one round trip; one that is refused gives its error in its place.

    roles: whose turns are learnt. A user's or system turn is what it says, and the token that ends it if one does.
    A message may have an `input`: the end of its content, after one character, for templates that set it apart.
    """
    template = ChatTemplate.of(template, tokenizer)
    marks = template.sentinels()
    variants = [[messages, *marked(messages, marks, roles)] for messages in conversations]
    rendered = iter(template.attempt(list(itertools.chain.from_iterable(variants))))
    specials = special_pattern(tokenizer)
    result: list[tuple[str, Spans] | InputRefused] = []
    for messages, group in zip(conversations, variants, strict=True):
        texts = list(itertools.islice(rendered, len(group)))
        spoken = [message for message in messages if message["role"] in roles]
        try:
            check_contents(messages, specials)
            result.append((str(texts[0]), find_spans(texts, spoken, marks, specials)))
        except InputRefused as error:
            result.append(error)
    encoded = iter(encode_spans(tokenizer, [each for each in result if not isinstance(each, InputRefused)]))
    return [each if isinstance(each, InputRefused) else next(encoded) for each in result]


# -------------------------------------------------------------------------------------------------- description


def describe(
    template: ChatTemplate | str | None, tokenizer: ChatTokenizer, *, eos_ids: Collection[int] = ()
) -> dict[str, Any]:
    """What `ojak models info` shows of a chat template; JSON types only. Raises InputRefused like `chat_prefix`."""
    template = ChatTemplate.of(template, tokenizer)
    prefix = chat_prefix(template, tokenizer, eos_ids=eos_ids)
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    supports_system, default_system = _system_turn(template, prefix.pre_query)
    in_template = bool(tokenizer.bos_token) and prefix.pre_query.startswith(str(tokenizer.bos_token))
    return {
        "template_sha256": template.sha256,
        "pre_query": prefix.pre_query,
        "post_query": prefix.post_query,
        "stop_ids": list(prefix.stop_ids),
        "stop_tokens": [names.get(i, "") for i in prefix.stop_ids],
        "stop_strings": list(prefix.stop_strings),
        "bos": "template" if in_template else "tokenizer" if tokenizer.adds_bos else "none",
        "supports_system": supports_system,
        "default_system": default_system,
    }


def _system_turn(template: ChatTemplate, pre_query: str) -> tuple[bool, str | None]:
    """(whether the template takes a system turn, what it says by default: None for no system turn at all)."""
    sentinel = template.sentinels()[0][::-1]
    try:
        before, after = split_at(template.prefix(sentinel)[0], sentinel)
    except InputRefused:
        return False, None
    inside = len(pre_query) - len(before) - len(after)
    if inside < 0 or not pre_query.startswith(before) or not pre_query.endswith(after):
        return True, None
    default = pre_query[len(before) : len(before) + inside]
    is_marked = bool(before.removeprefix(template.bos_token or ""))
    return True, default if default or is_marked else None
