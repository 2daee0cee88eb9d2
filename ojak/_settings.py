"""Settings that people write: models of pydantic whose refusals are UsageErrors that name each wrong value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ojak.errors import UsageError


class WrongSettings(UsageError):
    """`problems` are those of pydantic (type, loc, input, msg), for who can say more of the place than its name."""

    def __init__(self, error: ValidationError, fields: Sequence[str]) -> None:
        self.problems = error.errors()
        lines = [explain(item, dotted(item["loc"]), fields) for item in self.problems]
        super().__init__("\n".join(lines))


class Settings(BaseModel):
    """The base of all settings. Made with a wrong value, they raise WrongSettings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # type checkers know the fields' names from pydantic's own __init__

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise WrongSettings(error, list(type(self).model_fields)) from error


class NotShown(ValueError):
    """A wrong value that no message repeats, such as an address with a password in it."""


@contextmanager
def wrong_value(*, shown: bool = True) -> Iterator[None]:
    """In a validator: a UsageError becomes what pydantic takes for a wrong value, so that the value's name is told.

    shown: the value may stand in the message.
    """
    try:
        yield
    except UsageError as error:
        raise (ValueError if shown else NotShown)(f"{error.what}; {error.fix}") from error


def dotted(place: Sequence[int | str]) -> str:
    """The name of a value within others: `ban_first[0]`, `magpie.rows`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def explain(item: Any, name: str, fields: Sequence[str]) -> str:
    """One error of pydantic in words; `fields` are the names that were allowed where it happened."""
    if item["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; {meant(str(item['loc'][-1]), fields)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    shown = re.sub(r"\s+", " ", repr(item["input"]))[:80]
    message = str(item["msg"]).removeprefix("Value error, ")
    if isinstance(item.get("ctx", {}).get("error"), NotShown):
        return f"{name} is refused: {message}"
    allowed = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
    close = difflib.get_close_matches(str(item["input"]), allowed, n=1)
    return f"{name} cannot be {shown}: {message}" + (f"; did you mean {close[0]!r}?" if close else "")


def meant(name: str, known: Sequence[str]) -> str:
    """Advice for a name that is not known: the nearest, and all."""
    close = difflib.get_close_matches(name, known, n=1)
    there = f"there are: {', '.join(known)}" if known else "it has none"
    return f"did you mean {close[0]!r}? {there}" if close else there
