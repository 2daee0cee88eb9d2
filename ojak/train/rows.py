"""The rows that a run learns from: one or more sources, tokenized and kept, mixed by weight."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ojak._code import code_sha256
from ojak._grams import GOLDEN, mixed
from ojak._progress import silent
from ojak.chat import Limits
from ojak.errors import InputRefused, UsageError
from ojak.train.encode import MASKED, Encoder, Encoding, LongRows, Objective, Row
from ojak.train.pairs import split_at_border
from ojak.train.sources import DataSource, content_sha256, parse_source, read_source, split_of
from ojak.train.store import TokenStore, kept_or_made

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.model.tokenizer import Tokenizer

# All that tokens depend on: when one of these changes, so may they, and the cache is made anew.
CODE = (
    "chat.py", "_chat_spans.py", "formats.py", "records.py", "artifact.py", "_compressed.py", "_jsonl.py", "_tables.py",
    "_template_child.py", "_template_sandbox.py", "model/tokenizer.py", "sources.py", "train/encode.py",
    "train/pairs.py", "train/sources.py", "train/store.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one source: those in `chosen` (numbers within the store, rising). `content`: a hash of its files."""

    name: str
    content: str
    store: TokenStore
    weight: Fraction
    chosen: NDArray[np.int64]


class Rows:
    """Tokenized rows, numbered over all sources in their order: `rows[i]` is (ids uint32[n], mask bool[n]).

    `mask` says which ids are learnt. The arrays are views of mapped files.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part.chosen) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        part, row = self.place(number)
        start, end = part.store.table[row : row + 2, 0]
        return part.store.ids[start:end], part.store.mask[start:end]

    def place(self, number: int) -> tuple[Part, int]:
        """The source of a row, and its number in that source's store. Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        where = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.parts[where], int(self.parts[where].chosen[number - self._starts[where]])

    def documents(self, number: int) -> list[tuple[NDArray[np.uint32], NDArray[np.bool_]]]:
        """The documents of a row: itself, or of a pair prompt and better answer, prompt and worse answer."""
        return split_at_border(*self[number], int(self._pairs[number, 0]))

    @property
    def paired(self) -> bool:
        """Whether the rows are pairs."""
        return bool(self._pairs[:, 0].any())

    @property
    def gaps(self) -> NDArray[np.float64]:
        """By how much the score of each pair's better answer is higher, NaN where nobody says: float64[rows]."""
        return self._pairs[:, 1]

    @cached_property
    def _pairs(self) -> NDArray[np.float64]:
        """Border and gap of each row: float64[rows, 2]."""
        none = [(0.0, math.nan)]
        return np.concatenate(
            [
                np.repeat(none, len(part.chosen), 0)
                if part.store.pairs is None
                else part.store.pairs[part.chosen]
                for part in self.parts
            ]
        )

    @cached_property
    def longest(self) -> int:
        """The most tokens of a document."""
        first = self._pairs[:, 0].astype(np.int64)
        return int(np.maximum(first, self.lengths - first).max())

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of rows of each source."""
        return tuple(len(part.chosen) for part in self.parts)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each row: int64[rows]."""
        return self._column(lambda table: np.diff(table[:, 0]))

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """The learnt tokens of each row: int64[rows]."""
        return self._column(lambda table: table[:-1, 2])

    def _column(self, of: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate([of(np.asarray(part.store.table))[part.chosen] for part in self.parts])

    @property
    def sha256(self) -> str:
        """A hash over the rows and their weights: an order of rows means something for these rows only."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f"{part.store.sha256} {part.weight} {len(part.chosen)}\n".encode())
            digest.update(np.ascontiguousarray(part.chosen).tobytes())
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, Any]:
        """What became of the records: the sums over the sources, and under "sources" those of each."""
        names = ("records", "kept", "truncated", "split")
        total = {name: sum(part.store.counts[name] for part in self.parts) for name in names}
        refused: dict[str, int] = {}
        for part in self.parts:
            for reason, number in part.store.counts["refused"].items():
                refused[reason] = refused.get(reason, 0) + number
        own = {"rows": len(self), "tokens": int(self.lengths.sum()), "supervised": int(self.supervised.sum())}
        sources = [
            {"path": part.name, "sha256": part.content, "weight": float(part.weight), **part.store.counts}
            for part in self.parts
        ]
        return {**total, "refused": refused, **own, "sources": sources}

    def hold_out(self, share: float, seed: int) -> tuple[Rows, Rows]:
        """(to learn from, to measure by): of each source `share` of its records go to the second, with all their rows.

        Raises UsageError where one of the two would be empty.
        """
        kept: list[Part] = []
        held: list[Part] = []
        for number, part in enumerate(self.parts):
            records = np.asarray(part.store.table)[part.chosen, 1]
            names = np.unique(records)
            count = round(share * len(names))
            is_held = np.isin(records, names[shuffled(len(names), seed, "hold out", number)[:count]])
            kept.append(replace(part, chosen=part.chosen[~is_held]))
            held.append(replace(part, chosen=part.chosen[is_held], weight=Fraction(1)))
        train, test = (Rows([part for part in each if len(part.chosen)]) for each in (kept, held))
        if not len(train) or not len(test):
            raise UsageError(
                f"a share of {share:g} of {len(self):,} rows for validation leaves one side empty",
                fix="choose another share, give more data, or use --val-data",
            )
        return train, test

    def drawn(self, count: int, seed: int) -> Rows:
        """`count` of the rows, or all where there are not more; each as likely as any other, whatever its source."""
        if len(self) <= count:
            return self
        taken = np.zeros(len(self), dtype=bool)
        taken[shuffled(len(self), seed, "rows")[:count]] = True
        ends = self._starts
        parts = [
            replace(part, chosen=part.chosen[taken[ends[number] : ends[number + 1]]])
            for number, part in enumerate(self.parts)
        ]
        return Rows([part for part in parts if len(part.chosen)])


def shuffled(count: int, *key: object) -> NDArray[np.int64]:
    """A permutation of `count` numbers that follows from the key alone, on any machine: int64[count]."""
    name = ":".join(map(str, key)).encode()
    begin = np.uint64(int.from_bytes(hashlib.sha256(name).digest()[:8], "little"))
    # A counter, hashed twice with the key between: equal values among 2^64 are as good as never, and keep their order.
    values = mixed(mixed(np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN)) ^ begin)
    return np.argsort(values, kind="stable")


def open_rows(
    data: Sequence[str],
    tokenizer: Tokenizer,
    *,
    template: str | None,
    objective: Objective,
    mask_roles: Sequence[str] = MASKED,
    max_len: int = 1024,
    long_rows: LongRows | None = None,
    split: str = "train",
    notify: Callable[[str], None] = silent,
) -> Rows:
    """The rows of `data` (each `PATH` or `PATH:WEIGHT`, see `sources`), from the cache where they are there.

    template: a style's (`styles.style_template`). mask_roles, max_len and long_rows: see `encode.Encoding`.
    split: which split of an artifact to take.

    Raises:
        UsageError: a source, a role or a length is wrong.
        InputRefused: data that cannot be read; a source none of whose records gives a row; nothing to learn, or
            everything where parts were to be masked.
    """
    encoding = Encoding(objective, template, tuple(mask_roles), max_len, long_rows)
    sources = [parse_source(text) for text in data]
    parts = [_part(source, split, tokenizer, encoding, notify) for source in sources]
    rows = Rows(parts)
    if encoding.masks and int(rows.supervised.sum()) == int(rows.lengths.sum()) - len(rows):
        raise InputRefused(
            "every token of every row would be learnt",
            why=f"{', '.join(encoding.mask_roles)} should be masked, but the rows hold nothing of theirs",
            fix="look at `ojak train preview`; to learn everything, set mask_roles=[]",
        )
    return rows


def _part(
    source: DataSource, wanted: str, tokenizer: Tokenizer, encoding: Encoding, notify: Callable[[str], None]
) -> Part:
    split = split_of(source, wanted)
    content = content_sha256(source)
    key = {"content": content, "split": split, **encoding.key(), **_environment(tokenizer)}

    def make() -> tuple[Iterable[Row], Callable[[], dict[str, Any]]]:
        notify(f"tokenizing {source.path}")
        encoder = Encoder(tokenizer, encoding)

        def finish() -> dict[str, Any]:
            if content_sha256(source) != content:
                raise InputRefused(
                    f"{source.path} changed while it was read", fix="run the same command again"
                )
            return encoder.counts.to_dict()

        return encoder.rows(read_source(source, split, notify)), finish

    store = kept_or_made(key, make)
    _check(source, store)
    notify(_told(source, store.counts))
    return Part(str(source.path), content, store, source.weight, np.arange(len(store), dtype=np.int64))


def _environment(tokenizer: Tokenizer) -> dict[str, Any]:
    """What shapes tokens beside data and settings."""
    library = importlib.metadata.version("tokenizers")
    return {
        "tokenizer": tokenizer.sha256,
        "library": library,
        "code": code_sha256(CODE),
        "today": Limits().today,
    }


def _told(source: DataSource, counts: Mapping[str, Any]) -> str:
    """What became of a source's records, in a line."""
    longer = [f"{counts[name]:,} {name}" for name in ("truncated", "split") if counts[name]]
    refused = [f"{number:,} refused: {reason}" for reason, number in counts["refused"].items()]
    found = f"{source.path}: {counts['rows']:,} rows from {counts['records']:,} records, {counts['tokens']:,} tokens"
    return "; ".join([f"{found}, {counts['supervised']:,} learnt", *longer, *refused])


def _check(source: DataSource, store: TokenStore) -> None:
    """Refuse a source that gives nothing, with the reasons."""
    if len(store):
        return
    reasons = [f"{number:,}: {reason}" for reason, number in store.counts["refused"].items()]
    raise InputRefused(
        f"{source.path} gives nothing to learn from",
        why=f"none of its {store.counts['records']:,} records gives a row ({'; '.join(reasons) or 'it is empty'})",
        fix="look at it with `ojak train preview`; see to --max-len, the style and mask_roles",
    )
