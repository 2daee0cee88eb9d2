"""The rules that a filter recipe can be made of. Each looks at one value of a row and lets the row pass or not.

A rule is data: its settings come from YAML. `name` is the code under which it drops rows, `needs` says which
values it looks at ("tags.difficulty", "scores.reward", "found.format", ...). A value that is missing is not a
verdict: such rows are dropped under `<name>_missing`, and where too many lack it the rule is not applied at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from ojak._settings import Settings
from ojak.curate.view import View
from ojak.judge.labels import DIFFICULTY, INPUT_QUALITY, UNPARSED

ORDERED_TAGS: Mapping[str, tuple[str, ...]] = {"difficulty": DIFFICULTY, "input_quality": INPUT_QUALITY}
LIBRARY_TAGS = {"language", "safety"}  # set by a library and by rules, not by a judge
REWARDS = {"reward", "reward_difference"}  # of a reward model
JUDGED_SCORES = {*REWARDS, "judge_score"}
MOST = 1e300  # of a score; NaN compares as neither
ROUNDING = 1e-6  # float32 products of unit rows: nearer than this is the same text
# Values that come from the instructions' embeddings, of all rows together.
EMBEDDED = ("scores.min_neighbor_distance", "scores.repeat_count", "found.earlier_neighbor")
MISSING = "_missing"

Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Literal["instruction", "response"]


class Rule(Settings):
    """The base of all rules. `kind` is its name in YAML, `what` says in a line what it asks of a row."""

    kind: ClassVar[str]
    what: ClassVar[str]
    wants: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """The code of the rule, unique in a recipe, under which it drops rows."""
        return self.kind

    @property
    def needs(self) -> tuple[str, ...]:
        """The values that it looks at; what every row has (its turns) is not among them."""
        return self.wants

    @property
    def judged(self) -> tuple[str, ...]:
        """Those of `needs` that a model has judged: they count only where that judge is trusted."""
        return tuple(need for need in self.needs if is_judged(need))

    def value(self, view: View) -> Any:
        """What it looks at in a row, as a JSON value; None where it is missing."""
        return view.get(self.needs[0])

    def passes(self, value: Any) -> bool:
        """Whether a row with this value (never None) may stay."""
        return not value  # a detector's: fine if nothing was found

    def resolved(self) -> dict[str, Any]:
        """The rule as it stands in YAML."""
        return {self.kind: self.model_dump(mode="json", exclude_defaults=True)}


def is_judged(need: str) -> bool:
    """Whether a value comes from a model's judgement."""
    place, _, name = need.partition(".")
    return (place == "tags" and name not in LIBRARY_TAGS) or (place == "scores" and name in JUDGED_SCORES)


def label_of(view: View, tag: str) -> str | None:
    """The label of a tag; None where there is none, or none that could be read."""
    found = view.tags.get(tag)
    known = ORDERED_TAGS.get(tag)
    if not isinstance(found, str) or found == UNPARSED or (known is not None and found not in known):
        return None
    return found


class _Tagged(Rule):
    tag: Word

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"tags.{self.tag}",)

    def value(self, view: View) -> Any:
        return label_of(view, self.tag)


class _Ordered(_Tagged):
    value_: Label = Field(alias="value")

    @model_validator(mode="after")
    def _known(self) -> _Ordered:
        labels = ORDERED_TAGS.get(self.tag)
        if labels is None:
            raise ValueError(f"only these tags have an order: {', '.join(ORDERED_TAGS)}")
        if self.value_ not in labels:
            raise ValueError(f"{self.tag} has the labels {', '.join(labels)}")
        return self

    def _rank(self, label: str) -> int:
        return ORDERED_TAGS[self.tag].index(label)

    def resolved(self) -> dict[str, Any]:
        return {self.kind: {"tag": self.tag, "value": self.value_}}


class MinTag(_Ordered):
    """At least this label."""

    kind = "min_tag"
    what = "an ordered tag is at least `value`"

    @property
    def name(self) -> str:
        return f"min_{self.tag}"

    def passes(self, value: Any) -> bool:
        return self._rank(value) >= self._rank(self.value_)


class MaxTag(_Ordered):
    """At most this label."""

    kind = "max_tag"
    what = "an ordered tag is at most `value`"

    @property
    def name(self) -> str:
        return f"max_{self.tag}"

    def passes(self, value: Any) -> bool:
        return self._rank(value) <= self._rank(self.value_)


class TagIn(_Tagged):
    """One of these labels."""

    kind = "tag_in"
    what = "a tag is one of `values`"
    values: tuple[Label, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        return f"{self.tag}_in"

    def passes(self, value: Any) -> bool:
        return value in self.values


class Group(Settings):
    """Labels that share a part of the rows that are kept."""

    values: tuple[Label, ...] = Field(min_length=1)
    share: float = Field(gt=0, le=1)


class TagShare(_Tagged):
    """Groups of labels, each with at most its share of the rows that are picked."""

    kind = "tag_share"
    what = "a tag is of one of `groups`, and each group gets at most its `share` of the rows that are kept"
    groups: tuple[Group, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> TagShare:
        labels = [label for group in self.groups for label in group.values]
        if len(set(labels)) != len(labels):
            raise ValueError("a label stands in two groups")
        if sum(group.share for group in self.groups) > 1 + 1e-9:
            raise ValueError("the shares add up to more than 1")
        return self

    @property
    def name(self) -> str:
        return f"{self.tag}_share"

    def group_of(self, value: Any) -> int:
        """The place of the group that has the label; -1 for none."""
        return next((place for place, group in enumerate(self.groups) if value in group.values), -1)

    def passes(self, value: Any) -> bool:
        return self.group_of(value) >= 0


def number_of(view: View, score: str) -> float | None:
    """The value of a score; None where there is none, or it is no number: rows come from anybody."""
    found = view.scores.get(score)
    if isinstance(found, bool) or not isinstance(found, int | float) or not -MOST <= found <= MOST:
        return None
    return found


class _Bound(Rule):
    score: Word

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"scores.{self.score}",)

    def value(self, view: View) -> Any:
        return number_of(view, self.score)


class MinScore(_Bound):
    """A score above a bound, or at least a bound."""

    kind = "min_score"
    what = "a score is `above` a number, or `at_least` a number"
    above: Finite | None = None
    at_least: Finite | None = None

    @model_validator(mode="after")
    def _one(self) -> MinScore:
        if (self.above is None) == (self.at_least is None):
            raise ValueError("give `above` or `at_least`, and only one of them")
        return self

    @property
    def name(self) -> str:
        return f"min_{self.score}"

    def passes(self, value: Any) -> bool:
        return value > self.above if self.above is not None else value >= (self.at_least or 0)


class MaxScore(_Bound):
    """A score below a bound, or at most a bound."""

    kind = "max_score"
    what = "a score is `below` a number, or `at_most` a number"
    below: Finite | None = None
    at_most: Finite | None = None

    @model_validator(mode="after")
    def _one(self) -> MaxScore:
        if (self.below is None) == (self.at_most is None):
            raise ValueError("give `below` or `at_most`, and only one of them")
        return self

    @property
    def name(self) -> str:
        return f"max_{self.score}"

    def passes(self, value: Any) -> bool:
        return value < self.below if self.below is not None else value <= (self.at_most or 0)


class MinNeighborDistance(Rule):
    """Far enough from the nearest other instruction of the whole input."""

    kind = "min_neighbor_distance"
    what = "the cosine distance of the instruction to the nearest other one is `above` a number"
    above: float = Field(ge=0, le=2)
    wants = ("scores.min_neighbor_distance",)

    def passes(self, value: Any) -> bool:
        return value > max(self.above, ROUNDING)


class NoEarlierNeighbor(Rule):
    """No earlier row whose instruction is this near: of a group of near ones, the first stays."""

    kind = "no_earlier_neighbor"
    what = "no earlier row's instruction is nearer than `within` (cosine distance)"
    within: float = Field(gt=0, le=2)
    wants = ("found.earlier_neighbor",)


class NoDuplicates(Rule):
    """No row that came this far has the same text, or nearly the same.

    Near: at least `threshold` of their 5-grams (of characters or words) in common, directly or through others.
    """

    kind = "no_duplicates"
    what = "no earlier row that passed the rules before this one has the same text (`exact`, or `near` by MinHash)"
    how: Literal["exact", "near"] = Field(alias="kind")
    of: Literal["instruction", "response", "pair"] = "instruction"
    threshold: float = Field(default=0.7, gt=0, le=1)
    unit: Literal["character", "word"] = "character"

    @property
    def name(self) -> str:
        return f"no_duplicates_{self.how}" + ("" if self.of == "instruction" else f"_{self.of}")

    def value(self, view: View) -> Any:
        return view.found.get(self.name)  # of rows that came this far; not known before

    def text(self, view: View) -> str:
        """The text that is compared."""
        if self.of == "pair":
            return f"{view.instruction}\n\n{view.response}"
        return view.instruction if self.of == "instruction" else view.response

    def resolved(self) -> dict[str, Any]:
        values = self.model_dump(mode="json", exclude={"how"}, exclude_defaults=True)
        return {self.kind: {"kind": self.how, **values}}


class Language(Rule):
    """The instruction's language, as a library detects it."""

    kind = "language"
    what = "the instruction's language (ISO 639-1, found by a library) is one of `values`"
    values: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")], ...] = Field(min_length=1)
    wants = ("tags.language",)

    def passes(self, value: Any) -> bool:
        return value in self.values


class NoPersonalData(Rule):
    """Neither side holds e-mail addresses, phone numbers, card numbers and the like."""

    kind = "no_personal_data"
    what = "neither side holds personal data (of `kinds`, or of any kind)"
    kinds: tuple[Word, ...] = ()
    wants = ("found.personal_data",)

    def passes(self, value: Any) -> bool:
        return not (set(value) & set(self.kinds) if self.kinds else value)


class NoContamination(Rule):
    """Neither side shares a run of words with a test set."""

    kind = "no_contamination"
    what = "neither side shares a run of `n` words with the test sets in the files `against`"
    against: tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...] = Field(
        min_length=1
    )
    n: int = Field(default=13, ge=3, le=50)
    wants = ("found.contamination",)


class InstructionNotEndingWith(Rule):
    """The instruction does not end as if something was missing after it."""

    kind = "instruction_not_ending_with"
    what = "the instruction does not end with one of `endings`"
    endings: tuple[Annotated[str, StringConstraints(min_length=1, max_length=20)], ...] = (":",)

    def value(self, view: View) -> Any:
        return view.instruction.rstrip()[-20:]

    def passes(self, value: Any) -> bool:
        return not value.endswith(self.endings)


class Except(Settings):
    """Rows that a rule leaves alone: those whose tag is one of these labels."""

    tag: Word
    values: tuple[Label, ...] = Field(min_length=1)


class MaxNewlines(Rule):
    """Few line ends in the instruction, except in some categories."""

    kind = "max_newlines"
    what = "the instruction has at most `most` line ends, except where a tag has one of some labels"
    most: int = Field(ge=0)
    except_: Except | None = Field(default=None, alias="except")

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"tags.{self.except_.tag}",) if self.except_ else ()

    def value(self, view: View) -> Any:
        if self.except_ is not None:
            label = label_of(view, self.except_.tag)
            if label is None:
                return None
            if label in self.except_.values:
                return label
        return view.instruction.count("\n")

    def passes(self, value: Any) -> bool:
        return isinstance(value, str) or value <= self.most

    def resolved(self) -> dict[str, Any]:
        kept = {"except": self.except_.model_dump(mode="json")} if self.except_ else {}
        return {self.kind: {"most": self.most, **kept}}


class ValidFormat(Rule):
    """What the response shows as code, JSON or arithmetic is sound."""

    kind = "valid_format"
    what = "fenced Python parses, fenced JSON loads, fences close, and sums that are written out are right"
    checks: tuple[Literal["fence", "python", "json", "arithmetic"], ...] = (
        "fence", "python", "json", "arithmetic",
    )  # fmt: skip
    wants = ("found.format",)

    def passes(self, value: Any) -> bool:
        return not any(str(problem).partition(":")[0] in self.checks for problem in value)


class NoRefusal(Rule):
    """The response does not open by declining."""

    kind = "no_refusal"
    what = "the response does not open by declining"
    wants = ("found.refusal",)


class NoBoilerplate(Rule):
    """The response does not speak of itself as a program."""

    kind = "no_boilerplate"
    what = "the response holds no phrase in which a model speaks of itself"
    wants = ("found.boilerplate",)


class Length(Rule):
    """A side's length within bounds, both included."""

    kind = "length"
    what = "the length of a side, in `chars`, `words` or `tokens`, is at least `min` and at most `max`"
    of: Side
    unit: Literal["chars", "words", "tokens"] = "chars"
    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _bounded(self) -> Length:
        if self.min is None and self.max is None:
            raise ValueError("give `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("`min` is more than `max`")
        return self

    @property
    def name(self) -> str:
        return f"{self.of}_{self.unit}"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"scores.{self.of}_{self.unit}",)

    def value(self, view: View) -> Any:
        return number_of(view, self.name)

    def passes(self, value: Any) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


RULES: Mapping[str, type[Rule]] = {
    rule.kind: rule
    for rule in (
        MinTag, MaxTag, TagIn, TagShare, MinScore, MaxScore, Length, MinNeighborDistance, NoEarlierNeighbor,
        NoDuplicates, Language, NoPersonalData, NoContamination, InstructionNotEndingWith, MaxNewlines, ValidFormat,
        NoRefusal, NoBoilerplate,
    )
}  # fmt: skip
