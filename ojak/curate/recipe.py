"""A filter recipe: rules in order, then a pick among the rows that passed all of them. Written in YAML, by anybody.

    version: 1
    name: mine
    about: short answers in English that say something
    rules:
      - language: {values: [en]}
      - no_duplicates: {kind: near}
      - length: {of: response, max: 2000}
    pick: {by: longest, number: 300, of: 1000}

The published recipes lie as such files in `presets/`. `pick.number` of `pick.of` rows scales with the input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ojak import _recipe_yaml
from ojak._recipe_yaml import Parsed, Place
from ojak._settings import Settings, WrongSettings, dotted, explain, meant
from ojak.curate.filters import RULES, Label, Rule, TagShare, Word
from ojak.errors import UsageError

PRESETS = Path(__file__).parent / "presets"
MOST_RULES = 100
MAX_MISSING = 0.2
QUOTAS = "quotas"  # their name beside those of the rules

Text = Annotated[str, StringConstraints(max_length=2000)]


class Pick(Settings):
    """Which of the rows that passed every rule are kept, and in what order they are written.

    by: "longest" takes those with the longest responses (characters), "random" draws, "all" takes them as they
    come. number: how many, of an input of `of` rows; without `of` whatever the input; without either, all.
    seed: of the draw. shuffle: the seed of a shuffle of what is kept; without it, rows keep their order.
    """

    by: Literal["longest", "all", "random"] = "all"
    number: int | None = Field(default=None, ge=1)
    of: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    shuffle: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _sound(self) -> Pick:
        if self.of is not None and (self.number is None or self.number > self.of):
            raise ValueError("`of` says of how many rows `number` was taken, so `number` is at most `of`")
        return self

    def rows(self, rows_in: int) -> int | None:
        """How many of `rows_in` rows are to be kept; None for all that passed."""
        if self.number is None or self.of is None:
            return self.number
        return max(1, int(rows_in * self.number / self.of + 0.5))


class Quotas(Settings):
    """The most rows of a label: below 1 a share of the rows that are kept, from 1 on a number of rows."""

    tag: Word
    most: dict[Label, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)


class Head(BaseModel):
    """What stands in the file, before the rules are looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    about: Text = ""
    source: Text = ""
    rules: list[dict[str, Any]] = Field(max_length=MOST_RULES)
    pick: dict[str, Any] | None = None
    quotas: dict[str, Any] | None = None
    max_missing: float = Field(default=MAX_MISSING, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class FilterRecipe:
    """A recipe that can be applied: every setting is checked.

    source: where a published recipe comes from. max_missing: the share of rows that may lack a rule's value; if
    more do, the rule is not applied.
    """

    name: str
    rules: tuple[Rule, ...]
    pick: Pick
    quotas: Quotas | None = None
    about: str = ""
    source: str = ""
    max_missing: float = MAX_MISSING

    @property
    def shares(self) -> tuple[TagShare, ...]:
        """The rules that also say how the rows that are kept are made up."""
        return tuple(rule for rule in self.rules if isinstance(rule, TagShare))

    @property
    def needs(self) -> tuple[str, ...]:
        """Every value that a rule or the quotas look at, once each."""
        wanted = [need for rule in self.rules for need in rule.needs]
        return tuple(dict.fromkeys([*wanted, *([f"tags.{self.quotas.tag}"] if self.quotas else [])]))

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON values; read back by `from_value`."""
        found: dict[str, Any] = {"version": 1, "name": self.name, "about": self.about, "source": self.source}
        found |= {
            "rules": [rule.resolved() for rule in self.rules],
            "pick": self.pick.model_dump(mode="json"),
        }
        found |= {"quotas": self.quotas.model_dump(mode="json")} if self.quotas else {}
        return {**found, "max_missing": self.max_missing}


def presets() -> list[str]:
    """The names of the recipes that come with ojak."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_recipe(name: Path | str) -> FilterRecipe:
    """The recipe called `name`, or in the file of that path (with a slash in it, or `.yaml` or `.yml` at its end).

    Raises UsageError that lists everything wrong with it, each with its place in the file.
    """
    text = str(name)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return from_value(_recipe_yaml.read(Path(text)))
    if text not in presets():
        raise UsageError(
            f"there is no recipe {text[:80]!r}",
            fix=f"{meant(text, presets())}; a recipe of your own is a path, such as ./mine.yaml",
        )
    return from_value(_recipe_yaml.read(PRESETS / f"{text}.yaml"))


def from_json(value: Mapping[str, Any], name: str) -> FilterRecipe:
    """The recipe that a manifest holds; `name` is what messages call it. Raises UsageError."""
    return from_value(Parsed(name, dict(value), {(): (1, 1)}))


def from_value(parsed: Parsed) -> FilterRecipe:
    """The recipe in a document that was read. Raises UsageError."""
    if not isinstance(parsed.value, dict):
        fields = ", ".join(Head.model_fields)
        raise UsageError(f"{parsed.name} is no filter recipe", fix=f"it must have the keys: {fields}")
    problems: list[str] = []
    try:
        head = Head.model_validate(parsed.value)
    except ValidationError as error:
        fields = list(Head.model_fields)
        raise _wrong(parsed, [_line(parsed, (), item, fields) for item in error.errors()]) from error
    rules = _rules(parsed, head.rules, problems)
    pick = _settings(parsed, ("pick",), Pick, head.pick or {}, problems)
    quotas = (
        _settings(parsed, ("quotas",), Quotas, head.quotas, problems) if head.quotas is not None else None
    )
    if problems or pick is None:
        raise _wrong(parsed, problems)
    return FilterRecipe(head.name, tuple(rules), pick, quotas, head.about, head.source, head.max_missing)


def _rules(parsed: Parsed, items: list[dict[str, Any]], problems: list[str]) -> list[Rule]:
    """The rules; what is wrong with them is added to `problems`."""
    found: list[Rule] = []
    for index, item in enumerate(items):
        place: Place = ("rules", index)
        kind = next(iter(item), "")
        if len(item) != 1 or kind not in RULES:
            problems.append(f"{parsed.where(place)}: {_no_rule(item)}")
            continue
        values = item[kind] if item[kind] is not None else {}
        if not isinstance(values, dict):
            problems.append(f"{parsed.where((*place, kind))}: {kind} takes settings, such as {{name: value}}")
            continue
        rule = _settings(parsed, (*place, kind), RULES[kind], values, problems)
        found += [rule] if rule is not None else []
    for name, count in Counter(rule.name for rule in found).items():
        if count > 1:
            problems.append(
                f"{parsed.where(('rules',))}: {count} rules would drop rows as {name!r}; keep one"
            )
    return found


def _no_rule(item: Mapping[str, Any]) -> str:
    if len(item) != 1:
        return "each item of `rules` is one rule: its name, a colon, its settings"
    name = next(iter(item))
    return f"there is no rule {name[:80]!r}; {meant(name, list(RULES))}"


def _settings(parsed: Parsed, place: Place, model: Any, values: Any, problems: list[str]) -> Any:
    """`model` made of `values`, or None and the reasons in `problems`."""
    fields = [field.alias or name for name, field in model.model_fields.items()]
    try:
        return model(**values)
    except WrongSettings as error:
        problems += [_line(parsed, place, item, fields) for item in error.problems]
        return None


def _line(parsed: Parsed, base: Place, item: Any, fields: list[str]) -> str:
    place = (*base, *item["loc"])
    return f"{parsed.where(place)}: {explain(item, dotted(place), fields)}"


def _wrong(parsed: Parsed, problems: list[str]) -> UsageError:
    lines = "\n".join(f"  {line}" for line in problems)
    return UsageError(f"the filter recipe {parsed.name} cannot be used:\n{lines}")
