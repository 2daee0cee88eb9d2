"""Curation: rows in, annotated, filtered in the recipe's order, picked; one artifact out.

Pass 1 annotates into shards (`shards.py`), pass 2 decides (`decide.py`, `pick.py`), and the last one writes. Rows
stream; what needs all of them is kept as a few numbers a row. Killed at any time, the same command goes on with the
shards that are whole and with what a model has answered since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ojak._code import code_sha256, version
from ojak._files import TargetLock, sha256_file, target_exists
from ojak._progress import Listener, silent
from ojak.artifact import Artifact, publish, refuse_within
from ojak.curate.annotate import Annotators, open_annotators
from ojak.curate.config import CurateConfig
from ojak.curate.decide import Decisions, decide
from ojak.curate.filters import is_judged
from ojak.curate.models import Models
from ojak.curate.pick import pick
from ojak.curate.recipe import FilterRecipe
from ojak.curate.shards import RowTexts, Shards, Survey
from ojak.curate.trust import calibrations, not_applied
from ojak.curate.view import NOTES, View
from ojak.engines.base import Engine
from ojak.errors import InputRefused, UsageError
from ojak.records import AnyRecord, Conversation, Rejected, dump_json, from_row, to_row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND = "curate"
PEEK_ROWS = 64
BUCKET_ROWS = 16_384  # rows that are shuffled together in memory
CODE = ("curate", "rules", "judge", "similarity", "_grams.py")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows come from: an artifact's folder, or a file of any format that `ojak.load` reads."""

    path: Path
    artifact: Artifact | None
    sha256: str

    @classmethod
    def open(cls, source: Artifact | Path | str) -> Source:
        if isinstance(source, Artifact) or Path(source).is_dir():
            artifact = source if isinstance(source, Artifact) else Artifact.open(source)
            return cls(artifact.path, artifact, artifact.manifest_sha256)
        if not Path(source).is_file():
            raise InputRefused(
                f"{source} is not there", fix="give an artifact's folder, or a file of conversations"
            )
        return cls(Path(source), None, sha256_file(Path(source)))

    @property
    def rows(self) -> int:
        """How many rows there are, as far as that is known before they are read."""
        return sum(self.artifact.splits.values()) if self.artifact else 0

    def records(self, notify: Callable[[str], None]) -> Iterator[AnyRecord]:
        if self.artifact:
            return iter(self.artifact.records())
        from ojak.formats import load

        return load(self.path, warn=notify)


def curate_data(
    source: Artifact | Path | str,
    out: Path | str,
    config: CurateConfig | None = None,
    *,
    engine: Engine | None = None,
    base_engine: Engine | None = None,
    guard_engine: Engine | None = None,
    accept_license: tuple[str, ...] = (),
    notify: Callable[[str], None] | None = None,
    progress: Listener | None = None,
) -> Artifact:
    """Publish in `out` the rows of `source` (all its splits) that a filter recipe keeps, with tags and scores.

    Dropped rows lie beside them with the first reason. `stats["not_applied"]` names the rules that were not applied,
    with the reason. Without `engine`, `config.model` is opened if a rule needs it; without `base_engine`,
    `config.reward_base`, and without `guard_engine`, `config.guard`.

    Raises TargetExists; InputRefused for a source that cannot be read or holds no conversations; UsageError for a wrong
    recipe, or (`config.strict`) a rule that cannot be applied; Locked; ResourceExhausted.
    """
    config, out = config or CurateConfig(), Path(out)
    recipe, began, tell = config.loaded(), time.perf_counter(), notify or silent
    refuse_within(out)
    if (out / "manifest.json").exists():
        raise target_exists(out / "manifest.json", why="the folder holds a finished artifact")
    origin = Source.open(source)
    with TargetLock(out), ExitStack() as stack:
        models = Models(config, out, accept_license, tell, stack, engine, base_engine, guard_engine)
        annotators = open_annotators(recipe, config, models)
        _look_ahead(origin, recipe, config, annotators)
        shards = _annotated(origin, out, recipe, annotators, models, tell, progress)
        skipped = not_applied(recipe, shards.survey, annotators.absent, trust_anyway=config.trust_anyway)
        _refuse_if_strict(config, skipped)
        found = decide(shards, recipe, skipped)
        order, ranks = pick(found, recipe, config.keep, skipped)
        seconds = time.perf_counter() - began
        with closing(RowTexts(shards.folder / "ids", len(shards))) as ids:
            writer = _Writer(shards, recipe, skipped, found, order, ranks, ids)
            artifact = publish(
                out,
                kind=KIND,
                records=writer.kept(),
                rejected=writer.rejected(),
                config=_settings(config, recipe),
                inputs=[origin.artifact or origin.path],
                counts={"rows": len(shards)},
                stats=_stats(found, recipe, skipped, annotators, order, seconds, shards.survey),
            )
        shards.remove()
    return artifact


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `--json` says of a curation: rows_in = kept + the sum of rejected."""
    counts, stats = artifact.counts, artifact.stats
    found = {"out": str(artifact.path), "recipe": stats["recipe"], "rows_in": counts["rows"]}
    found |= {"kept": counts["accepted"], "rejected": counts["rejected"]}
    return {**found, "not_applied": stats["not_applied"], "funnel": stats["funnel"]}


def _settings(config: CurateConfig, recipe: FilterRecipe) -> dict[str, Any]:
    """The settings for the manifest: the recipe written out, of a model's path the name alone."""
    values = config.model_dump(mode="json")
    for field in ("model", "reward_model", "reward_base", "guard"):
        name = values[field]
        values[field] = Path(name).name if name and Path(name).exists() else name
    return {**values, "recipe": recipe.resolved()}


def _look_ahead(origin: Source, recipe: FilterRecipe, config: CurateConfig, annotators: Annotators) -> None:
    """Look at the first rows: refuse an empty source, and, where that is asked, a rule that cannot be applied."""
    survey = Survey()
    for record in islice(origin.records(silent), PEEK_ROWS):
        if isinstance(record, Conversation):
            survey.add(View.of(record, fresh=True), recipe.needs)
        else:
            survey.rows += 1  # refused when it is annotated
    if not survey.rows:
        raise InputRefused(
            f"{origin.path} holds no rows", why="there is nothing to choose from",
            fix="give an artifact or a file of conversations",
        )  # fmt: skip
    for annotator in annotators.open:
        for need in annotator.gives:
            given = survey.having[need]
            survey.having[need] = survey.rows
            if is_judged(need) and given < survey.rows:
                parts = (annotator.identity.get(name) for name in ("judge", "grades", "reward"))
                maker = next(filter(None, parts), annotator.identity)
                survey.makers.setdefault(need, set()).add(dump_json(maker))
    skipped = not_applied(recipe, survey, annotators.absent, trust_anyway=config.trust_anyway)
    _refuse_if_strict(config, skipped)


def _refuse_if_strict(config: CurateConfig, skipped: Mapping[str, str]) -> None:
    if config.strict and skipped:
        raise UsageError(
            f"{len(skipped)} of the recipe's rules cannot be applied: {', '.join(skipped)}",
            why="; ".join(f"{name}: {why}" for name, why in skipped.items()),
            fix="give what they need, choose another recipe, or leave out --strict",
        )


def _annotated(
    origin: Source,
    out: Path,
    recipe: FilterRecipe,
    annotators: Annotators,
    models: Models,
    tell: Callable[[str], None],
    progress: Listener | None,
) -> Shards:
    """The rows with their annotations; what an interrupted run left is taken up."""
    identities = [annotator.identity for annotator in annotators.open]
    key = {"input": origin.sha256, "annotators": identities, "code": [version(), code_sha256(CODE)]}
    shards = Shards(out, key, recipe.needs)
    shards.complete(
        origin.records(tell),
        annotators.open,
        rows_total=origin.rows,
        after=models.forget,  # a shard has what was answered about its rows
        tell=tell,
        progress=progress,
    )
    return shards


def _stats(
    found: Decisions,
    recipe: FilterRecipe,
    skipped: Mapping[str, str],
    annotators: Annotators,
    order: NDArray[np.int64],
    seconds: float,
    survey: Survey,
) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "funnel": found.funnel,
        "not_applied": dict(skipped),
        "annotators": [annotator.identity for annotator in annotators.open],
        "calibrations": calibrations(survey),
        "neighbors": found.whole.recall(),
        # Picking the longest answers is a preference for length: said beside every selection.
        "response_chars": {"in": _quantiles(found.length), "kept": _quantiles(found.length[order])},
        "seconds": round(seconds, 3),
    }


def _quantiles(values: NDArray[np.int64]) -> dict[str, int]:
    import numpy as np

    if not len(values):
        return {}
    found = np.quantile(values, [0.1, 0.5, 0.9], method="lower")
    return {name: int(value) for name, value in zip(("p10", "p50", "p90"), found, strict=True)}


class _Writer:
    """The rows as they are published: each with the value and the verdict of every rule in `meta["curate"]`."""

    def __init__(
        self,
        shards: Shards,
        recipe: FilterRecipe,
        skipped: Mapping[str, str],
        found: Decisions,
        order: NDArray[np.int64],
        ranks: NDArray[np.int64],
        ids: RowTexts,
    ) -> None:
        self._shards, self._recipe, self._skipped, self._found = shards, recipe, skipped, found
        self._order, self._ranks = order, ranks
        self._targets = found.whole.targets(len(shards))
        self._ids = ids  # of rows that others are copies of

    def kept(self) -> Iterator[Conversation]:
        rows = self._rows(kept=True)
        return (record for _, record in rows) if self._recipe.pick.shuffle is None else self._shuffled(rows)

    def rejected(self) -> Iterator[Rejected]:
        for row, record in self._rows(kept=False):
            reason = self._found.reason(row) or ""
            meta = {**record.meta, "tags": record.tags, "scores": record.scores}
            yield Rejected(record.id, reason, KIND, messages=record.messages, source=record.source, meta=meta)

    def _rows(self, *, kept: bool) -> Iterator[tuple[int, Conversation]]:
        """The rows that are kept, or the others; on the way the ids are noted that others refer to."""
        for row, view in enumerate(self._shards.views()):
            if self._targets[row]:
                self._ids.put(row, view.conversation.id)
            if bool(self._found.code[row]) is not kept:
                yield row, self._noted(row, view)

    def _noted(self, row: int, view: View) -> Conversation:
        self._found.whole.put(view, row, self._ids.get)
        values = {rule.name: rule.value(view) for rule in self._recipe.rules}
        known = {name: value for name, value in values.items() if value is not None}
        failed = [
            rule.name
            for rule in self._recipe.rules
            if rule.name not in self._skipped and rule.name in known and not rule.passes(known[rule.name])
        ]
        notes: dict[str, Any] = {"values": known, "failed": failed, "reason": self._found.reason(row)}
        if self._ranks[row]:
            notes["rank"] = int(self._ranks[row])
        meta = {**view.conversation.meta, NOTES: notes}
        return replace(view.conversation, meta=meta, tags=view.tags, scores=view.scores)

    def _shuffled(self, rows: Iterator[tuple[int, Conversation]]) -> Iterator[Conversation]:
        """The rows in the order of the pick: dealt into files by their place, each of which is sorted in memory."""
        import numpy as np

        place = np.empty(len(self._found.code), dtype=np.int64)
        place[self._order] = np.arange(len(self._order))
        number = -(-len(self._order) // BUCKET_ROWS)
        paths = [self._shards.folder / f"bucket-{index:04d}.jsonl" for index in range(number)]
        with ExitStack() as stack:  # a file that finds no room for its last rows says so when it is closed
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for row, record in rows:
                to = int(place[row])
                line = orjson.dumps([to, to_row(record)], option=orjson.OPT_APPEND_NEWLINE)
                files[to // BUCKET_ROWS].write(line)
        for path in paths:
            with path.open("rb") as file:
                dealt = sorted((orjson.loads(line) for line in file), key=lambda item: item[0])
            for _, row in dealt:
                record = from_row(row)
                assert isinstance(record, Conversation)
                yield record
