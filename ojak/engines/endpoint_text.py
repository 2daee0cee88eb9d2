"""The chat template and the tokenizer of a model that runs elsewhere, and how its prompts get one BOS.

Where they come from, the first that there is: `--tokenizer`; the model of the served name, if it is on this machine;
a llama.cpp server, which tells its template (GET /props) and lends its tokenizer (POST /tokenize).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ojak.chat import ChatTokenizer, encode_prompt
from ojak.engines.endpoint_retry import Trouble
from ojak.engines.endpoint_wire import Wire
from ojak.errors import UsageError
from ojak.model.text_side import local_text_side, read_text_side

MAX_TEMPLATE = 1 << 18  # characters
MOST_MARKS = 48
# How the control tokens of chat templates are written; the server is asked which of these it has.
MARK = re.compile(r"<\|[^|<>\s{}]{1,40}\|>|<｜[^<>\s{}]{1,40}｜>|</?[A-Za-z_]{1,30}>|\[/?[A-Z_]{2,20}\]")
Tokenize = Callable[[str, bool], list[int]]


@dataclass(frozen=True, slots=True)
class Texts:
    """`is_local`: token ids are known here without asking the server."""

    tokenizer: ChatTokenizer
    template: str | None
    stop_ids: tuple[int, ...]
    is_local: bool

    def stop_texts(self, ids: Collection[int]) -> list[str]:
        """The texts of these control tokens, in the order of their ids."""
        names = {number: name for name, number in self.tokenizer.special_tokens.items()}
        return [names[number] for number in sorted(set(ids)) if names.get(number)]

    def with_one_bos(self, text: str, server_adds: bool) -> str:
        """`text` as a server has to get it for one BOS, where the model wants one."""
        bos = self.tokenizer.bos_token
        if not bos:
            return text
        bare = text
        while bare.startswith(bos):
            bare = bare.removeprefix(bos)
        wanted = len(bare) < len(text) or self.tokenizer.adds_bos
        return bos + bare if wanted and not server_adds else bare


def local_texts(
    model: str, tokenizer: str | None, accept_license: Collection[str], notify: Callable[[str], None] | None
) -> Texts | None:
    """Template and tokenizer from this machine (or the hub, for a `tokenizer` that is named); None without any."""
    if tokenizer:
        side = read_text_side(tokenizer, accept_license=accept_license, notify=notify)
    else:
        side = local_text_side(model)
    return Texts(side.tokenizer, side.chat_template, side.stop_ids, True) if side else None


class LentTokenizer:
    """A llama.cpp server's tokenizer as chat.py needs it. Its special tokens are those that the template names."""

    def __init__(
        self, tokenize: Tokenize, bos: tuple[str, int] | None, eos: tuple[str, int] | None, adds_bos: bool
    ) -> None:
        self._tokenize = tokenize
        self.bos_token, self.bos_id = bos or (None, None)
        self.eos_token, self.eos_id = eos or (None, None)
        self.adds_bos = adds_bos
        self.special_tokens: Mapping[str, int] = dict(filter(None, (bos, eos)))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return self._tokenize(text, special)


async def lent_texts(wire: Wire, props: Mapping[str, Any], tokenize: Tokenize) -> Texts | None:
    """What a llama.cpp server tells of its model. None where it tells no template or lends no tokenizer."""
    template = props.get("chat_template")
    if not isinstance(template, str) or not template.strip() or len(template) > MAX_TEMPLATE:
        return None
    try:
        ends = [await _token(wire, props.get(f"{name}_token")) for name in ("bos", "eos")]
        bos, eos = ends
        probe = await ask_tokens(wire, "a", add_special=True)
        tokenizer = LentTokenizer(tokenize, bos, eos, bos is not None and probe[:1] == [bos[1]])
        marks = dict.fromkeys(MARK.findall(template))
        found = [await _token(wire, mark) for mark in list(marks)[:MOST_MARKS]]
    except Trouble:
        return None
    tokenizer.special_tokens = dict(filter(None, [*ends, *found]))
    return Texts(tokenizer, template, (eos[1],) if eos else (), False)


async def ask_tokens(wire: Wire, text: str, *, special: bool = True, add_special: bool = False) -> list[int]:
    """The ids of `text` on a llama.cpp server. Raises Trouble."""
    body = {"content": text, "add_special": add_special, "parse_special": special}
    found = await wire.ask("/tokenize", body)
    tokens = found.get("tokens") if isinstance(found, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise Trouble("broken", "an answer without tokens")
    return tokens


async def _token(wire: Wire, mark: Any) -> tuple[str, int] | None:
    """A control token with its id; None for what is ordinary text to the server."""
    if not isinstance(mark, str) or not mark:
        return None
    whole = await ask_tokens(wire, mark)
    if len(whole) != 1 or await ask_tokens(wire, mark, special=False) == whole:
        return None
    return mark, whole[0]


def prompt_ids(texts: Texts, prompt: str | tuple[int, ...]) -> list[int]:
    """The token ids of a prompt, with one BOS at most. Raises UsageError where they are not known here."""
    if not isinstance(prompt, str):
        return list(prompt)
    if not texts.is_local:
        raise UsageError("token ids are not known for this endpoint", fix="give --tokenizer")
    return encode_prompt(texts.tokenizer, prompt)
