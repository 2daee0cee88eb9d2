"""Which rows stay: the rules in order, each on the rows that the rules before it left, then the pick.

A row gets the code of the first rule that dropped it. What needs all rows is kept in arrays of a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ojak.curate import columns
from ojak.curate.filters import EMBEDDED, MISSING, NoDuplicates, NoEarlierNeighbor, Rule, label_of
from ojak.curate.recipe import QUOTAS, FilterRecipe
from ojak.curate.shards import Shards
from ojak.curate.view import View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.embedding import Neighbors

    Codes = NDArray[np.int32]
    Rows = NDArray[np.int64]


@dataclass
class Whole:
    """What is known of each row from all rows together: [rows] each. -1 stands for no row."""

    nearest: Neighbors | None = None
    repeats: Rows | None = None
    earlier: dict[str, Rows] = field(default_factory=dict)
    copies: dict[str, Rows] = field(default_factory=dict)  # -1: no copy; -2: not looked at

    def recall(self) -> dict[str, Any]:
        """How many of the nearest neighbours are the true ones: the share with its interval; empty where none was
        looked for."""
        found = self.nearest
        if found is None:
            return {}
        return {"exact": found.exact, "recall": [found.recall, found.recall_low, found.recall_high]}

    def put(self, view: View, row: int, name_of: Any = None) -> None:
        """Set the values of `row` in its view. `name_of` gives the id of an earlier row, where it is known."""
        if self.nearest is not None:
            view.scores["min_neighbor_distance"] = round(float(self.nearest.distance[row]), 6)
        if self.repeats is not None:
            view.scores["repeat_count"] = int(self.repeats[row])
        for key, array in (*self.earlier.items(), *self.copies.items()):
            place = int(array[row])
            if place >= 0:
                told = {"row": place}
                view.found[key] = told if name_of is None else {**told, "id": name_of(place)}
            elif place == -1:
                view.found[key] = False

    def targets(self, rows: int) -> NDArray[np.bool_]:
        """[rows]: whether others are copies of the row."""
        import numpy as np

        found = np.zeros(rows, dtype=bool)
        for array in (*self.earlier.values(), *self.copies.values()):
            found[array[array >= 0]] = True
        return found


@dataclass
class Decisions:
    """What became of each row. code: [rows], 0 for a row that passed, else a place in `reasons`.

    length: [rows], characters of the response. groups: for each rule that shares out places (and "quotas"), [rows],
    the group of the row, -1 for none.
    """

    code: Codes
    length: NDArray[np.int64]
    groups: dict[str, NDArray[np.int32]]
    reasons: list[str] = field(default_factory=lambda: [""])
    whole: Whole = field(default_factory=Whole)
    funnel: list[dict[str, Any]] = field(default_factory=list)

    def reason(self, row: int) -> str | None:
        """The code of the first rule that dropped the row; None for one that is kept."""
        return self.reasons[self.code[row]] or None

    def code_of(self, reason: str) -> int:
        """The number of a reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def passed(self) -> Rows:
        """The rows that no rule has dropped so far."""
        import numpy as np

        return np.flatnonzero(self.code == 0)

    def count(self, name: str, rows_in: int) -> None:
        """Add a line to the funnel: what this rule left of the rows that came to it."""
        self.funnel.append({"rule": name, "in": rows_in, "rejected": rows_in - len(self.passed())})


def decide(shards: Shards, recipe: FilterRecipe, skipped: Collection[str]) -> Decisions:
    """Apply the rules of `recipe` that are not `skipped` to all rows, in order."""
    import numpy as np

    rows = len(shards)
    sharing = [rule.name for rule in recipe.shares] + ([QUOTAS] if recipe.quotas else [])
    groups = {name: np.full(rows, -1, dtype=np.int32) for name in sharing}
    found = Decisions(np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int64), groups)
    rules = [rule for rule in recipe.rules if rule.name not in skipped]
    look_at_all(found.whole, shards, rules)
    for index, part in enumerate(_parts(rules)):
        if isinstance(part, NoDuplicates):
            _drop_copies(found, shards, part)
        elif part or index == 0:
            _drop_alone(found, shards, part, recipe if index == 0 else None)
    return found


def look_at_all(whole: Whole, shards: Shards, rules: Sequence[Rule]) -> None:
    """Compare the embeddings of all rows, as far as a rule needs it."""
    needs = {need for rule in rules for need in rule.needs}
    vectors = shards.vectors() if needs & set(EMBEDDED) else None
    if vectors is None:
        return
    if "scores.min_neighbor_distance" in needs:
        whole.nearest = columns.nearest(vectors)
    if "scores.repeat_count" in needs:
        whole.repeats = columns.repeats(vectors)
    for rule in rules:
        if isinstance(rule, NoEarlierNeighbor):
            whole.earlier["earlier_neighbor"] = columns.earlier_neighbors(vectors, rule.within)


def _parts(rules: Sequence[Rule]) -> Iterator[list[Rule] | NoDuplicates]:
    """The rules, those that look at a row alone in lists, first of all such a list (it may be empty)."""
    alone: list[Rule] = []
    first = True
    for rule in rules:
        if not isinstance(rule, NoDuplicates):
            alone.append(rule)
            continue
        if alone or first:
            yield alone
        yield rule
        alone, first = [], False
    if alone or first:
        yield alone


def _drop_alone(found: Decisions, shards: Shards, rules: Sequence[Rule], recipe: FilterRecipe | None) -> None:
    """Apply rules that look at a row alone. The first pass (with the recipe) notes what the pick will look at."""
    codes = [(found.code_of(rule.name), found.code_of(rule.name + MISSING)) for rule in rules]
    before = len(found.passed())
    for row, view in enumerate(shards.views()):
        if found.code[row]:
            continue
        if recipe is not None:
            _note(found, recipe, row, view)
        found.whole.put(view, row)
        found.code[row] = _first_code(view, rules, codes)
    for rule in rules:
        dropped = _dropped_by(found, rule)
        found.funnel.append({"rule": rule.name, "in": before, "rejected": dropped})
        before -= dropped


def _first_code(view: View, rules: Sequence[Rule], codes: Sequence[tuple[int, int]]) -> int:
    for rule, (failed, missing) in zip(rules, codes, strict=True):
        value = rule.value(view)
        if value is None:
            return missing
        if not rule.passes(value):
            return failed
    return 0


def _dropped_by(found: Decisions, rule: Rule) -> int:
    import numpy as np

    codes = [found.code_of(reason) for reason in (rule.name, rule.name + MISSING)]
    return int(np.isin(found.code, codes).sum())


def _note(found: Decisions, recipe: FilterRecipe, row: int, view: View) -> None:
    found.length[row] = len(view.response)
    for rule in recipe.shares:
        found.groups[rule.name][row] = rule.group_of(label_of(view, rule.tag))
    if recipe.quotas:
        labels = list(recipe.quotas.most)
        label = label_of(view, recipe.quotas.tag)
        found.groups[QUOTAS][row] = labels.index(label) if label in labels else -1


def _drop_copies(found: Decisions, shards: Shards, rule: NoDuplicates) -> None:
    """Of rows with equal texts, or nearly equal ones, among those that came this far, keep the first."""
    import numpy as np

    rows = found.passed()
    texts = (rule.text(view) for row, view in enumerate(shards.views()) if not found.code[row])
    if rule.how == "exact":
        first = columns.exact_duplicates(texts)
    else:
        first = columns.near_duplicates(texts, rule.threshold, rule.unit)
    copies = np.full(len(found.code), -2, dtype=np.int64)
    is_copy = first != np.arange(len(first))
    copies[rows] = np.where(is_copy, rows[first], -1) if len(rows) else -1
    found.whole.copies[rule.name] = copies
    found.code[rows[is_copy]] = found.code_of(rule.name)
    found.count(rule.name, len(rows))
