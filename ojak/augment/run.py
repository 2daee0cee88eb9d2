"""Augmentation: documents in, the same documents with questions and answers about them out; one artifact.

Documents come in blocks; a finished block is on disk, and within one a model's answers are in a ledger. Killed at any
time, the same command goes on after the last of them. Memory holds one block.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ojak._code import code_sha256, version
from ojak._files import TargetLock, sha256_file, target_exists
from ojak._progress import Listener, Progress, silent
from ojak.artifact import Artifact, publish, refuse_inside
from ojak.augment.blocks import Kept, blocks, group_id, groups
from ojak.augment.config import AugmentConfig
from ojak.augment.draws import Draws
from ojak.augment.rounds import Synthesizer, Work, check_works
from ojak.augment.rules_crew import RulesCrew
from ojak.augment.templates import banks, read_bank, render_group
from ojak.engines.base import Engine
from ojak.engines.open import EngineSpec, open_engine
from ojak.engines.remembering import Remembering, remembering
from ojak.errors import InputRefused, UsageError
from ojak.formats import load
from ojak.records import AnyRecord, Document, Rejected

KIND = "augment"
WRITTEN, READ = ".augment-written.sqlite", ".augment-read.sqlite"  # ledgers of the models
CODE = ("augment", "chat.py", "rules", "judge/likelihood.py")


def augment_data(
    source: Artifact | Path | str,
    out: Path | str,
    config: AugmentConfig | None = None,
    *,
    engine: Engine | None = None,
    accept_license: tuple[str, ...] = (),
    notify: Callable[[str], None] | None = None,
    progress: Listener | None = None,
) -> Artifact:
    """Publish in `out` the documents of `source`, each with pairs made from it (arXiv 2406.14491).

    A document's text stays as it was. Its `meta` has "pairs", "augmented" (text and pairs as they are written for
    pre-training), "group" and "shot": the documents of a group follow each other, and belong together with a blank line
    between them. Each piece of what was made that is no pair, or fails the check against the text, lies in `rejected/`
    with the reason. Without `engine`, the synthesizer is opened.

    Raises TargetExists; InputRefused for a source without documents or a model that cannot do this; UsageError; Locked;
    ResourceExhausted; EngineUnavailable where an endpoint is gone (what it answered is kept).
    """
    config, out, began = config or AugmentConfig(), Path(out), time.perf_counter()
    if (out / "manifest.json").exists():
        raise target_exists(out / "manifest.json", why="the folder holds a finished artifact")
    origin = _Origin.open(source, config)
    refuse_inside(out, [origin.path])
    with TargetLock(out), ExitStack() as stack:
        models = _Models(
            config, out, (*config.accept_license, *accept_license), notify or silent, stack, engine
        )
        run = _Run(origin, out, config, models, progress)
        run.work(notify or silent)
        artifact = publish(
            out,
            kind=KIND,
            records=run.kept.documents(),
            rejected=run.kept.rejected(),
            config=config.recorded(),
            inputs=[origin.artifact or origin.path],
            stats=run.stats(loading_s=run.began - began),
        )
        run.kept.remove()
    return artifact


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `--json` says of an augmentation."""
    stats = artifact.stats
    names = (
        "pairs",
        "verified",
        "documents_without_pairs",
        "characters_left_out",
        "completion_tokens",
        "seconds",
    )
    return {
        "documents": artifact.counts["accepted"],
        "discarded": artifact.counts["rejected"],
        **{name: stats[name] for name in names},
        "out": str(artifact.path),
    }


@dataclass
class _Models:
    """The models of an augmentation, each with a ledger: who writes pairs, and who reads them. `given`: the writer."""

    config: AugmentConfig
    out: Path
    accept_license: tuple[str, ...]
    notify: Callable[[str], None]
    stack: ExitStack
    given: Engine | None = None
    writer: Remembering | None = None
    reader: Remembering | None = None

    def __post_init__(self) -> None:
        config = self.config
        if config.asks:
            self.writer = self._remembering(self.given or self._writer(), WRITTEN)
        if config.verify and config.verifier is not None:
            same = config.verifier == config.synthesizer and config.engine == "native"
            self.reader = self.writer if same else self._remembering(self._reader(config.verifier), READ)

    def identities(self) -> list[dict[str, Any]]:
        return [model.identity for model in (self.writer, self.reader) if model is not None]

    def forget(self) -> None:
        """Drop the answers: what follows from them is in a block."""
        for model in (self.writer, self.reader):
            if model is not None:
                model.forget()

    def _remembering(self, engine: Engine, name: str) -> Remembering:
        return self.stack.enter_context(remembering(engine, self.out / name))

    def _writer(self) -> Engine:
        config = self.config
        spec = EngineSpec(
            model=config.synthesizer,
            engine=config.engine,
            url=config.url,
            tokenizer=config.tokenizer,
            key_env=config.key_env,
            accept_license=self.accept_license,
        )
        return open_engine(spec, turns=config.shots, chat=config.format != "published", notify=self.notify)

    def _reader(self, name: str) -> Engine:
        spec = EngineSpec(model=name, accept_license=self.accept_license)
        return open_engine(spec, chat=False, notify=self.notify)


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the documents come from: an artifact's folder (one of its splits), or a file that `ojak.load` reads."""

    path: Path
    artifact: Artifact | None
    split: str | None
    sha256: str
    limit: int | None

    @classmethod
    def open(cls, source: Artifact | Path | str, config: AugmentConfig) -> _Origin:
        if isinstance(source, Artifact) or Path(source).is_dir():
            artifact = source if isinstance(source, Artifact) else Artifact.open(source)
            split = config.split or ("train" if "train" in artifact.splits else next(iter(artifact.splits)))
            if split not in artifact.splits:
                raise UsageError(
                    f"{artifact.path} has no split {split!r}", fix=f"it has: {', '.join(artifact.splits)}"
                )
            return cls(artifact.path, artifact, split, artifact.manifest_sha256, config.limit)
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"{path} is not there", fix="give an artifact's folder, or a file of documents")
        return cls(path, None, None, sha256_file(path), config.limit)

    @property
    def rows(self) -> int:
        """How many there are, 0 if that is not known before they are read."""
        rows = self.artifact.splits[self.split] if self.artifact and self.split else 0
        return min(rows, self.limit) if self.limit is not None and rows else rows

    def records(self, notify: Callable[[str], None]) -> Iterator[AnyRecord]:
        found = self.artifact.records(self.split) if self.artifact else load(self.path, warn=notify)
        return islice(found, self.limit)


@dataclass
class _Counts:
    """What is counted of a block; sums over blocks are the artifact's figures."""

    documents: int = 0
    pairs: int = 0
    verified: int = 0
    pieces: int = 0
    documents_without_pairs: int = 0
    documents_cut: int = 0
    characters_left_out: int = 0
    asked_after_others: int = 0
    completion_tokens: int = 0
    tasks: dict[str, int] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        self.documents += 1
        self.pairs += len(work.pairs)
        self.verified += sum(pair.verified is True for pair in work.pairs)
        self.pieces += work.pieces
        self.documents_without_pairs += not work.pairs
        self.documents_cut += work.left_out > 0
        self.characters_left_out += work.left_out
        self.asked_after_others += work.in_chain
        for pair in work.pairs:
            self.tasks[pair.source] = self.tasks.get(pair.source, 0) + 1


class _Run:
    """An augmentation under way."""

    def __init__(
        self, origin: _Origin, out: Path, config: AugmentConfig, models: _Models, progress: Listener | None
    ) -> None:
        self.origin, self.config, self.models, self.listener = origin, config, models, progress
        self.verifier = models.reader
        self.synthesizer = Synthesizer(models.writer, config) if models.writer else None
        checked = config.thresholds if config.verify and self.verifier is None else None
        self.rules = models.stack.enter_context(
            RulesCrew(config.seed, config.most_pairs, checked, config.workers)
        )
        self.bank = read_bank(config.templates) if config.templates else None
        templates = {"given": self.bank} if self.bank else banks()
        key = {
            "input": origin.sha256,
            "settings": config.recorded(),
            "templates": {name: bank.model_dump(mode="json") for name, bank in templates.items()},
            "models": models.identities(),
            "code": [version(), code_sha256(CODE)],
        }
        self.kept = Kept(out, key)
        self.state = Progress(origin.rows, phase="making pairs", unit="documents")
        self.began = time.perf_counter()
        self.tokens = self.before = 0

    def work(self, notify: Callable[[str], None]) -> None:
        """Makes what is not there yet, block by block."""
        done = sum(counts["documents"] for counts in self.kept.counts)
        if done:
            notify(f"{done:,} documents were done before; going on after them")
        self.state.rows_done, self.before = done, done
        some = False
        for number, block in enumerate(blocks(self.origin.records(notify), self.config.shots)):
            some = True
            if number >= len(self.kept):
                self._block(block)
        if not some:
            raise InputRefused(f"{self.origin.path} holds no documents", fix="give it texts")

    def _block(self, block: Sequence[Document]) -> None:
        dealt = groups(block, self.config.shots, self.config.seed)
        names = [group_id(group) for group in dealt]
        works = [
            Work(document, name, shot)
            for name, group in zip(names, dealt, strict=True)
            for shot, document in enumerate(group)
        ]
        before = self.tokens
        if self.synthesizer is not None:
            self.synthesizer.work(works, self._check, self._told)
        else:
            self._by_rules(works)
        counts = _Counts(completion_tokens=self.tokens - before)
        for work in works:
            counts.add(work)
        self.kept.add(
            vars(counts), self._documents(works), [row for work in works for row in _rejected(work)]
        )
        self.models.forget()

    def _by_rules(self, works: Sequence[Work]) -> None:
        if self.verifier is None:
            self.rules.work(works, self._told)
            return
        self.rules.work(works)
        self._check(works)
        self._told(len(works), 0)

    def _check(self, works: Sequence[Work]) -> None:
        if self.config.verify:
            check_works(self.verifier, works, self.config.thresholds)

    def _documents(self, works: Sequence[Work]) -> list[Document]:
        """The documents with what was made of them, those of a group one after another."""
        found: list[Document] = []
        begin = 0
        while begin < len(works):
            end = begin + 1
            while end < len(works) and works[end].group == works[begin].group:
                end += 1
            group = works[begin:end]
            random = Draws(self.config.seed, "templates", group[0].group)
            texts = render_group([(work.document, work.pairs) for work in group], random, self.bank)
            found += [_document(work, text) for work, text in zip(group, texts, strict=True)]
            begin = end
        return found

    def _told(self, documents: int, tokens: int) -> None:
        self.tokens += tokens
        state, seconds = self.state, max(time.perf_counter() - self.began, 1e-9)
        state.rows_done += documents
        state.rows_total = max(state.rows_total, state.rows_done)
        state.completion_tokens, state.tokens_per_s = self.tokens, self.tokens / seconds
        state.accepted = state.rows_done
        per_row = seconds / max(1, state.rows_done - self.before)
        state.eta_s = per_row * (state.rows_total - state.rows_done) if self.origin.rows else None
        if self.listener:
            self.listener.update(state)

    def stats(self, loading_s: float) -> dict[str, Any]:
        """The figures of all blocks together, and how the pairs were made."""
        total: Counter[str] = Counter()
        tasks: Counter[str] = Counter()
        for counts in self.kept.counts:
            total.update({name: value for name, value in counts.items() if name != "tasks"})
            tasks.update(counts["tasks"])
        made: dict[str, Any] = {"synthesizer": "rules"}
        if self.synthesizer is not None:
            engine = self.synthesizer.engine
            made = {
                "synthesizer": {**engine.identity, **engine.stats()},
                "format": self.synthesizer.dialect.name,
                "piece_tokens": self.synthesizer.piece_tokens,
                **engine.provenance(),
            }
        if self.verifier is not None:
            made["verifier"] = self.verifier.identity
        seconds = {"seconds": time.perf_counter() - self.began, "loading_seconds": loading_s}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        return {**total, "tasks": dict(sorted(tasks.items())), **rounded, **made}


def _document(work: Work, text: str) -> Document:
    made = {
        "pairs": [pair.to_json() for pair in work.pairs],
        "augmented": text,
        "group": work.group,
        "shot": work.shot,
    }
    return replace(work.document, meta={**work.document.meta, **made})


def _rejected(work: Work) -> Iterator[Rejected]:
    """What was discarded, numbered after the pairs that are kept."""
    for number, piece in enumerate(work.discarded, len(work.pairs)):
        yield Rejected(
            f"{work.document.id}/{number}", piece.reason, KIND, piece.text, source=work.document.source,
            meta={"document": work.document.id, "group": work.group},
        )  # fmt: skip
