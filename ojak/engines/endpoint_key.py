"""The key of an endpoint: from the environment alone, sent to one origin alone, shown nowhere."""

from __future__ import annotations

import os
import re
from typing import Any

import orjson

from ojak.engines.endpoint_url import VARIABLE, Address, parse_address
from ojak.errors import UsageError

DEFAULT_VARIABLE = "OJAK_ENDPOINT_KEY"
SENDABLE = re.compile(r"[\x21-\x7e]{1,8192}")  # in a header, where a line break would forge another one
LEAST_SECRET = 8  # characters; shorter ones ("EMPTY", "ollama") are placeholders that stand in ordinary text


class Key:
    """A key that can be sent and taken out of texts, and never shows itself. Empty where there is none."""

    __slots__ = ("_value", "variable", "withheld")

    def __init__(self, value: str = "", variable: str = DEFAULT_VARIABLE, withheld: str = "") -> None:
        self._value, self.variable, self.withheld = value, variable, withheld

    def __repr__(self) -> str:
        return f"Key(from {self.variable})" if self._value else "Key(none)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is not written down")

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._value}"} if self._value else {}

    def redact(self, content: bytes) -> Any:
        """The JSON in `content`, without the key: a server may repeat what it was sent, in whatever spelling.

        Raises ValueError or TypeError for what is not JSON or nested deeper than anybody means it.
        """
        found = orjson.loads(content)
        if len(self._value) < LEAST_SECRET:
            return found
        plain = orjson.dumps(found)  # one spelling for each character
        without = plain.replace(orjson.dumps(self._value)[1:-1], b"[key]")
        return found if without == plain else orjson.loads(without)

    @classmethod
    def of(cls, address: Address, variable: str | None = None) -> Key:
        """The key in the environment variable (`OJAK_ENDPOINT_KEY` unless another is named), if it is for `address`.

        `<VARIABLE>_ORIGIN` says which origin a key is for; without it, a key is sent to this machine only, so that no
        recipe can have it sent elsewhere. Raises UsageError where that is missing, or a key cannot be sent.
        """
        name = variable or DEFAULT_VARIABLE
        if not VARIABLE.fullmatch(name):
            raise UsageError(  # not shown: it may be the key itself
                "what was given as the name of the key's environment variable cannot be one",
                fix=f"export {DEFAULT_VARIABLE}=..., or give the name of another variable",
            )
        value = os.environ.get(name, "").strip()
        if not value:
            if variable:
                raise UsageError(f"there is no key in {name}", fix=f"export {name}=...")
            return cls()
        if not SENDABLE.fullmatch(value):
            raise UsageError(
                f"what is in {name} cannot be a key", why="it holds blanks, line breaks or other signs"
            )
        origin = os.environ.get(f"{name}_ORIGIN", "").strip()
        if origin and parse_address(origin).origin != address.origin:
            return cls(
                variable=name, withheld=f"the key in {name} was not sent: {name}_ORIGIN names another origin"
            )
        if not origin and not address.is_loopback:
            raise UsageError(
                f"a key is in {name}, but not for whom",
                why="a key goes to the origin that it is for and nowhere else",
                fix=f"export {name}_ORIGIN={address.origin}, or unset {name}",
            )
        return cls(value, name)
