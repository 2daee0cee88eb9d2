"""The page itself: measures, figures and facts put into one HTML file that asks nothing of any network.

It tells of the rows that were made, of the models that were trained on them and compared, or of both.

All text that comes from a model, a manifest or a row passes through Jinja's autoescape. The page carries no script,
and its content security policy forbids every load and every script, so that even a hole in the escaping does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ojak._files import disk_errors
from ojak.artifact import Artifact, write_atomic
from ojak.errors import TargetExists
from ojak.records import Conversation, Rejected
from ojak.report import charts, sources, text, window
from ojak.report.ablation import COLUMNS, read_ablation
from ojak.report.html import environment, styled
from ojak.report.measures import (
    Measures,
    as_number,
    dig,
    first_text,
    grid_point,
    is_duplicate,
    measure,
    reason_code,
)
from ojak.report.models import Models, read_models
from ojak.report.training import TrainingRun

MAX_TURNS, ROWS_SHOWN = 20, 8
FILE_NAME = "index.html"
MAX_SETTINGS, MAX_FILES = 120, 40
MODEL_STYLES = ("style.css", "compare.css", "model.css")


def write_report(paths: Sequence[Path] | Path, out: Path, *, replace: bool = False) -> Path:
    """Write `out/index.html` about what is in `paths`: a run folder, or folders of artifacts, training and evaluation.

    Returns the page's path. Raises TargetExists where there is a page already and not `replace`, InputRefused where
    `paths` hold nothing to tell of, UsageError for several Magpie runs or comparisons, ResourceExhausted on a full
    disk.
    """
    page = out / FILE_NAME
    with disk_errors(page):
        if page.exists() and not replace:
            raise TargetExists(f"{page} is there already", fix="name another folder, or pass --overwrite")
    found = sources.find_sources(paths)
    if [artifact.kind for artifact in found.artifacts] == [window.KIND] and not found.trainings:
        return window.write_window_page(found.artifacts[0].path, out, replace=replace)
    html = render(found.artifacts, found.trainings, found.comparison)
    write_atomic(page, html.encode())
    return page


def render(
    artifacts: Sequence[Artifact], trainings: Sequence[Path] = (), comparison: Path | None = None
) -> str:
    """The page as HTML text; every row of the main artifact is read once. The same folders give the same page.

    With `trainings` (folders of training) or a `comparison` (the folder of an evaluation), models are told of: after
    the story of the data where the artifacts are those of a Magpie run, otherwise before a few of the rows.
    """
    main = sources.main_artifact(artifacts) if artifacts else None
    seed = int(as_number(dig(main.manifest, "config", "seed")) or 0) if main else 0
    models = read_models(trainings, comparison, seed=seed)
    if models is None:  # the page is about data, and refused where there are none
        main = main or sources.main_artifact(artifacts)
    values = {"seed": seed, "models": models, **_provenance(artifacts, main, models, comparison)}
    if main is not None and (models is None or main.kind == "magpie"):
        styles = ("style.css",) if models is None else MODEL_STYLES
        return _rendered("template", {**values, **styled(*styles), **_data_story(artifacts, main, seed)})
    assert models is not None
    values |= styled(*MODEL_STYLES) | _head(artifacts, models) | _ablation(artifacts, trainings, comparison)
    return _rendered("model_page", values | {"data": _rows(artifacts, main, seed)})


def _ablation(
    artifacts: Sequence[Artifact], trainings: Sequence[Path], comparison: Path | None
) -> dict[str, Any]:
    grids = (read_ablation(artifact.path, trainings, comparison) for artifact in artifacts)
    return {"ablation": next(filter(None, grids), None), "columns": COLUMNS}


def _rendered(template: str, values: dict[str, Any]) -> str:
    return environment().get_template(f"{template}.html.jinja").render(values)


def _data_story(artifacts: Sequence[Artifact], main: Artifact, seed: int) -> dict[str, Any]:
    measures = measure(main.records(), main.rejected(), seed=seed)
    return {
        **_story(artifacts, main, measures),
        **_figures(artifacts, measures, main),
        **_samples(measures),
    }


def _head(artifacts: Sequence[Artifact], models: Models) -> dict[str, Any]:
    """When and by what version the newest part was made."""
    manifests = [artifact.manifest for artifact in artifacts] + [run.manifest for run in models.training.runs]
    newest = max(manifests, key=lambda manifest: str(manifest.get("created", "")), default={})
    return {"created": _day(newest.get("created")), "version": str(newest.get("ojak_version", ""))[:64]}


def _rows(artifacts: Sequence[Artifact], main: Artifact | None, seed: int) -> dict[str, Any] | None:
    """What a page about models says of the rows; None where no stage left any."""
    if main is None or not sources.count(main, "rows"):
        return None
    measures = measure(main.records(), main.rejected(), seed=seed)
    read = dig(main.manifest, "config", "data")
    return {
        "kind": main.kind,
        "m": measures,
        "splits": sources.split_sizes(artifacts) or list(main.splits.items()),
        "source": ", ".join(map(str, read))[:400] if isinstance(read, list) else str(read or "")[:400],
        "pairs": [_pair(record) for record in measures.pairs[:ROWS_SHOWN]],
    }


def _story(artifacts: Sequence[Artifact], main: Artifact, measures: Measures) -> dict[str, Any]:
    rows = max(sources.count(main, "rows"), measures.accepted + measures.rejected)
    return {
        "kind": str(main.manifest.get("kind", ""))[:64],
        "created": _day(main.manifest.get("created")),
        "version": str(main.manifest.get("ojak_version", ""))[:64],
        "rows": rows,
        "failed": sources.count(main, "failed"),
        "m": measures,
        "model": sources.model_facts(artifacts, measures.first_meta),
        "speed": sources.speed_of(main, measures.accepted),
        "splits": sources.split_sizes(artifacts),
        "claimed": _claimed(main, measures),
    }


def _claimed(main: Artifact, measures: Measures) -> int | None:
    """The manifest's number of accepted rows where the files hold another one: the page says so."""
    claimed = as_number(dig(main.manifest, "counts", "accepted"))
    return int(claimed) if claimed is not None and int(claimed) != measures.accepted else None


def _day(created: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return ""
    return f"{moment.day} {moment:%B %Y}"


def _curated(artifacts: Sequence[Artifact]) -> list[charts.Step]:
    """The funnel of the curation, if there was one."""
    found = sources.curation(artifacts)
    if not found:
        return []
    artifact, dropped = found
    return charts.curation(dropped, sources.count(artifact, "rows"), sources.count(artifact, "accepted"))


def _figures(artifacts: Sequence[Artifact], measures: Measures, main: Artifact) -> dict[str, Any]:
    rows, failed = sources.count(main, "rows"), sources.count(main, "failed")
    widest = charts.commonest_opening(measures.openings)
    known = measures.accepted - sum(n for o, n in measures.openings.items() if o.kind == "other")
    return {
        "funnel": charts.funnel(measures, rows, failed),
        "curated": _curated(artifacts),
        "tiles": charts.tiles(measures.outcomes),
        "histograms": [
            charts.histogram(measures.instruction, "Length of instructions"),
            charts.histogram(measures.response, "Length of responses"),
        ],
        "heats": _heats(measures),
        "grid_hidden": _grid_hidden(measures),
        "opening_kinds": [
            (title, charts.opening_bars(measures.openings, kind, widest, measures.accepted))
            for title, kind in (("Requests", "verb"), ("Questions", "question"))
        ],
        "openings_known": known,
        "reason_notes": reason_notes(),
    }


def _heats(measures: Measures) -> list[charts.Heat]:
    return [
        charts.heat(measures.cells, "Duplicates", lambda cell: cell.duplicates),
        charts.heat(measures.cells, "Rejected for any reason", lambda cell: cell.rejected),
    ]


def _grid_hidden(measures: Measures) -> bool:
    """Whether the grid has more temperatures or top-p values than its table shows."""
    return any(len({point[axis] for point in measures.cells}) > charts.MAX_GRID_SIDE for axis in (0, 1))


def reason_notes() -> dict[str, str]:
    """Reason code -> what the rule of that name looks for, in words."""
    from ojak import rules

    return {rule.name: rule.what for rule in (*rules.MAGPIE_RULES, *rules.RESPONSE_RULES)}


@dataclass(frozen=True, slots=True)
class Pair:
    """A sampled pair; `complete`: the heading already holds the whole instruction."""

    id: str
    heading: str
    complete: bool
    turns: list[text.Turn]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class RejectedSample:
    """A row that was turned away, with its reason."""

    id: str
    text: str
    left_off: int
    asked: str


def _samples(measures: Measures) -> dict[str, Any]:
    groups: dict[str, list[RejectedSample]] = {}
    for row in measures.rejected_rows:
        groups.setdefault(reason_code(row), []).append(_rejected_sample(row))
    counts = {reason: 0 for reason in groups}
    for (_, reason), rows in measures.reasons.items():
        counts[reason] = counts.get(reason, 0) + rows
    ordered = sorted(groups.items(), key=lambda item: (-counts[item[0]], item[0]))[: charts.MAX_STEPS]
    return {
        "pairs": [_pair(record) for record in measures.pairs],
        "rejected_groups": [(reason, counts[reason], is_duplicate(reason), rows) for reason, rows in ordered],
    }


def _pair(record: Conversation) -> Pair:
    question = first_text(record, "user")
    heading = text.one_line(question)
    turns, room = [], text.MAX_SHOWN_CHARS
    for message in record.messages[:MAX_TURNS]:
        turns.append(text.turn(message["role"], message["content"], room))
        room = max(0, room - len(message["content"]))
    return Pair(str(record.id), heading or "(empty)", heading == question, turns, _notes(record.meta))


def _rejected_sample(row: Rejected) -> RejectedSample:
    asked = next((str(turn["content"]) for turn in row.messages if turn["role"] == "user"), "")
    content = row.text or asked
    shown, left_off = text.shorten(content, 600)
    return RejectedSample(str(row.id), shown, left_off, text.one_line(asked) if content != asked else "")


def _notes(meta: dict[str, Any]) -> list[str]:
    notes = []
    if point := grid_point(meta):
        notes.append(f"temperature {text.setting(point[0])}, top-p {text.setting(point[1])}")
    lengths = [as_number(dig(meta, "tokens", side)) for side in ("instruction", "response")]
    if any(length is not None for length in lengths):
        notes.append(" + ".join(text.number(length) for length in lengths if length is not None) + " tokens")
    if dig(meta, "finish_reason", "response") == "length":
        notes.append("response cut at the token limit")
    edits = meta.get("edits")
    if isinstance(edits, list | tuple) and edits:
        notes.append("trimmed: " + ", ".join(text.humanize(str(edit)) for edit in edits[:6]))
    return notes


def _provenance(
    artifacts: Sequence[Artifact], main: Artifact | None, models: Models | None, comparison: Path | None
) -> dict[str, Any]:
    stats, config = (main.manifest.get("stats"), main.manifest.get("config")) if main else (None, None)
    runs = models.training.runs if models else []
    tables = [
        ("Settings", config),
        ("Machine", dig(stats, "hardware")),
        ("Engine", dig(stats, "engine")),
        ("Start-up check", dig(stats, "probe")),
        (
            "Settings of the training" if len(runs) == 1 else "Settings of the first training run",
            _first(runs),
        ),
    ]
    stages = [sources.lineage(artifact) for artifact in artifacts]
    stages += [sources.lineage_of(run.folder, _run_name(run, runs)) for run in runs if run.manifest]
    stages += [sources.lineage_of(comparison, sources.COMPARISON)] if comparison else []
    return {
        "lineage": stages,
        "max_files": MAX_FILES,
        "setting_tables": [
            (title, _lines(value)) for title, value in tables if isinstance(value, dict) and value
        ],
    }


def _first(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    return runs[0].config if runs else {}


def _run_name(run: TrainingRun, runs: Sequence[TrainingRun]) -> str:
    return "training" if len(runs) == 1 else f"training {run.arm}, seed {run.seed}"


def _lines(value: dict[str, Any]) -> list[tuple[str, str]]:
    lines: Iterable[tuple[str, str]] = text.flatten(value)[:MAX_SETTINGS]
    return [(name[:120], content[:400]) for name, content in lines]
