"""Data sets of an exact number of tokens for pretraining: the arms of Instruction Pre-Training (arXiv 2406.14491).

A row of the result is a document, or an M-shot chain of documents with their pairs: what training keeps apart from all
other rows, wherever it packs them. Texts are counted by training's own encoder, chosen by their sizes alone, and then
read again and written: memory is 8 bytes a document.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ojak._files import target_exists
from ojak._progress import silent
from ojak.artifact import Artifact, publish, refuse_inside
from ojak.errors import InputRefused, UsageError
from ojak.model import checkpoint
from ojak.model.load import read_source as read_model
from ojak.model.tokenizer import Tokenizer
from ojak.records import Document
from ojak.train.mix_plan import AUGMENTED, NOT, PLAIN, Taken, take
from ojak.train.mix_units import Sizes, Unit, counter, cut, origin, sizes, supervised, units
from ojak.train.rows import shuffled
from ojak.train.sources import DataSource, content_sha256, is_artifact, parse_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.train.mix_config import MixConfig

Notify = Callable[[str], None]
KIND = "mix"
RAW, WITH_PAIRS, SUPERVISED, REPLAY = "raw", "augmented", "mix", "replay"  # the names of a mix's sources
HELD_OUT = "validation"  # the split of texts that no arm has


@dataclass(frozen=True)
class Part:
    """What a mix takes of one source.

    names: what its rows are called, by their form. ends: the rows of the unit that did not fit whole; cut_tokens: of
    the last of them, where it is the beginning of a text. before: begins the rows' ids.
    """

    source: DataSource
    names: dict[int, str]
    read: Callable[[], Iterator[Unit]]
    sizes: Sizes
    taken: Taken
    before: str
    ends: tuple[Document, ...] = ()
    cut_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.taken.tokens + self.cut_tokens

    def tokens_of(self) -> dict[str, int]:
        """The tokens by name."""
        found = {PLAIN: self.taken.plain, AUGMENTED: self.taken.augmented}
        if self.taken.end:
            found[self.taken.end.form] += self.cut_tokens
        return {name: found[form] for form, name in self.names.items()}


@dataclass
class Maker:
    """Makes the parts of all arms; what was counted is kept from arm to arm. corpus: that of arms without their own."""

    corpus: DataSource
    tokenizer: Tokenizer
    max_len: int
    with_pairs: bool
    notify: Notify
    counted: dict[str, Sizes] = field(default_factory=dict)
    kept_out: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def parts(self, config: MixConfig, before: str) -> Iterator[Part]:
        """The parts of an arm: the corpus last, as it fills what the others leave of the budget."""
        left = config.tokens
        for name, given in ((REPLAY, config.replay), (SUPERVISED, config.mix_data)):
            found = parse_source(given) if given else None
            if found is None:
                continue
            # RATIO is to one of all others.
            wanted = (
                Fraction(config.ratio) * left
                if name == SUPERVISED
                else left * found.weight / (1 + found.weight)
            )
            if wanted >= 1:
                part = self._part(found, {PLAIN: name}, round(wanted), config, before)
                left -= part.tokens
                yield part
        if left:
            names = {PLAIN: RAW, AUGMENTED: WITH_PAIRS} if config.arm == "instruct" else {PLAIN: RAW}
            corpus = _corpus(config.data) if config.data else self.corpus
            part = self._part(corpus, names, left, config, before)
            self._tell_share(part, config)
            yield part

    def _part(
        self, source: DataSource, names: dict[int, str], budget: int, config: MixConfig, before: str
    ) -> Part:
        is_corpus, with_pairs = names[PLAIN] == RAW, AUGMENTED in names
        counted = self.count(source, is_corpus)
        if is_corpus:
            counted = without(counted, self.held_out(source, config), pairs=with_pairs)
        # The order of a corpus does not depend on the arm: all arms take the same texts first.
        taken = take(
            counted, budget, ratio=config.ratio if with_pairs else 0.0, key=(config.seed, names[PLAIN]),
            max_len=self.max_len,
        )  # fmt: skip
        if taken.passed > 1:
            self.notify(f"{source.path} is smaller than its share: it is read {taken.passed:.2f} times")
        part = Part(source, names, lambda: self.read(source, is_corpus), counted, taken, before)
        return _with_ends(part, counter(self.tokenizer, self.max_len), self.max_len)

    def read(self, source: DataSource, is_corpus: bool) -> Iterator[Unit]:
        found = units(source, self.notify)
        return found if is_corpus else map(supervised, found)

    def count(self, source: DataSource, is_corpus: bool) -> Sizes:
        """The sizes of a source, counted once."""
        key = f"{source.path}@{source.split} {is_corpus}"
        if key not in self.counted:
            self.notify(f"counting the tokens of {source.path}")
            augmented = is_corpus and self.with_pairs
            found = self.read(source, is_corpus)
            self.counted[key] = sizes(found, self.tokenizer, self.max_len, augmented=augmented)
        return self.counted[key]

    def held_out(self, corpus: DataSource, config: MixConfig) -> NDArray[np.int64]:
        """The numbers of a corpus's units that no arm has: int64[held out]. Those of the corpus that arms share are
        drawn, those of another have a document of these."""
        key = f"{corpus.path}@{corpus.split}"
        if key not in self.kept_out:
            self.kept_out[key] = self._kept_out(corpus, config)
        return self.kept_out[key]

    def _kept_out(self, corpus: DataSource, config: MixConfig) -> NDArray[np.int64]:
        if corpus == self.corpus:
            count = len(self.count(corpus, True).augmented)
            return shuffled(count, config.seed, "held out")[: round(config.held_out * count)]
        drawn = set(self.held_out(self.corpus, config).tolist())
        own = enumerate(self.read(self.corpus, True)) if drawn else ()
        names = {name for place, unit in own if place in drawn for name in unit.ids}
        others = enumerate(self.read(corpus, True)) if names else ()
        return np.array([place for place, unit in others if names.intersection(unit.ids)], np.int64)

    def held_out_rows(self, config: MixConfig) -> Iterator[Document]:
        chosen = set(self.held_out(self.corpus, config).tolist())
        for place, unit in enumerate(self.read(self.corpus, True)):
            for number, text in enumerate(unit.texts) if place in chosen else ():
                meta = {"source": RAW, "documents": [unit.ids[number]]}
                yield Document(f"{HELD_OUT}-{place:07d}-{number}", text, unit.origin, meta)

    def _tell_share(self, part: Part, config: MixConfig) -> None:
        share = part.tokens_of().get(WITH_PAIRS, 0) / max(1, part.tokens)
        missing = (config.ratio - share) * part.tokens
        if AUGMENTED in part.names and missing > part.sizes.augmented.max():
            units_with = int((part.sizes.augmented > 0).sum())
            self.notify(
                f"the share of augmented texts is {share:.3f}, not {config.ratio:g}: {units_with:,} of"
                f" {len(part.sizes.augmented):,} have pairs"
            )


def make_mix(source: Path | str, out: Path | str, config: MixConfig, *, notify: Notify = silent) -> Artifact:
    """Makes the data set of one arm from `source`, the folder of a corpus, augmented or not; kind "mix", documents.

    Its split "train" has `config.tokens` tokens, less at most what is missing to the next row of training. Every row
    says in meta["source"] what it is ("raw", "augmented", "mix", "replay"), in meta["documents"] which documents it
    holds, and in meta["pass"] which reading of its source it belongs to, from 0. With `config.held_out`, the split
    "validation" has the texts of the corpus that are kept out.

    Raises UsageError and InputRefused for sources and tokenizers that cannot be used, TargetExists.
    """
    return make_arms(source, out, {"train": config}, notify=notify)


def make_arms(
    source: Path | str, out: Path | str, arms: Mapping[str, MixConfig], *, notify: Notify = silent
) -> Artifact:
    """`make_mix` for several arms in one artifact, each a split with the arm's name.

    They share tokenizer, max_len, seed and held_out, or it raises UsageError: else they could not be compared.
    """
    if (Path(out) / "manifest.json").exists():
        raise target_exists(Path(out))
    first = next(iter(arms.values()))
    shared = ("tokenizer", "max_len", "seed", "held_out")
    for name in shared:
        if len({getattr(config, name) for config in arms.values()}) > 1:
            raise UsageError(f"the arms of a mix cannot have a {name} each", fix="set it for all of them")
    own = [config.data for config in arms.values() if config.data]
    refuse_inside(Path(out), [parse_source(text).path for text in (str(source), *own)])
    maker = _maker(str(source), first, any(config.arm == "instruct" for config in arms.values()), notify)
    made = {name: list(maker.parts(config, name)) for name, config in arms.items()}
    sources = {str(part.source.path): part.source for parts in made.values() for part in parts}
    hashes = {path: content_sha256(each) for path, each in sources.items()}
    splits: dict[str, Iterator[Document]] = {name: _checked(parts, hashes) for name, parts in made.items()}
    if len(maker.held_out(maker.corpus, first)):
        splits[HELD_OUT] = maker.held_out_rows(first)
    stats = {name: _stats(parts, arms[name]) for name, parts in made.items()}
    return publish(
        Path(out),
        kind=KIND,
        splits=splits,
        config={name: config.model_dump(mode="json", exclude={"accept_license"}) for name, config in arms.items()},
        inputs=[_input(each, hashes[path]) for path, each in sources.items()],
        stats={"arms": stats, "tokenizer_sha256": maker.tokenizer.sha256},
    )  # fmt: skip


def summary(artifact: Artifact) -> dict[str, Any]:
    """The object that `--json` prints: of the split "train" its tokens, sequences (rows), and each source's share."""
    found = artifact.stats["arms"]["train"]
    return {**found, "sequences": artifact.splits["train"], "out": str(artifact.path)}


def find_tokenizer(name: str, accept_license: tuple[str, ...], notify: Notify) -> Tokenizer:
    """The tokenizer of a model, known or in a folder; the folder needs no weights."""
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        has_config = (folder / "config.json").is_file()
        return Tokenizer.from_folder(folder, checkpoint.read_config(folder) if has_config else {})
    return read_model(name, accept_license=accept_license, notify=notify).tokenizer


def without(found: Sizes, units_out: NDArray[np.int64], *, pairs: bool) -> Sizes:
    """The sizes with nothing in some units, and, without `pairs`, with no augmented text in any."""
    texts, augmented = found.texts.copy(), found.augmented if pairs else np.zeros_like(found.augmented)
    augmented = augmented.copy()
    augmented[units_out] = 0
    for unit in units_out.tolist():
        texts[found.starts[unit] : found.starts[unit + 1]] = 0
    return Sizes(texts, found.starts, augmented)


def _corpus(source: str) -> DataSource:
    corpus = parse_source(source)
    if not is_artifact(corpus.path):
        raise InputRefused(
            f"{corpus.path} is no corpus", fix="give the folder of `ojak corpus` or `ojak augment`"
        )
    return corpus


def _maker(source: str, config: MixConfig, with_pairs: bool, notify: Notify) -> Maker:
    corpus = _corpus(source)
    tokenizer = find_tokenizer(config.tokenizer, config.accept_license, notify)
    return Maker(corpus, tokenizer, config.max_len, with_pairs, notify)


def _checked(parts: list[Part], hashes: Mapping[str, str]) -> Iterator[Document]:
    """The rows of an arm. Raises InputRefused if what was counted is not what was read."""
    for part in parts:
        yield from itertools.chain(_rows(part), part.ends)
        if content_sha256(part.source) != hashes[str(part.source.path)]:
            raise InputRefused(
                f"{part.source.path} changed while it was read", fix="run the same command again"
            )


def _with_ends(part: Part, count: Callable[[str], int], max_len: int) -> Part:
    """The part with the rows of the unit that did not fit whole: the documents that did, the beginning of the next."""
    end = part.taken.end
    if end is None:
        return part
    unit = next(itertools.islice(part.read(), end.unit, None))
    number = len(part.taken.passes) - 1
    rows = [] if end.form == AUGMENTED else list(_plain(part, unit, end.unit, number, end.documents))
    cut_tokens = 0
    if end.tokens:
        last = _augmented(part, unit, end.unit, number)
        if end.form == PLAIN:
            last = _document(part, unit, end.unit, end.documents, number)
        last = replace(last, text=cut(last.text, end.tokens, count, max_len // 4))
        cut_tokens = count(last.text)
        rows += [last] if cut_tokens else []
    return replace(part, ends=tuple(rows), cut_tokens=cut_tokens)


def _rows(part: Part) -> Iterator[Document]:
    """The rows of all whole units, each pass in the order of the source."""
    for number, forms in enumerate(part.taken.passes):
        for place, unit in enumerate(part.read()) if (forms != NOT).any() else ():
            if forms[place] == PLAIN:
                yield from _plain(part, unit, place, number, len(unit.texts))
            elif forms[place] == AUGMENTED:
                yield _augmented(part, unit, place, number)


def _plain(part: Part, unit: Unit, place: int, number: int, most: int) -> Iterator[Document]:
    """The first documents of a unit as they were, each a row of its own; those without a token are left out."""
    begin = part.sizes.starts[place]
    for position in range(most):
        if part.sizes.texts[begin + position]:
            yield _document(part, unit, place, position, number)


def _document(part: Part, unit: Unit, place: int, position: int, number: int) -> Document:
    name = part.names[PLAIN]
    ids = unit.ids if len(unit.ids) != len(unit.texts) else (unit.ids[position],)
    meta = {**origin(unit, name, number), "documents": list(ids)}
    row = int(part.sizes.starts[place]) + position
    return Document(_id(part, name, number, row), unit.texts[position], unit.origin, meta)


def _augmented(part: Part, unit: Unit, place: int, number: int) -> Document:
    """All documents of a unit, with their pairs, in one row."""
    name = part.names.get(AUGMENTED, WITH_PAIRS)
    return Document(
        _id(part, name, number, place), unit.augmented or "", unit.origin, origin(unit, name, number)
    )


def _id(part: Part, name: str, number: int, row: int) -> str:
    return f"{part.before}/{name}-{number}-{row:07d}"


def _stats(parts: list[Part], config: MixConfig) -> dict[str, Any]:
    tokens = sum(part.tokens for part in parts)
    by_name = {name: count for part in parts for name, count in part.tokens_of().items()}
    return {
        "arm": config.arm,
        "tokens": tokens,
        "share": {name: round(count / max(1, tokens), 6) for name, count in by_name.items()},
        "tokens_by_source": by_name,
        "passes": {part.names[PLAIN]: round(part.taken.passed, 4) for part in parts},
    }


def _input(source: DataSource, digest: str) -> dict[str, Any] | Artifact:
    if is_artifact(source.path):
        return Artifact.open(source.path)
    return {"path": source.path.name, "sha256": digest}
