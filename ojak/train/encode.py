"""Records to rows: token ids, and which of them are learnt. One place for training and for the preview of it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ojak.chat import encode_chats
from ojak.errors import InputRefused, UsageError
from ojak.formats import template_turns
from ojak.records import AnyRecord, Conversation, Document, Preference
from ojak.sources import LongText
from ojak.train.pairs import encode_pairs, score_gap, split_at_border

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.model.tokenizer import Tokenizer

    Ids: TypeAlias = NDArray[np.uint32]
    Mask: TypeAlias = NDArray[np.bool_]

Objective = Literal["pretrain", "finetune", "distil", "prefer", "reinforce"]
LongRows = Literal["truncate", "split", "drop"]

ROLES = ("system", "user", "assistant")  # of those a person may choose which are learnt; a tool's turn is not
MASKED = ("system", "user")
SHORTEST = 4  # a later piece begins with a BOS and one token of the piece before
GROUP = 128  # records encoded together
CHARACTERS = 256 * 1024  # of a text encoded at once
MOST_CHARACTERS = 4 * 2**20  # of a group
MOST_REASONS = 20  # a template may word its refusals differently for each row

# Reasons for which a record gives no row; those of a template are in its own words.
TOO_LONG, EMPTY, NOTHING, NOT_CHAT, NOT_TEXT, NO_STYLE, NOT_A_PAIR, ALIKE, OTHERS = (
    "too_long", "empty", "nothing_to_learn", "not_a_conversation", "neither_text_nor_conversation", "needs_a_style",
    "not_a_pair", "answers_are_alike", "other_reasons",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoding:
    """What shapes the rows beside the tokenizer.

    objective: of "reinforce", a row is what stands before the first answer, and one token of it, which is learnt: its
    place is what the row says; of "prefer", a pair (`pairs.py`). template: a style's (`styles.style_template`); text
    needs none. mask_roles: whose turns are read but not learnt; none of them: every token is learnt, whatever wrote it.
    max_len: the most tokens of a row, or of each document of a pair. long_rows: what becomes of a longer record: its
    beginning, pieces, or nothing; None: pieces for `pretrain`, the beginning for others.
    """

    objective: Objective
    template: str | None = None
    mask_roles: tuple[str, ...] = MASKED
    max_len: int = 1024
    long_rows: LongRows | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.mask_roles if name not in ROLES]:
            raise UsageError(f"{unknown[0]!r} is no role to mask", fix=f"there are: {', '.join(ROLES)}")
        if self.max_len < SHORTEST:
            raise UsageError(
                f"rows of at most {self.max_len} tokens teach nothing", fix=f"give at least {SHORTEST}"
            )

    @property
    def masks(self) -> bool:
        """Whether a part of the tokens is to be left out of the loss."""
        return self.objective not in ("pretrain", "prefer", "reinforce") and bool(self.mask_roles)

    @property
    def long(self) -> LongRows:
        """`long_rows`, its default filled in."""
        return self.long_rows or ("split" if self.objective == "pretrain" else "truncate")

    def key(self) -> dict[str, Any]:
        """The settings as JSON values."""
        found = {
            "objective": self.objective,
            "template": self.template,
            "max_len": self.max_len,
            "long": self.long,
        }
        return {**found, "mask_roles": sorted(self.mask_roles) if self.masks else []}


class Row(NamedTuple):
    """A row of training data. `record` counts records from 0; `mask` says of each id whether it is learnt.

    Of a pair, the row is both of its documents: prompt and better answer, and from `border` on prompt and worse answer;
    `gap`: by how much the better one's score is higher. Other rows have the border 0.
    """

    record: int
    ids: Ids
    mask: Mask
    border: int = 0
    gap: float = math.nan

    def documents(self) -> list[tuple[Ids, Mask]]:
        """The two of a pair, or the one that the row is."""
        return split_at_border(self.ids, self.mask, self.border)


@dataclass
class Counts:
    """`records` read = `kept` + all `refused`. `truncated`, `split`: kept ones that were longer than a row.

    `rows`, `tokens` and `supervised` (tokens that are learnt) are of what came out.
    """

    records: int = 0
    kept: int = 0
    truncated: int = 0
    split: int = 0
    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def refuse(self, reason: str) -> None:
        """Count a record that gives no row."""
        reason = reason if reason in self.refused or len(self.refused) < MOST_REASONS else OTHERS
        self.refused[reason] += 1

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "refused": dict(self.refused.most_common())}


class Encoder:
    """Makes rows of records, and counts what it does in `counts`. Give the records of one source to `rows` once."""

    def __init__(self, tokenizer: Tokenizer, encoding: Encoding) -> None:
        self.tokenizer, self.encoding, self.counts = tokenizer, encoding, Counts()
        self._bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        if encoding.objective == "pretrain" and tokenizer.eos_id is None:
            raise InputRefused(
                "this tokenizer cannot be used for pretraining",
                why="it has no end-of-text token, so that documents would not end",
                fix="use one with an eos_token",
            )

    def rows(self, records: Iterable[AnyRecord | LongText]) -> Iterator[Row]:
        """The rows in the order of the records, made in groups of some, in bounded memory."""
        for group in _groups(records):
            kind = type(group[0])
            if self.encoding.objective == "prefer":
                yield from self._pairs(group)
            elif kind is Conversation and self.encoding.template is not None:
                yield from self._conversations(group)
            elif kind in (Document, LongText) and self.encoding.objective == "pretrain":
                yield from self._texts(group)
            else:
                other = NOT_TEXT if self.encoding.objective == "pretrain" else NOT_CHAT
                self._refuse_all(group, NO_STYLE if kind is Conversation else other)

    def _refuse_all(self, group: list[Any], reason: str) -> None:
        for _ in group:
            self.counts.records += 1
            self.counts.refuse(reason)

    def _conversations(self, group: list[Conversation]) -> Iterator[Row]:
        roles = set(ROLES) - set(self.encoding.mask_roles) if self.encoding.masks else {"assistant"}
        prompts = self.encoding.objective == "reinforce"
        chats = [asked(template_turns(record)) if prompts else template_turns(record) for record in group]
        for encoded in encode_chats(self.encoding.template, self.tokenizer, chats, roles):
            if isinstance(encoded, InputRefused):
                self.counts.records += 1
                self.counts.refuse((encoded.why or encoded.what)[:160])
                continue
            ids, mask = (np.array(encoded[0], np.uint32), np.array(encoded[1], np.bool_))
            if prompts:  # where the answer begins, whatever else is learnt or masked
                ids, mask = ids[: mask.argmax() + 1], mask[: mask.argmax() + 1]
            all_learnt = not (prompts or self.encoding.masks)
            yield from self._record([(ids, np.ones_like(mask) if all_learnt else mask)])

    def _pairs(self, group: list[Any]) -> Iterator[Row]:
        """Preferences as rows of two documents each."""
        if self.encoding.template is None or type(group[0]) is not Preference:
            self._refuse_all(group, NO_STYLE if self.encoding.template is None else NOT_A_PAIR)
            return
        for record, encoded in zip(
            group, encode_pairs(self.encoding.template, self.tokenizer, group), strict=True
        ):
            number, self.counts.records = self.counts.records, self.counts.records + 1
            if isinstance(encoded, InputRefused):
                self.counts.refuse((encoded.why or encoded.what)[:160])
            else:
                yield from self._pair(number, record, encoded)

    def _pair(self, number: int, record: Preference, encoded: Sequence[tuple[Ids, Mask]]) -> Iterator[Row]:
        """The row of a pair, each document cut to `max_len`; none where nothing is left to tell the two apart."""
        limit, counts = self.encoding.max_len, self.counts
        is_cut = any(len(ids) > limit for ids, _ in encoded)
        (ids, mask), (worse, worse_mask) = ((ids[:limit], mask[:limit]) for ids, mask in encoded)
        if is_cut and self.encoding.long == "drop":
            counts.refuse(TOO_LONG)
        elif not (mask.any() and worse_mask.any()):
            counts.refuse(NOTHING)
        elif np.array_equal(ids, worse):
            counts.refuse(ALIKE)
        else:
            row = Row(
                number, np.concatenate((ids, worse)), np.concatenate((mask, worse_mask)), len(ids),
                score_gap(record.scores),
            )  # fmt: skip
            counts.kept, counts.rows, counts.truncated = (
                counts.kept + 1,
                counts.rows + 1,
                counts.truncated + is_cut,
            )
            counts.tokens, counts.supervised = (
                counts.tokens + len(row.ids),
                counts.supervised + int(row.mask.sum()),
            )
            yield row

    def _texts(self, group: list[Any]) -> Iterator[Row]:
        if isinstance(group[0], LongText):
            for record in group:
                encoded = (self.tokenizer.encode(block, special=False) for block in record.blocks())
                yield from self._record(self._document(encoded))
            return
        blocks = [list(text_blocks(record.text)) for record in group]
        encoded = iter(
            self.tokenizer.encode_batch([block for each in blocks for block in each], special=False)
        )
        for each in blocks:
            yield from self._record(self._document(itertools.islice(encoded, len(each))))

    def _document(self, blocks: Iterable[list[int]]) -> Iterator[tuple[Ids, Mask]]:
        """A document's tokens between BOS and EOS, a block at a time; none for a document without text.

        Control tokens that the text spells out were encoded as plain text.
        """
        begun = False
        for ids in filter(None, blocks):
            ids = ids if begun else [*self._bos, *ids]
            begun = True
            yield np.array(ids, np.uint32), np.ones(len(ids), np.bool_)
        if begun:
            yield np.array([self.tokenizer.eos_id], np.uint32), np.ones(1, np.bool_)

    def _record(self, chunks: Iterable[tuple[Ids, Mask]]) -> Iterator[Row]:
        """The rows of one record, counted."""
        counts = self.counts
        number, counts.records = counts.records, counts.records + 1
        made, is_cut, reason = 0, False, EMPTY
        for ids, mask, rest_is_cut in self._pieces(chunks):
            mask[:1] = False  # nothing stands before the first token that it could be told from
            learnt, is_cut = int(mask.sum()), rest_is_cut
            reason = NOTHING if len(ids) else TOO_LONG
            if learnt:
                made += 1
                counts.rows, counts.tokens = counts.rows + 1, counts.tokens + len(ids)
                counts.supervised += learnt
                yield Row(number, ids, mask)
        if made:
            counts.kept += 1
            counts.split += made > 1
            counts.truncated += is_cut
        else:
            counts.refuse(reason)

    def _pieces(self, chunks: Iterable[tuple[Ids, Mask]]) -> Iterator[tuple[Ids, Mask, bool]]:
        """The pieces of a record that are kept, and whether the rest was cut off; an empty one for a dropped record."""
        found = pieces(chunks, self.encoding.max_len, self._bos)
        if self.encoding.long == "split":
            yield from ((ids, mask, False) for ids, mask in found)
            return
        first, is_longer = next(found, None), next(found, None) is not None
        if is_longer and self.encoding.long == "drop":
            yield np.zeros(0, np.uint32), np.zeros(0, np.bool_), False
        elif first is not None:
            yield *first, is_longer


def asked(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns up to the first answer, with one that stands for it where there is none: the row of a prompt."""
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    return turns[: answers[0] + 1] if answers else [*turns, {"role": "assistant", "content": "."}]


def _groups(records: Iterable[AnyRecord | LongText]) -> Iterator[list[Any]]:
    """The records in groups of one type, of bounded number and length."""
    group: list[Any] = []
    size = 0
    for record in records:
        if group and (type(record) is not type(group[0]) or len(group) == GROUP or size > MOST_CHARACTERS):
            yield group
            group, size = [], 0
        group.append(record)
        size += len(record.text) if isinstance(record, Document) else 0
    if group:
        yield group


def text_blocks(text: str) -> Iterator[str]:
    """`text` in blocks that end with a line where lines are not too long: a tokenizer needs memory for each of them."""
    start = 0
    while len(text) - start > CHARACTERS:
        end = text.rfind("\n", start, start + CHARACTERS) + 1
        end = end if end > start else start + CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def pieces(chunks: Iterable[tuple[Ids, Mask]], limit: int, bos: list[int]) -> Iterator[tuple[Ids, Mask]]:
    """A record's tokens, whole if they are at most `limit`, else in pieces of `limit` tokens.

    A later piece begins with the BOS, if there is one, and the last token of the piece before, neither of them learnt:
    so each token is learnt once, and after the one that stands before it in the text.
    """
    ids, mask = np.zeros(0, np.uint32), np.zeros(0, np.bool_)
    for more_ids, more_mask in chunks:
        ids, mask = np.concatenate((ids, more_ids)), np.concatenate((mask, more_mask))
        while len(ids) > limit:
            yield ids[:limit], mask[:limit].copy()
            head = np.array([*bos, ids[limit - 1]], np.uint32)
            ids = np.concatenate((head, ids[limit:]))
            mask = np.concatenate((np.zeros(len(head), np.bool_), mask[limit:]))
    if len(ids):
        yield ids, mask
