"""What a recipe says before its stages: its parameters, its scales, and what `--set` puts in.

    parameters:
      data: {what: "the rows to train on", default: null}
    scales:
      small: {train.max_tokens: 2000}

`--set data=PATH` gives a parameter, which stands in settings as `${data}`; `--set scale=small` puts in the settings of
a scale; every other `--set a.b=value` overrides a setting, and comes after the scale.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ojak import _recipe_yaml
from ojak._recipe_yaml import Parsed, Place
from ojak._settings import meant
from ojak.errors import UsageError

SCALE = "scale"
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
USED = re.compile(r"\$\{([^{}]*)\}")


class Parameter(BaseModel):
    """A value that whoever runs the recipe gives. `what` it is; without a `default`, it has to be given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str = Field(min_length=1)
    default: str | int | float | bool | list[Any] | None = None


class Head(BaseModel):
    """What stands in the file, before the settings of the stages are looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    scales: dict[str, dict[str, Any]] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any] | None] = Field(min_length=1)


@dataclass
class Given:
    """What was put into a recipe: where, and who said so (`--set ...`, a scale); the parameters; the scale's name."""

    places: dict[Place, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    scale: str | None = None

    def origin(self, place: Place) -> str | None:
        """Who put in the value at `place`, if it does not stand in the file."""
        # The last one that was put in counts: a --set comes after the scale.
        found = [said for at, said in self.places.items() if place[: len(at)] == at]
        return found[-1] if found else None


def put_in(parsed: Parsed, sets: Sequence[str]) -> Given:
    """Put the scale, then the other overrides, into the document, and take the values of parameters out of `sets`.

    Raises UsageError for what cannot be put in.
    """
    given = Given()
    others: list[tuple[str, str, str]] = []
    declared = _section(parsed, "parameters")
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not all(name.strip().split(".")):
            raise UsageError(
                f"--set {text!r} is not of the form name=value", fix="for example --set magpie.rows=64"
            )
        if name.strip() == SCALE:
            given.scale = value.strip()
        elif name.strip() in declared:
            given.parameters[name.strip()] = _recipe_yaml.value_of(value)
        else:
            others.append((name.strip(), value, f"--set {text!r}"))
    if given.scale is not None:
        _put_scale(parsed, given, given.scale)
    for name, value, said in others:
        given.places[_put(parsed, name, _recipe_yaml.value_of(value), said)] = said
    return given


def _section(parsed: Parsed, name: str) -> Mapping[str, Any]:
    found = parsed.value.get(name)
    return found if isinstance(found, dict) else {}


def _put_scale(parsed: Parsed, given: Given, scale: str) -> None:
    scales = _section(parsed, "scales")
    if scale not in scales:
        raise UsageError(
            f"--set {SCALE}={scale[:80]}: the recipe has no such scale", fix=meant(scale, list(scales))
        )
    settings = scales[scale]
    for name, value in settings.items() if isinstance(settings, dict) else ():
        said = f"{parsed.where(('scales', scale, name))} (scale {scale})"
        if not all(name.split(".")):
            raise UsageError(f"{said}: {name[:80]!r} is no name of a setting", fix="for example magpie.rows")
        given.places[_put(parsed, name, copy.deepcopy(value), said)] = said


def _put(parsed: Parsed, name: str, value: Any, said: str) -> Place:
    """Put a value into the document at `a.b`, whose first part may be a stage; gives its place."""
    place: Place = tuple(name.split("."))
    if place[0] not in Head.model_fields:
        place = ("stages", *place)
    node: Any = parsed.value
    for depth, key in enumerate(place[:-1]):
        inside = depth > 1  # a stage and its settings: what is not there yet may be begun
        if isinstance(node, dict) and (
            node.get(key) is None if inside else key in node and node[key] is None
        ):
            node[key] = {}
        if not isinstance(node, dict):
            break
        if key not in node:
            raise UsageError(
                f"{said}: the recipe has no {'.'.join(map(str, place[: depth + 1]))!r}",
                fix=meant(str(key), list(node)),
            )
        node = node[key]
    if not isinstance(node, dict):
        raise UsageError(f"{said}: {'.'.join(map(str, place[:-1]))!r} holds no settings")
    node[place[-1]] = value
    return place


def parameter_problems(parsed: Parsed, head: Head, given: Given) -> Iterator[str]:
    """What is wrong with the parameters themselves: names that cannot be told apart, values that are missing."""
    taken = {*head.stages, *Head.model_fields, SCALE}
    for name, parameter in head.parameters.items():
        where = parsed.where(("parameters", name))
        if not NAME.fullmatch(name) or name in taken:
            yield f"{where}: {name[:80]!r} cannot be the name of a parameter"
        elif name not in given.parameters and parameter.default is None:
            yield f"{where}: the recipe needs --set {name}=VALUE: {parameter.what}"


def filled_in(
    parsed: Parsed, head: Head, given: Given, values: Any, place: Place, problem: Callable[[str], object]
) -> Any:
    """`values` with each `${name}` in a text replaced by the parameter; a text that is no more takes its value whole.

    A recipe without parameters is left as it is. `problem` is told of names that are none.
    """
    if not head.parameters:
        return values
    known = {name: parameter.default for name, parameter in head.parameters.items()} | given.parameters

    def filled(value: Any, at: Place) -> Any:
        if isinstance(value, dict):
            return {key: filled(each, (*at, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [filled(each, (*at, number)) for number, each in enumerate(value)]
        return _text(value, at) if isinstance(value, str) else value

    def _text(text: str, at: Place) -> Any:
        unknown = [name for name in USED.findall(text) if name not in known]
        if unknown:
            problem(
                f"{given.origin(at) or parsed.where(at)}: there is no parameter {unknown[0][:80]!r};"
                f" {meant(unknown[0], list(known))}"
            )
            return text
        whole = USED.fullmatch(text)
        return known[whole[1]] if whole else USED.sub(lambda found: str(known[found[1]]), text)

    return filled(values, place)
