"""The page itself: measures, figures and facts put into one HTML file that asks nothing of any network.

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
from ojak.report import charts, sources, text
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

MAX_TURNS = 20
FILE_NAME = "index.html"
MAX_SETTINGS, MAX_FILES = 120, 40


def write_report(paths: Sequence[Path] | Path, out: Path, *, replace: bool = False) -> Path:
    """Write `out/index.html` about the artifacts in `paths` (artifact folders, or a run folder that holds them).

    Returns the page's path. Raises TargetExists where there is a page already and not `replace`, InputRefused where
    `paths` hold no artifact, UsageError for several Magpie runs, ResourceExhausted on a full disk.
    """
    page = out / FILE_NAME
    with disk_errors(page):
        if page.exists() and not replace:
            raise TargetExists(f"{page} is there already", fix="name another folder, or pass --overwrite")
    html = render(sources.find_artifacts(paths))
    write_atomic(page, html.encode())
    return page


def render(artifacts: Sequence[Artifact]) -> str:
    """The page as HTML text; every row of the main artifact is read once. The same artifacts give the same page."""
    main = sources.main_artifact(artifacts)
    seed = int(as_number(dig(main.manifest, "config", "seed")) or 0)
    measures = measure(main.records(), main.rejected(), seed=seed)
    values = {
        **styled("style.css"),
        "seed": seed,
        **_story(artifacts, main, measures),
        **_figures(artifacts, measures, main),
        **_samples(measures),
        **_provenance(artifacts, main),
    }
    return environment().get_template("template.html.jinja").render(values)


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
class Turn:
    """A message as the page shows it."""

    role: str
    blocks: list[text.Block]
    left_off: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A sampled pair; `complete`: the heading already holds the whole instruction."""

    id: str
    heading: str
    complete: bool
    turns: list[Turn]
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
        turns.append(_turn(message["role"], message["content"], room))
        room = max(0, room - len(message["content"]))
    return Pair(str(record.id), heading or "(empty)", heading == question, turns, _notes(record.meta))


def _turn(role: str, content: str, room: int) -> Turn:
    shown, left_off = text.shorten(content, room)
    return Turn(role[:40], text.blocks(shown), left_off)


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


def _provenance(artifacts: Sequence[Artifact], main: Artifact) -> dict[str, Any]:
    stats = main.manifest.get("stats")
    tables = [
        ("Settings", main.manifest.get("config")),
        ("Machine", dig(stats, "hardware")),
        ("Engine", dig(stats, "engine")),
        ("Start-up check", dig(stats, "probe")),
    ]
    return {
        "lineage": [sources.lineage(artifact) for artifact in artifacts],
        "max_files": MAX_FILES,
        "setting_tables": [
            (title, _lines(value)) for title, value in tables if isinstance(value, dict) and value
        ],
    }


def _lines(value: dict[str, Any]) -> list[tuple[str, str]]:
    lines: Iterable[tuple[str, str]] = text.flatten(value)[:MAX_SETTINGS]
    return [(name[:120], content[:400]) for name, content in lines]
