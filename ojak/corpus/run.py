"""A corpus: files in, clean documents out, each other one with the reason why it is not among them.

Pass 1 reads and filters into parts (`shards.py`), pass 2 finds near duplicates, the last one writes. Documents stream;
of each that the filters keep, some hundred bytes stay in memory until the duplicates are known. Killed at any time, the
same call goes on with the parts that are whole.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak._code import code_sha256, version
from ojak._files import TargetLock, target_exists
from ojak._progress import Listener, Progress, silent
from ojak.artifact import Artifact, publish, refuse_inside, refuse_within
from ojak.corpus.config import CorpusConfig
from ojak.corpus.crew import Crew, Decided
from ojak.corpus.educational import facts, learn, read_scores, score_all, stays
from ojak.corpus.inputs import files, root_names, survey
from ojak.corpus.profiles import FILTERS, STAGES, Profile, personal_data, values, written_out
from ojak.corpus.reading import Raw, documents
from ojak.corpus.shards import Parts, Place
from ojak.records import Document, Rejected
from ojak.rules.found import redacted
from ojak.rules.privacy import find_personal_data
from ojak.similarity.minhash import Clusters, near_duplicates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND = "corpus"
CODE = ("corpus", "judge/language.py", "rules/privacy.py", "rules/found.py", "similarity/minhash.py",
        "similarity/text.py", "_grams.py")  # fmt: skip
EXACT, NEAR, EDUCATIONAL = "duplicate_exact", "duplicate_near", "educational"
MOST_TEXT_OF_REJECTED = 1_000_000  # characters that are kept to look at


def make_corpus(
    config: CorpusConfig,
    out: Path | str,
    *,
    notify: Callable[[str], None] | None = None,
    progress: Listener | None = None,
) -> Artifact:
    """Publish the documents of `config.paths` that pass a profile's rules in `out`: kind "corpus", of Documents.

    `meta` of a document: `path`, `format`, `language` (ISO 639-1, or "und"), `chars`; `title`, `record` (its number in
    a file of records), `extra` (what its row says else) where there are any. Counts are of documents: rows = accepted +
    rejected. Killed at any time, the same call goes on.

    Raises TargetExists; InputRefused for paths without files; UsageError for a path that is not there, a result among
    what is read, or a library that is missing; Locked; ResourceExhausted.
    """
    out, tell, began = Path(out), notify or silent, time.perf_counter()
    refuse_within(out)
    refuse_inside(out, config.paths)
    if (out / "manifest.json").exists():
        raise target_exists(out / "manifest.json", why="the folder holds a finished artifact")
    with TargetLock(out):
        found = survey(config.paths)
        key = {"inputs": found.digests, "rules": written_out(config), "code": [version(), code_sha256(CODE)]}
        parts = Parts(out, key)
        _read(parts, config, found.files, tell, progress)
        tell(
            f"{parts.counted.kept:,} of {parts.counted.documents:,} documents passed the rules; comparing them"
        )
        repeats = _Repeats.of(parts, config.profile)
        writer = _Writer(parts, config, repeats, _Taught.of(parts, config, repeats, tell), began)
        names = zip(root_names(config.paths), found.digests, strict=True)
        artifact = publish(
            out,
            kind=KIND,
            records=writer.kept(),
            rejected=writer.rejected(),
            config=written_out(config),
            inputs=[{"path": name, "sha256": digest} for name, digest in names],
            counts={"rows": parts.counted.documents},
            stats=writer.stats,
        )
        parts.remove()
    return artifact


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `--json` says of a corpus: documents_in = kept + the sum of rejected."""
    counts = artifact.counts
    found = {"out": str(artifact.path), "documents_in": counts["rows"], "kept": counts["accepted"]}
    found |= {"rejected": counts["rejected"], "funnel": artifact.stats["funnel"]}
    return found | {name: value for name, value in artifact.stats.items() if name == "educational"}


# -- reading and filtering --------------------------------------------------------------------------------------------


def _read(
    parts: Parts, config: CorpusConfig, count: int, tell: Callable[[str], None], listener: Listener | None
) -> None:
    """Read and decide what is not in the parts yet. count: files in all."""
    if parts.count:
        tell(f"{parts.counted.documents:,} documents were read before; going on after them")
    with Crew(config) as crew:
        decided = crew.decided(_raws(config, parts.place))
        for _ in parts.write((_record(each), _after(each.raw)) for each in decided):
            if listener:
                state = Progress(
                    rows_total=count, rows_done=parts.place.file, phase="reading", unit="files", reads=True
                )
                listener.update(state)


def _raws(config: CorpusConfig, begin: Place) -> Iterator[Raw]:
    """Every document after a place."""
    for file in islice(files(config.paths), begin.file, None):
        yield from documents(file, config.text_field, begin.number if file.number == begin.file else 0)


def _after(raw: Raw) -> Place:
    """Where the input goes on after a document."""
    if raw.last or raw.number is None:
        return Place(raw.file.number + 1)
    return Place(raw.file.number, raw.number + 1)


def _record(decided: Decided) -> Document | Rejected:
    """The record of a document."""
    raw, reply = decided.raw, decided.reply
    name, number, text = raw.file.name, raw.number or 0, str(reply["text"])
    meta = {"path": name, "format": raw.file.format, "language": reply["language"], "chars": len(text)}
    meta |= {key: value for key, value in _more(decided).items() if value not in ("", None, {})}
    if reply["reason"]:
        shown = text[:MOST_TEXT_OF_REJECTED]
        return Rejected(document_id(name, number), reply["reason"], KIND, shown, source=name, meta=meta)
    return Document(document_id(name, number), text, name, meta)


def _more(decided: Decided) -> dict[str, Any]:
    """What not every document has."""
    raw, reply = decided.raw, decided.reply
    return {
        "title": reply["title"],
        "record": raw.number,
        "extra": dict(raw.extra),
        "detail": reply["detail"],
    }


def document_id(name: str, number: int) -> str:
    """The id of record `number` of a file: 20 digits of a hash of its name, so that ten million names differ."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:20]}-{number:07d}"


# -- duplicates, personal data, and what is written -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Repeats:
    """Which of the documents that passed the filters repeat an earlier one; by row: `ids`, and their clusters."""

    ids: NDArray[np.bytes_]
    clusters: Clusters | None

    @classmethod
    def of(cls, parts: Parts, profile: Profile) -> _Repeats:
        """Compare the documents, as FineWeb does: 5-grams of words, 14 bands of 8 values."""
        import numpy as np

        rule = values(profile, "minhash")
        ids = np.empty(parts.counted.kept, dtype="S40")

        def texts() -> Iterator[str]:
            for row, document in enumerate(parts.kept()):
                ids[row] = document.id.encode()
                yield document.text

        if not rule:
            return cls(ids, None)
        bands = (rule["bands"], rule["values"])
        return cls(
            ids, near_duplicates(texts(), threshold=rule["least_jaccard"], size=rule["words"], bands=bands)
        )

    def reason(self, row: int) -> str:
        """EXACT, NEAR, or "" for a document that stays."""
        if self.clusters is None or self.clusters.first[row] == row:
            return ""
        return EXACT if self.clusters.exact[row] else NEAR

    def counted(self) -> Counter[str]:
        """How many of each."""
        if self.clusters is None:
            return Counter()
        gone = ~self.clusters.stays
        exact = int((gone & self.clusters.exact).sum())
        return +Counter({EXACT: exact, NEAR: int(gone.sum()) - exact})

    def original(self, row: int) -> str:
        """The id of the document that a row repeats."""
        assert self.clusters is not None
        return bytes(self.ids[self.clusters.first[row]]).decode()


@dataclass(frozen=True, slots=True)
class _Taught:
    """[rows] what the documents that stayed so far are worth to a learner, NaN for the others; None: nobody asked."""

    scores: NDArray[np.float64] | None = None
    least: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, parts: Parts, config: CorpusConfig, repeats: _Repeats, tell: Callable[[str], None]
    ) -> _Taught:
        if config.educational is None:
            return cls()
        import numpy as np

        from ojak.similarity.embedding import Embedder

        texts, given = read_scores(config.educational)
        embedder = Embedder.open(config.embedder, notify=tell)
        head, learnt = learn(texts, given, embedder, config.least_score)
        tell(
            f"learnt from {learnt.scored:,} scores: F1 {learnt.f1:.2f} on the {learnt.held_out:,} that were held out"
        )
        rows = [row for row in range(parts.counted.kept) if not repeats.reason(row)]
        left = (document.text for row, document in enumerate(parts.kept()) if not repeats.reason(row))
        scores = np.full(parts.counted.kept, np.nan)
        scores[rows] = score_all(left, head, embedder, parts.folder)
        return cls(scores, config.least_score, facts(learnt, embedder, config.least_score))

    def dropped(self) -> NDArray[np.bool_] | None:
        """[rows] which of them teach too little."""
        import numpy as np

        return None if self.scores is None else ~np.isnan(self.scores) & ~stays(self.scores, self.least)


class _Writer:
    """What the artifact is made of. `stats` is whole once the kept documents were all asked for."""

    def __init__(
        self, parts: Parts, config: CorpusConfig, repeats: _Repeats, taught: _Taught, began: float
    ) -> None:
        self._parts, self._repeats, self._taught, self._began = parts, repeats, taught, began
        self._dropped = taught.dropped()
        self._kinds = frozenset(personal_data(config))
        reasons = parts.counted.rejected + repeats.counted()
        if self._dropped is not None:
            reasons[EDUCATIONAL] = int(self._dropped.sum())
        self.stats: dict[str, Any] = {"funnel": funnel(parts.counted.documents, reasons), "characters": 0}
        self.stats |= {name: Counter() for name in ("formats", "languages", "personal_data")}
        self.stats |= {"educational": dict(taught.facts)} if taught.facts else {}

    def _reason(self, row: int) -> str:
        """Why a document that passed the filters does not stay; "" for one that does."""
        found = self._repeats.reason(row)
        return found or (EDUCATIONAL if self._dropped is not None and self._dropped[row] else "")

    def kept(self) -> Iterator[Document]:
        """The documents that stay, personal data replaced."""
        for row, document in enumerate(self._parts.kept()):
            if not self._reason(row):
                yield self._cleared(document, row)
        self.stats["seconds"] = round(time.perf_counter() - self._began, 3)

    def _meta(self, document: Document | Rejected, row: int) -> dict[str, Any]:
        """What is said of a document, its score too."""
        scores = self._taught.scores
        if scores is None or self._repeats.reason(row):
            return document.meta
        return {**document.meta, "educational": round(float(scores[row]), 4)}

    def _cleared(self, document: Document, row: int) -> Document:
        """The document without personal data, counted."""
        found = (
            [each for each in find_personal_data(document.text) if each.kind in self._kinds]
            if self._kinds
            else []
        )
        text = redacted(document.text, found) if found else document.text
        self.stats["characters"] += len(text)
        self.stats["formats"][document.meta["format"]] += 1
        self.stats["languages"][document.meta["language"]] += 1
        self.stats["personal_data"].update(each.kind for each in found)
        return replace(document, text=text, meta={**self._meta(document, row), "chars": len(text)})

    def rejected(self) -> Iterator[Rejected]:
        """The others: those that the rules dropped, then those that repeat an earlier one or teach too little."""
        yield from self._parts.rejected()
        for row, document in enumerate(self._parts.kept()):
            if reason := self._reason(row):
                meta = self._meta(document, row)
                meta |= {"duplicate_of": self._repeats.original(row)} if reason in (EXACT, NEAR) else {}
                text = document.text[:MOST_TEXT_OF_REJECTED]
                yield Rejected(document.id, reason, KIND, text, source=document.source, meta=meta)


def funnel(documents_in: int, reasons: Counter[str]) -> list[dict[str, Any]]:
    """How many documents each stage got, and how many it dropped; the last stage where it was asked for."""
    dropped = Counter[str]()
    for reason, number in reasons.items():
        dropped[stage_of(reason)] += number
    steps, left = [], documents_in
    for stage in STAGES if EDUCATIONAL in reasons else STAGES[:-1]:
        steps.append({"rule": stage, "in": left, "rejected": dropped[stage]})
        left -= dropped[stage]
    return steps


def stage_of(reason: str) -> str:
    """The stage that drops documents with a reason."""
    stage = reason.partition(".")[0]
    if stage in (*FILTERS, "language", EDUCATIONAL):
        return stage
    return "minhash" if reason in (EXACT, NEAR) else "read"
