"""Reads the YAML of a recipe, which may come from anybody: plain values only, within limits, and where each
one stood.

YAML is a language with surprises. Here numbers, `true`, `false` and `null` are those of YAML 1.2, so that
`no` is a text (a language code) and `1:30` is not a number of seconds. A key that stands twice, a tag
(`!!python/...`), a merge key and a document that grows by its aliases are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ojak.errors import UsageError

MAX_BYTES = 2**20
MAX_DEPTH = 16
MAX_NODES = 10_000  # with every alias written out
TAG = "tag:yaml.org,2002:"

Place = tuple[str | int, ...]


class Loader(yaml.CSafeLoader):
    """A safe loader that knows only the plain values of YAML 1.2's core schema."""


Loader.yaml_implicit_resolvers = {}  # none of the rules of YAML 1.1

for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        list("-+.0123456789"),
    ),
):
    Loader.add_implicit_resolver(TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The values of a document, and (line, column) of each key, counted from 1."""

    name: str
    value: Any
    marks: dict[Place, tuple[int, int]]

    def where(self, place: Place) -> str:
        """`file:line:column` of `place`, or of what it would be in."""
        while place not in self.marks:
            place = place[:-1]
        line, column = self.marks[place]
        return f"{self.name}:{line}:{column}"


def value_of(text: str) -> Any:
    """The value that `text` would be in a file; what is no plain value or list there is taken as the text it is."""
    try:
        value = parse(text, "--set").value if text.strip() else text
    except UsageError:
        return text
    return text if isinstance(value, dict) else value


def read(path: Path) -> Parsed:
    """The document in the file `path`. Raises UsageError, with the line and the column, for all that is refused."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}", why=error.strerror or str(error)) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is too big for a recipe", why=f"more than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text", why=f"byte {error.start}: {error.reason}", fix="save it as UTF-8"
        ) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Parsed:
    """The document in `text`; `name` is what messages call it. Raises UsageError."""
    try:
        _check_events(text, name)
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise UsageError(f"{name} is empty")
            marks: dict[Place, tuple[int, int]] = {(): _at(node), **dict(_walk(node, name))}
            return Parsed(name, loader.construct_document(node), marks)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _not_yaml(error, name) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise UsageError(f"{name} holds a value that cannot be read", why=str(error)) from error


def _check_events(text: str, name: str) -> None:
    """Refuse by the stream of events, which needs no memory and no recursion, what must not be built at all."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            _refuse(name, event, f"is nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            _refuse(name, event, f"has more than {MAX_NODES} values")
        tag = getattr(event, "tag", None)
        if tag is not None:
            _refuse(name, event, f"uses the tag {str(tag)[:80]!r}; a recipe holds plain values only")


def _walk(root: yaml.Node, name: str) -> Iterator[tuple[Place, tuple[int, int]]]:
    """Every place in the tree with its mark; refuses double keys, keys that are not text, and growth by aliases."""
    waiting: list[tuple[Place, yaml.Node]] = [((), root)]
    seen = 0
    while waiting:
        place, node = waiting.pop()
        seen += 1
        if seen > MAX_NODES or len(place) > MAX_DEPTH:
            _refuse(name, node, "grows too big by its aliases")
        children = list(_children(node, name))
        yield from (((*place, key), mark) for key, mark, _ in children)
        waiting += [((*place, key), child) for key, _, child in children]


def _children(node: yaml.Node, name: str) -> Iterator[tuple[str | int, tuple[int, int], yaml.Node]]:
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield index, _at(child), child
    if not isinstance(node, yaml.MappingNode):
        return
    keys: set[str] = set()
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag != TAG + "str":
            _refuse(name, key, "has a key that is not text")
        if key.value in keys:
            _refuse(name, key, f"has the key {key.value[:80]!r} twice")
        keys.add(key.value)
        yield key.value, _at(key), child


def _at(item: Any) -> tuple[int, int]:
    return item.start_mark.line + 1, item.start_mark.column + 1


def _refuse(name: str, item: Any, what: str) -> NoReturn:
    line, column = _at(item)
    raise UsageError(f"{name}:{line}:{column}: the recipe {what}")


def _not_yaml(error: yaml.YAMLError, name: str) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    return UsageError(f"{where}: this is not YAML", why=str(problem))
