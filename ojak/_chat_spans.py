"""Which tokens of a rendered conversation are whose: turns found by rendering sentinels, borders by encoding.

Part of `ojak.chat`, which renders; nothing here knows a template or a model family.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from ojak._template_sandbox import refuse
from ojak.errors import InputRefused

Spans: TypeAlias = list[tuple[int, int]]
Conversation: TypeAlias = Sequence[Mapping[str, object]]


class ChatTokenizer(Protocol):
    """What this module needs of a tokenizer. `encode` never adds a BOS by itself."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def bos_token(self) -> str | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def eos_token(self) -> str | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def special_tokens(self) -> Mapping[str, int]: ...
    def encode(self, text: str, *, special: bool = True) -> list[int]: ...


def special_pattern(tokenizer: ChatTokenizer) -> re.Pattern[str]:
    """Matches the text of any special token, the longest first."""
    names = sorted((name for name in tokenizer.special_tokens if name), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def split_at(rendered: str, sentinel: str, who: str = "a user") -> tuple[str, str]:
    """The text before and after `sentinel`, which must stand in `rendered` once and unchanged; `who` says it."""
    found = rendered.count(sentinel)
    if found == 1:
        before, _, after = rendered.partition(sentinel)
        return before, after
    pieces = {sentinel[i : i + 6] for i in range(len(sentinel) - 5)}
    if found > 1:
        why = f"it repeats what {who} says ({found} times)"
    elif sentinel.lower() in rendered.lower():
        why = f"it changes the case of what {who} says"
    elif any(piece in rendered for piece in pieces):
        why = f"it cuts what {who} says"
    else:
        why = f"it leaves out what {who} says"
    refuse("the chat template is refused", why=why)


def encode_prompt(tokenizer: ChatTokenizer, rendered: str) -> list[int]:
    """Token ids of a rendered prompt, with one BOS at most: the template's, or the tokenizer's where it adds one."""
    return with_bos(tokenizer, tokenizer.encode(rendered, special=True))


def with_bos(tokenizer: ChatTokenizer, ids: list[int]) -> list[int]:
    """The ids of a rendered text with one BOS at most, as `encode_prompt` has it."""
    bos = tokenizer.bos_id
    if bos is None:
        return ids
    count = sum(1 for _ in itertools.takewhile(lambda i: i == bos, ids))
    if count == 0:
        return [bos, *ids] if tokenizer.adds_bos else ids
    return ids[count - 1 :]


def marked(
    messages: Conversation, marks: tuple[str, str], roles: Collection[str]
) -> Iterator[list[Mapping[str, object]]]:
    """The conversation again and again, each time with what another turn of `roles` says replaced by a sentinel."""
    for i, message in enumerate(messages):
        if message["role"] in roles:
            changed = {**message, "content": marks[0]}
            if given := message.get("input"):
                joint = str(message["content"])[-len(str(given)) - 1]
                changed |= {"content": marks[0] + joint + marks[1], "input": marks[1]}
            yield [*messages[:i], changed, *messages[i + 1 :]]


def check_contents(messages: Conversation, specials: re.Pattern[str]) -> None:
    for i, message in enumerate(messages):
        if found := specials.search(str(message["content"])):
            refuse(
                f"message {i} ({message['role']}) cannot be encoded",
                why=f"its text holds the special token {found[0]!r}, which would end or forge a turn",
                fix="remove the token's text from the message, or drop the row",
            )


def find_spans(
    texts: Sequence[str | InputRefused],
    spoken: Conversation,
    marks: tuple[str, str],
    specials: re.Pattern[str],
) -> Spans:
    """(start, end) in `texts[0]` of each turn `spoken`, its end token too; the other texts hold sentinels there."""
    for text in texts:
        if isinstance(text, InputRefused):
            raise text
    full, *marked = map(str, texts)
    if not marked:
        refuse(
            "the conversation cannot be encoded",
            why="it has no assistant turn to learn from",
            fix="drop the row",
        )
    return [
        _span(
            full,
            split_at(text, marks[0])[0],
            split_at(text, marks[1] if message.get("input") else marks[0])[1],
            specials,
            must_stop=message["role"] == "assistant",
        )
        for text, message in zip(marked, spoken, strict=True)
    ]


def _span(
    full: str, before: str, after: str, specials: re.Pattern[str], *, must_stop: bool
) -> tuple[int, int]:
    end = len(full) - len(after)
    if end < len(before) or not full.startswith(before) or not full.endswith(after):
        refuse(
            "the conversation cannot be encoded", why="the template's text around a turn depends on the turn"
        )
    # Only an assistant's turn may have white space before its end: after another, it may belong to the next turn.
    stop = re.compile(("\\s*" if must_stop else "") + f"({specials.pattern})").match(full, end)
    if stop is None and must_stop:
        refuse(
            "the conversation cannot be encoded",
            why="the template ends an assistant's turn with no special token: a model would never learn to stop",
            fix="use a template that writes the EOS after an assistant's turn",
        )
    return len(before), stop.end() if stop else end


def encode_spans(
    tokenizer: ChatTokenizer, rendered: Sequence[tuple[str, Spans]]
) -> list[tuple[list[int], list[bool]]]:
    """Ids of each text, and which of them lie in its spans (start, end, in characters).

    A token on a span's border belongs to it. A border is found by encoding what stands before it or, where that is
    shorter and gives the same tokens as in the whole, what stands after it.
    """
    texts = _encoded(tokenizer, [text for text, _ in rendered])
    places = [(text, at) for text, spans in rendered for span in spans for at in span]
    pieces = iter(
        _encoded(tokenizer, [text[at:] if _is_late(text, at) else text[:at] for text, at in places])
    )
    found: list[tuple[list[int], list[bool]]] = []
    for (text, spans), raw in zip(rendered, texts, strict=True):
        ids = with_bos(tokenizer, raw)
        mask = [False] * len(ids)
        for span in spans:
            first, last = (_border(tokenizer, ids, text, at, next(pieces)) for at in span)
            mask[first:last] = [True] * (last - first)
        found.append((ids, mask))
    return found


def _is_late(text: str, at: int) -> bool:
    return len(text) - at < at


def _border(tokenizer: ChatTokenizer, ids: list[int], text: str, at: int, piece: list[int]) -> int:
    """How many of the tokens stand before `at`; `piece` is what was encoded to tell."""
    if not _is_late(text, at):
        return _common_length(ids, with_bos(tokenizer, piece))
    before = len(ids) - len(piece)
    if before >= 0 and ids[before:] == piece:
        return before
    return _common_length(ids, encode_prompt(tokenizer, text[:at]))


def _encoded(tokenizer: ChatTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Many texts, on all cores where the tokenizer can."""
    together = getattr(tokenizer, "encode_batch", None)
    return together(texts, special=True) if together else [tokenizer.encode(text) for text in texts]


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )
