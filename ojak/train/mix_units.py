"""What a mix is made of: texts that stay together, read in their order, and the tokens that training counts in them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ojak.errors import InputRefused
from ojak.records import AnyRecord, Conversation, Document
from ojak.train.encode import Encoder, Encoding
from ojak.train.sources import DataSource, LongText, read_source, split_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak._jsonl import Warn
    from ojak.model.tokenizer import Tokenizer

JOIN = "\n\n"  # between the texts of a chain
LEAST_CUT = 64  # characters that a cut is first looked for in


@dataclass(frozen=True, slots=True)
class Unit:
    """Documents that are taken together: one, or those of an M-shot chain in their order.

    texts: of each its text as it was. augmented: one text of all, with their pairs; None where none of them has any.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    augmented: str | None
    origin: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens in rows of training. texts: of each document as it was, int64[documents]. starts: where the documents of a
    unit begin among them, int64[units + 1]. augmented: of each unit, int64[units], 0 where there is nothing."""

    texts: NDArray[np.int64]
    starts: NDArray[np.int64]
    augmented: NDArray[np.int64]


def units(source: DataSource, warn: Warn) -> Iterator[Unit]:
    """The units of a source in order, in bounded memory. Records of no text (preferences) are passed over.

    A conversation is its turns joined by a space, as general instructions are mixed into texts by the published models
    (LMOps issue 257). A plain text file is a document for each of its blocks of 256 KiB.

    Raises InputRefused where the documents of a chain do not follow one another.
    """
    chain: list[Document] = []
    for record in read_source(source, split_of(source), warn):
        shot = record.meta.get("shot") if isinstance(record, Document) and "group" in record.meta else None
        if chain and (shot is None or record.meta["group"] != chain[0].meta["group"]):  # type: ignore[union-attr]
            yield _chained(chain)
            chain = []
        if shot is None:
            yield from _alone(record)
            continue
        assert isinstance(record, Document)
        if shot != len(chain):
            raise InputRefused(
                f"the documents of the chain {str(record.meta['group'])[:60]!r} do not follow one another",
                why=f"{record.id!r} is its document {shot!r}, and {len(chain)} of it stand before it",
                fix="give the folder that `ojak augment` wrote",
            )
        chain.append(record)
    if chain:
        yield _chained(chain)


def _chained(chain: list[Document]) -> Unit:
    found = [_with_pairs(record) for record in chain]
    whole = [text or record.text for text, record in zip(found, chain, strict=True)]
    return Unit(
        tuple(record.id for record in chain),
        tuple(record.text for record in chain),
        JOIN.join(whole) if any(found) else None,
        chain[0].source,
    )


def _with_pairs(record: Document) -> str | None:
    """The text with its pairs; None where there are none, and the text is as it was."""
    found = record.meta.get("augmented")
    return found if isinstance(found, str) and found and found != record.text else None


def _alone(record: AnyRecord | LongText) -> Iterator[Unit]:
    if isinstance(record, LongText):
        for number, block in enumerate(record.blocks()):
            if block:
                yield Unit((f"{record.path.name}-{number}",), (block,), None, record.path.name)
    elif isinstance(record, Document):
        yield Unit((record.id,), (record.text,), _with_pairs(record), record.source)
    elif isinstance(record, Conversation):
        text = " ".join(turn["content"] for turn in record.messages if turn["content"])
        yield Unit((record.id,), (text,), None, record.source)


def supervised(unit: Unit) -> Unit:
    """The unit as a supervised set gives it: with its pairs, where it has some."""
    return Unit(unit.ids, (unit.augmented,), None, unit.origin) if unit.augmented else unit


def sizes(found: Iterable[Unit], tokenizer: Tokenizer, max_len: int, *, augmented: bool) -> Sizes:
    """The tokens of all units, counted by training's own encoder; augmented: also those of the texts with pairs.

    Memory: 8 bytes a document and 24 a unit.
    """
    encoder = Encoder(tokenizer, Encoding("pretrain", max_len=max_len))
    counted, documents, extra = array("q"), array("q"), array("q")

    def texts() -> Iterator[Document]:
        for unit in found:
            both = (*unit.texts, unit.augmented) if augmented and unit.augmented else unit.texts
            documents.append(len(unit.texts))
            extra.append(len(both) - len(unit.texts))
            for text in both:
                counted.append(0)
                yield Document("", text)

    for row in encoder.rows(texts()):
        counted[row.record] += len(row.ids)
    whole, length, more = (np.array(x, dtype=np.int64) for x in (counted, documents, extra))
    ends = np.cumsum(length + more)
    has_more = more > 0
    with_pairs = np.zeros(len(length), np.int64)
    with_pairs[has_more] = whole[ends[has_more] - 1]
    is_text = np.ones(len(whole), np.bool_)
    is_text[ends[has_more] - 1] = False
    return Sizes(whole[is_text], np.concatenate([[0], np.cumsum(length)]), with_pairs)


def counter(tokenizer: Tokenizer, max_len: int) -> Callable[[str], int]:
    """How many tokens training counts in a text."""

    def count(text: str) -> int:
        rows = Encoder(tokenizer, Encoding("pretrain", max_len=max_len)).rows([Document("", text)])
        return sum(len(row.ids) for row in rows)

    return count


def cut(text: str, most: int, count: Callable[[str], int], slack: int) -> str:
    """The beginning of `text` with at most `most` tokens, and fewer than that by less than `slack` if it ends with a
    line or a word. Takes time by its own length, not by that of `text`."""
    high = min(len(text), max(LEAST_CUT, 2 * most))
    while high < len(text) and count(text[:high]) <= most:
        high = min(len(text), 2 * high)
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= most else (low, middle - 1)
    for mark in ("\n", " "):
        shorter = text[: text.rfind(mark, 0, low) + 1]
        if shorter and most - slack < count(shorter) <= most:
            return shorter
    return text[:low]


def origin(unit: Unit, name: str, number: int) -> dict[str, Any]:
    """What a row says of where it is from."""
    return {"source": name, "documents": list(unit.ids), "pass": number}
