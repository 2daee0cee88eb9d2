"""Settings that people write: models of pydantic whose refusals are UsageErrors that name each wrong value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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

        def __init__(self, /, **values: Any) -> None:  # a file may have a key `self`
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise WrongSettings(error, list(type(self).model_fields)) from error


def problems(
    kind: type[Settings], values: Mapping[str, Any], place: tuple[int | str, ...] = ()
) -> Iterator[tuple[Any, list[str]]]:
    """All that is wrong with `values` for settings of `kind` that may hold others: (pydantic's error, names allowed).

    The errors of inner settings come first, with their whole place. By itself, an inner one ends the making of the
    outer one, which then says neither where it stood nor what else is wrong.
    """
    sound = dict(values)
    for name, value in values.items():
        below = _inner(kind, name)
        if below is not None and isinstance(value, Mapping):
            found = list(problems(below, value, (*place, name)))
            yield from found
            if found:
                del sound[name]
    try:
        kind(**sound)
    except WrongSettings as error:
        broken = values.keys() - sound.keys()
        for item in error.problems:
            # What was left out for its own error is not missing, nor can the whole be judged without it.
            follows = broken and (not item["loc"] or item["loc"][0] in broken)
            if not follows:
                yield {**item, "loc": (*place, *item["loc"])}, list(kind.model_fields)


def _inner(kind: type[Settings], name: str) -> type[Settings] | None:
    """The settings that stand under a name, if it is one of settings."""
    found = kind.model_fields[name].annotation if name in kind.model_fields else None
    kinds = [each for each in (found, *getattr(found, "__args__", ())) if isinstance(each, type)]
    return next((each for each in kinds if issubclass(each, Settings)), None)


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
        raise (ValueError if shown else NotShown)(f"{error.what}; {error.fix or error.why}") from error


def dotted(place: Sequence[int | str]) -> str:
    """The name of a value within others: `ban_first[0]`, `magpie.rows`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def explain(item: Any, name: str, fields: Sequence[str]) -> str:
    """One error of pydantic in words; `fields` are the names that were allowed where it happened."""
    if item["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; {meant(str(item['loc'][-1]), fields)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    given = item["input"]
    if item["type"] == "value_error" and isinstance(
        given, (Mapping, BaseModel)
    ):  # of the settings as a whole
        return f"{name}: {str(item['msg']).removeprefix('Value error, ')}".removeprefix(": ")
    shown = re.sub(r"\s+", " ", repr(str(given) if isinstance(given, Path) else given))[:80]
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
