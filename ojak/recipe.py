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
from typing import Any

from pydantic import ValidationError

from ojak import _recipe_yaml
from ojak._recipe_head import Given, Head, filled_in, parameter_problems, put_in
from ojak._recipe_yaml import Parsed, Place
from ojak._settings import Settings, dotted, explain, meant, problems
from ojak.errors import UsageError
from ojak.stages import BY_NAME, STAGES, Stage

RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A stage of a recipe with its settings, the folder of its result, and the stages whose results it takes."""

    stage: Stage
    settings: Settings
    folder: Path
    reads: tuple[str, ...] = ()

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
    """The recipe in the file `path`, with what `sets` say put in: "parameter=value", "scale=NAME" (a scale of the
    recipe), "stage.setting=value".

    `out` is the run's folder; without it `runs/<name>`, or `runs/<name>-<scale>`. Raises UsageError that lists
    everything wrong with the recipe, each with its place in the file and the values that are allowed.
    """
    parsed = _recipe_yaml.read(Path(path))
    if not isinstance(parsed.value, dict):
        raise UsageError(f"{path} is no recipe", fix=f"it must have the keys: {', '.join(Head.model_fields)}")
    given = put_in(parsed, sets)
    try:
        head = Head.model_validate(parsed.value)
    except ValidationError as error:
        fields = list(Head.model_fields)
        raise _wrong(path, [_line(parsed, given, (), item, fields) for item in error.errors()]) from error
    folder = Path(out) if out is not None else RUNS / "-".join(filter(None, (head.name, given.scale)))
    problems = [*_order_problems(parsed, list(head.stages))]
    missing = [*parameter_problems(parsed, head, given)]
    # Without its parameters nothing can be said of the settings that they stand in.
    chosen = [] if missing else list(_chosen(parsed, head, given, folder, problems))
    if problems or missing:
        raise _wrong(path, [*missing, *problems])
    return Recipe(head.name, folder, tuple(chosen))


def _chosen(parsed: Parsed, head: Head, given: Given, folder: Path, problems: list[str]) -> Iterator[Chosen]:
    """The stages with their settings; what is wrong with one goes to `problems`, and it is left out."""
    unknown: list[str] = []
    whole = {
        name: filled_in(parsed, head, given, values, ("stages", name), unknown.append)
        for name, values in head.stages.items()
    }
    problems += unknown
    before: list[str] = []
    for name, values in whole.items() if not unknown else ():
        if name not in BY_NAME:
            continue
        stage = BY_NAME[name]
        settings, found = _settings(parsed, given, stage, _filled(stage, values or {}, whole, folder))
        problems += found
        if settings is not None:
            try:
                reads = stage.picks(settings, [each for each in before if each in stage.reads])
                yield Chosen(stage, settings, folder / name, tuple(reads))
            except UsageError as error:
                problems.append(f"{parsed.where(('stages', name))}: {name}: {error.what}; {error.fix}")
        before.append(name)


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
    for other, given in stages.items():
        if other in stage.reads:
            filled = {**BY_NAME[other].lends(given or {}, stage.name), **filled}
    for name, (other, field) in stage.inherits.items():
        lent = (stages.get(other) or {}).get(field)
        if name not in filled and lent is not None:
            filled[name] = lent
    if "out" in stage.own and "out" not in values:
        filled["out"] = folder / stage.name
    return filled


def _settings(
    parsed: Parsed, given: Given, stage: Stage, values: dict[str, Any]
) -> tuple[Settings | None, list[str]]:
    """The settings of a stage, or None and all that is wrong with them."""
    place: Place = ("stages", stage.name)
    fields = stage.fields()
    own = [name for name in values if name in stage.own and (*place, name) in {*parsed.marks, *given.places}]
    if own:
        where = parsed.where((*place, own[0]))
        return None, [f"{where}: {own[0]!r} of {stage.name} is set by the run, not by a recipe"]
    wrong = list(problems(stage.settings(), values))
    if not wrong:
        return stage.settings()(**values), []
    # Of the names at the top, those that the run sets are no advice.
    return None, [
        _line(parsed, given, place, item, fields if len(item["loc"]) == 1 else inner) for item, inner in wrong
    ]


def _line(parsed: Parsed, given: Given, base: Place, item: Any, fields: Sequence[str]) -> str:
    """One line about one error: where, what, the bad value, and what is allowed."""
    place = (*base, *item["loc"])
    name = dotted(place[1:] if place[:1] == ("stages",) and place[1:] else place)
    return f"{given.origin(place) or parsed.where(place)}: {explain(item, name, fields)}"


def _wrong(path: Path | str, problems: Sequence[str]) -> UsageError:
    return UsageError("\n".join([f"the recipe {path} cannot be used:", *(f"  {line}" for line in problems)]))
