"""The artifacts that a page is about, and what their manifests say about the model and the machine.

Manifests are read leniently: a fact that is missing is not shown, and nothing is made up in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ojak._files import sha256_file
from ojak._manifest import MANIFEST
from ojak.artifact import Artifact
from ojak.errors import InputRefused, UsageError
from ojak.report.folders import peek
from ojak.report.measures import as_number, dig

# A loop of single requests to a local server, as published: 5 pairs in 2 min 37 s with Llama 3 8B on an M3 laptop
# (Raschka, LLMs-from-scratch, chapter 7, folder 05_dataset-generation).
MAX_FACT_CHARS = 2_000
ARTICLE_SECONDS_PER_PAIR = 157 / 5

# Kinds of manifests: of one training run, of runs of several arms and seeds, of models compared, of models merged.
TRAININGS = ("training", "train")
COMPARISON = "comparison"
MERGES = ("merge", "merge-sweep")  # the first is a model alone, the second has a page of its own
OF_MODELS = (*TRAININGS, COMPARISON, *MERGES)


@dataclass(frozen=True, slots=True)
class Sources:
    """The folders that a page is about: artifacts, those of training (of one run, or of arms), and a comparison."""

    artifacts: list[Artifact]
    trainings: list[Path] = field(default_factory=list)
    comparison: Path | None = None


def find_sources(paths: Sequence[Path] | Path) -> Sources:
    """What the folders in `paths`, and those directly inside a run folder, hold; artifacts in the order of making.

    Raises InputRefused where a path holds nothing of the kind, UsageError for two comparisons.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    folders = dict.fromkeys(folder for path in given for folder in _finished_folders(path))
    kinds = {folder: str(peek(folder).get("kind")) for folder in folders}
    compared = [folder for folder, kind in kinds.items() if kind == COMPARISON]
    if len(compared) > 1:
        raise UsageError(
            f"{len(compared)} comparisons of models were given, and a page has room for one",
            fix="write one report for each run folder",
        )
    opened = [Artifact.open(folder) for folder, kind in kinds.items() if kind not in OF_MODELS]
    return Sources(
        sorted(opened, key=lambda artifact: (_created(artifact.manifest), _depth(artifact, opened))),
        [folder for folder, kind in kinds.items() if kind in TRAININGS],
        compared[0] if compared else None,
    )


def _created(manifest: dict[str, Any]) -> str:
    return str(manifest.get("created", ""))


def _depth(artifact: Artifact, among: Sequence[Artifact]) -> int:
    """How many of `among` it is made from, one after the other: the order of stages made within one second."""
    made_from = {entry.get("manifest_sha256") for entry in _dicts(artifact.manifest.get("inputs"))}
    return max((1 + _depth(other, among) for other in among if other.manifest_sha256 in made_from), default=0)


def _finished_folders(path: Path) -> list[Path]:
    if (path / "manifest.json").is_file():
        return [path]
    inside = sorted(manifest.parent for manifest in path.glob("*/manifest.json")) if path.is_dir() else []
    if not inside:
        raise InputRefused(
            f"nothing to report on in {path}",
            why="neither this folder nor one directly inside it has a manifest.json, so no stage has finished here",
            fix="name the folder of a finished run or of one of its stages",
        )
    return inside


def main_artifact(artifacts: Sequence[Artifact]) -> Artifact:
    """The artifact that a page about data tells of: the one of kind magpie, otherwise the one with the most rows.

    Raises InputRefused for no artifact and UsageError for two Magpie runs.
    """
    if not artifacts:
        raise InputRefused(
            "nothing to report on", why="no artifact was given", fix="name the folder of a finished run"
        )
    made = [artifact for artifact in artifacts if artifact.manifest.get("kind") == "magpie"]
    if len(made) > 1:
        raise UsageError(
            f"{len(made)} Magpie runs were given, and a page tells the story of one",
            fix="write one report for each run folder",
        )
    return made[0] if made else max(artifacts, key=lambda artifact: count(artifact, "rows"))


def count(artifact: Artifact, name: str) -> int:
    """A number of the manifest's counts; 0 where it is missing."""
    return int(as_number(dig(artifact.manifest, "counts", name)) or 0)


def split_sizes(artifacts: Iterable[Artifact]) -> list[tuple[str, int]]:
    """Rows of each split of the first artifact of kind split."""
    return next((list(artifact.splits.items()) for artifact in artifacts if artifact.kind == "split"), [])


def curation(artifacts: Iterable[Artifact]) -> tuple[Artifact, list[tuple[str, int]]] | None:
    """The first artifact of kind curate, and the rules of its funnel that dropped rows, with their number."""
    for artifact in artifacts:
        if artifact.kind == "curate":
            steps = _dicts(dig(artifact.manifest, "stats", "funnel"))
            dropped = [
                (str(step.get("rule"))[:80], int(as_number(step.get("rejected")) or 0)) for step in steps
            ]
            return artifact, [(rule, rows) for rule, rows in dropped if rows > 0]
    return None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class Model:
    """What the manifests say about the model; empty text where they say nothing."""

    name: str
    sha256: str
    license: str
    quantization: str
    dtype: str
    device: str
    system: str
    language: str

    @property
    def short_name(self) -> str:
        """The name without the folders or the organisation before it."""
        return self.name.rstrip("/").rpartition("/")[2][:60]

    @property
    def weights(self) -> str:
        """`from 4-bit weights (Q4_1)`, or nothing for weights that were never quantised."""
        match = re.search(r"Q(\d)", self.quantization.upper())
        if match:
            return f"from {match[1]}-bit weights ({self.quantization})"
        return f"from weights stored as {self.quantization}" if self.quantization else ""


def model_facts(artifacts: Sequence[Artifact], first_meta: dict[str, Any]) -> Model:
    """Look in the main artifact's stats and config, then those of the stage that fetched the model, then a row."""
    main = main_artifact(artifacts)
    others = [artifact for artifact in artifacts if artifact.manifest.get("kind") == "pull"]
    places = [place for artifact in [main, *others] for place in _places(artifact)]

    def fact(*names: str) -> str:
        found = (place[name] for place in places for name in names if isinstance(place.get(name), str))
        return next((text[:MAX_FACT_CHARS] for text in found if text.strip()), "")

    def row(name: str) -> str:
        return first_meta[name][:MAX_FACT_CHARS] if isinstance(first_meta.get(name), str) else ""

    return Model(
        name=row("model") or fact("name", "model"),
        sha256=row("model_sha256") or fact("model_sha256", "sha256"),
        license=fact("license", "model_license"),
        quantization=fact("quantization"),
        dtype=row("dtype") or fact("dtype"),
        device=fact("device"),
        system=fact("system"),
        language=fact("language"),
    )


def _places(artifact: Artifact) -> Iterator[dict[str, Any]]:
    stats, config = artifact.manifest.get("stats"), artifact.manifest.get("config")
    for place in (
        dig(stats, "model"),
        dig(stats, "source"),
        stats,
        dig(stats, "engine"),
        dig(config, "model"),
        config,
    ):
        if isinstance(place, dict):
            yield place


@dataclass(frozen=True, slots=True)
class Speed:
    """What the run took, and what the same pairs would take one request at a time."""

    tokens: float
    seconds: float
    tokens_per_s: float
    alone_seconds: float
    alone_tokens_per_s: (
        float | None
    )  # measured on the same machine, or None: then the published loop is the yardstick

    @property
    def times_faster(self) -> float:
        return self.alone_seconds / self.seconds if self.seconds else 0.0


def speed_of(artifact: Artifact, accepted: int) -> Speed | None:
    """Speed from the manifest's stats; None where they hold no time or no tokens."""
    stats = artifact.manifest.get("stats")
    tokens, seconds = as_number(dig(stats, "completion_tokens")), as_number(dig(stats, "seconds"))
    if not tokens or not seconds or tokens < 0 or seconds < 0:
        return None
    alone = as_number(dig(stats, "one_by_one_tokens_per_s"))
    alone = alone if alone and alone > 0 else None
    alone_seconds = tokens / alone if alone else accepted * ARTICLE_SECONDS_PER_PAIR
    return Speed(
        tokens, seconds, as_number(dig(stats, "tokens_per_s")) or tokens / seconds, alone_seconds, alone
    )


@dataclass(frozen=True, slots=True)
class Lineage:
    """One stage, or one run of it, for the table of provenance; `rows` is None where it has none to count."""

    kind: str
    created: str
    version: str
    rows: int | None
    manifest_sha256: str
    files: list[dict[str, Any]]


def lineage(artifact: Artifact) -> Lineage:
    """The stage's entry in the table: what, when, how many rows, under which hashes."""
    return _lineage(artifact.manifest, count(artifact, "rows"), artifact.manifest_sha256)


def lineage_of(folder: Path, name: str) -> Lineage:
    """The same of a folder that is no artifact: a training run, or models compared."""
    found = _lineage(peek(folder), None, sha256_file(folder / MANIFEST))
    return replace(found, kind=name[:64])


def _lineage(manifest: dict[str, Any], rows: int | None, digest: str) -> Lineage:
    made = [str(manifest.get(name, ""))[:64] for name in ("kind", "created", "ojak_version")]
    return Lineage(made[0], made[1], made[2], rows, digest, _dicts(manifest.get("files")))
