"""A recipe: an ordered list of stages with their settings, in YAML. Read, checked, and carried out.

    version: 1
    name: quickstart
    stages:
      pull: {model: smollm2-135m-instruct}
      magpie: {rows: 192}
      split: {test: 0.1}

Each stage has a folder in the run's folder. Beside its result lies `stage.json`, which says what the result
was made with; from that it follows whether the stage is up to date, and if not, why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ojak import _recipe_yaml
from ojak._recipe_yaml import Parsed, Place
from ojak._settings import Settings, dotted, explain, meant, problems
from ojak.errors import UsageError
from ojak.stages import BY_NAME, STAGES, Stage

RUNS = Path("runs")


class Head(BaseModel):
    """What stands in the file, before the settings of the stages are looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    stages: dict[str, dict[str, Any] | None] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A stage of a recipe with its settings, and the folder of its result."""

    stage: Stage
    settings: Settings
    folder: Path

    def resolved(self) -> dict[str, Any]:
        """The settings as JSON values, without those that the run sets."""
        return self.settings.model_dump(mode="json", exclude=set(self.stage.own))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that can be run: every setting is checked, every default filled in. `out` is the run's folder."""

    name: str
    out: Path
    chosen: tuple[Chosen, ...]

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, as JSON values."""
        stages = {item.stage.name: item.resolved() for item in self.chosen}
        return {"version": 1, "name": self.name, "stages": stages}


def load(path: Path | str, *, out: Path | str | None = None, sets: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, with the overrides `sets` ("stage.setting=value") put in.

    `out` is the run's folder, `runs/<name>` without it. Raises UsageError that lists everything wrong with
    it, each with its place in the file and the values that are allowed.
    """
    parsed = _recipe_yaml.read(Path(path))
    if not isinstance(parsed.value, dict):
        raise UsageError(f"{path} is no recipe", fix=f"it must have the keys: {', '.join(Head.model_fields)}")
    overridden = {_override(parsed, item): item for item in sets}
    try:
        head = Head.model_validate(parsed.value)
    except ValidationError as error:
        fields = list(Head.model_fields)
        raise _wrong(
            path, [_line(parsed, overridden, (), item, fields) for item in error.errors()]
        ) from error
    folder = Path(out) if out is not None else RUNS / head.name
    problems = list(_order_problems(parsed, list(head.stages)))
    chosen: list[Chosen] = []
    for name, values in head.stages.items():
        if name not in BY_NAME:
            continue
        stage = BY_NAME[name]
        settings, found = _settings(
            parsed, overridden, stage, _filled(stage, values or {}, head.stages, folder)
        )
        problems += found
        if settings is not None:
            chosen.append(Chosen(stage, settings, folder / name))
    if problems:
        raise _wrong(path, problems)
    return Recipe(head.name, folder, tuple(chosen))


def _override(parsed: Parsed, text: str) -> Place:
    """Put `a.b=value` into the document; the first part of the name may be a stage. Gives the place of the value."""
    name, equals, value = text.partition("=")
    place: Place = tuple(name.strip().split("."))
    if not equals or not all(place):
        raise UsageError(
            f"--set {text!r} is not of the form name=value", fix="for example --set magpie.rows=64"
        )
    if place[0] not in Head.model_fields:
        place = ("stages", *place)
    node: Any = parsed.value
    for depth, key in enumerate(place[:-1]):
        if isinstance(node, dict) and key in node and node[key] is None:
            node[key] = {}
        if not isinstance(node, dict) or key not in node:
            there = list(node) if isinstance(node, dict) else []
            raise UsageError(
                f"--set {text!r}: the recipe has no {'.'.join(map(str, place[: depth + 1]))!r}",
                fix=meant(str(key), there),
            )
        node = node[key]
    if not isinstance(node, dict):
        raise UsageError(f"--set {text!r}: {'.'.join(map(str, place[:-1]))!r} holds no settings")
    node[place[-1]] = _recipe_yaml.value_of(value)
    return place


def _order_problems(parsed: Parsed, names: list[str]) -> Iterator[str]:
    """What is wrong with the stages themselves: unknown ones, and those that read what does not come before."""
    for index, name in enumerate(names):
        where = parsed.where(("stages", name))
        if name not in BY_NAME:
            yield f"{where}: there is no stage {name[:80]!r}; {meant(name, [stage.name for stage in STAGES])}"
            continue
        stage, before = BY_NAME[name], names[:index]
        for needed in stage.needs:
            if needed not in before:
                yield f"{where}: {name} reads the result of {needed}, which must come before it"
        late = [used for used in stage.uses if used in names[index:]]
        if late:
            yield f"{where}: {name} comes before {', '.join(late)}; put it after"


def _filled(
    stage: Stage, values: dict[str, Any], stages: Mapping[str, dict[str, Any] | None], folder: Path
) -> dict[str, Any]:
    """The settings with what other stages of the recipe lend, and the folder where the stage wants one."""
    filled = dict(values)
    for name, (other, field) in stage.inherits.items():
        lent = (stages.get(other) or {}).get(field)
        if name not in filled and lent is not None:
            filled[name] = lent
    if "out" in stage.own and "out" not in values:
        filled["out"] = folder / stage.name
    return filled


def _settings(
    parsed: Parsed, overridden: Mapping[Place, str], stage: Stage, values: dict[str, Any]
) -> tuple[Settings | None, list[str]]:
    """The settings of a stage, or None and all that is wrong with them."""
    place: Place = ("stages", stage.name)
    fields = stage.fields()
    own = [name for name in values if name in stage.own and (*place, name) in {*parsed.marks, *overridden}]
    if own:
        where = parsed.where((*place, own[0]))
        return None, [f"{where}: {own[0]!r} of {stage.name} is set by the run, not by a recipe"]
    wrong = list(problems(stage.settings(), values))
    if not wrong:
        return stage.settings()(**values), []
    # Of the names at the top, those that the run sets are no advice.
    return None, [
        _line(parsed, overridden, place, item, fields if len(item["loc"]) == 1 else inner)
        for item, inner in wrong
    ]


def _line(
    parsed: Parsed, overridden: Mapping[Place, str], base: Place, item: Any, fields: Sequence[str]
) -> str:
    """One line about one error: where, what, the bad value, and what is allowed."""
    place = (*base, *item["loc"])
    where = next((f"--set {text!r}" for at, text in overridden.items() if place[: len(at)] == at), None)
    name = dotted(place[1:] if place[:1] == ("stages",) and place[1:] else place)
    return f"{where or parsed.where(place)}: {explain(item, name, fields)}"


def _wrong(path: Path | str, problems: Sequence[str]) -> UsageError:
    return UsageError("\n".join([f"the recipe {path} cannot be used:", *(f"  {line}" for line in problems)]))
