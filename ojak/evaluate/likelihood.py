"""How well a model predicts texts: perplexity, and bits per byte, which models with other tokenizers share.

A document is scored whole; of a conversation, what the assistant says, and the token that ends its turn. Texts longer
than the model reads are scored in windows that overlap by half, so that every token has at least that much before it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ojak.chat import encode_chats
from ojak.engines.base import Scored
from ojak.engines.native import NativeEngine
from ojak.errors import InputRefused
from ojak.formats import template_turns
from ojak.records import AnyRecord, Conversation, Document

BLOCK = 64  # rows encoded at once
LONGEST_WINDOW = 2048  # tokens; the memory for masks grows with its square
SAMPLES = 1000  # of the bootstrap
MOST_NATS = 690.0  # a token; exp of a few more is beyond all floats, and a picture's axes need some room


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids, and which of them count. `counted` has the length of `ids`; the first one never counts."""

    row: int
    ids: Sequence[int]
    counted: Sequence[bool]
    bytes: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What was found of each row that was scored, in their order.

    rows: its number among all rows, from 0. nats: minus the sum of the natural log-probabilities of its `tokens`.
    bytes: of the scored text in UTF-8. skipped: reasons and numbers of rows that were not.
    """

    rows: tuple[int, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    skipped: dict[str, int]

    @property
    def why(self) -> str:
        """Why no row was scored, for the refusal of what needs one."""
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.skipped.items())
        return f"they were left out for: {reasons}" if reasons else "there are none"

    def summary(self, seed: int = 0) -> dict[str, object]:
        """Perplexity and bits per byte over all rows, [value, low, high]: 95 % by a bootstrap over rows."""
        if not self.rows:
            return {"rows": 0, "skipped": self.skipped}
        nats, tokens, size = (np.asarray(x, dtype=np.float64) for x in (self.nats, self.tokens, self.bytes))
        loss = ratio_interval(nats, tokens, np.random.default_rng(seed))
        bits = [x / math.log(2) for x in ratio_interval(nats, size, np.random.default_rng(seed))]
        return {
            "rows": len(self.rows),
            "tokens": int(tokens.sum()),
            "bytes": int(size.sum()),
            "loss": loss[0],
            "perplexity": perplexity(loss[0]),
            "perplexity_interval": [perplexity(x) for x in loss[1:]],
            "bits_per_byte": bits[0],
            "bits_per_byte_interval": bits[1:],
            "skipped": self.skipped,
        }


def perplexity(loss: float) -> float:
    """exp of nats a token, at most 5e299: a merge at a wild scale can be so bad that no float holds it."""
    return math.exp(min(loss, MOST_NATS))


def likelihood(engine: NativeEngine, records: Iterable[AnyRecord]) -> Likelihood:
    """Scores the rows. Skipped are preferences and rejected rows (`kind`), what the template refuses (`template`), what
    holds no token to score (`empty`), and conversations longer than the model reads (`too_long`).

    Raises InputRefused for conversations if the model has no chat template.
    """
    skipped: Counter[str] = Counter()
    found: list[tuple[int, float, int, int]] = []
    stream = iter(enumerate(records))
    while block := list(islice(stream, BLOCK)):
        encoded = list(_encoded(engine, block, skipped))
        pieces = [(row, piece) for row in encoded for piece in _windows(row, _width(engine))]
        scores = engine.score(Scored(tuple(before), tuple(after)) for _, (before, after, _) in pieces)
        sums: Counter[int] = Counter()
        nats: dict[int, list[float]] = {}
        for (row, (_, _, counted)), logprobs in zip(pieces, scores, strict=True):
            sums[row.row] += sum(counted)
            nats.setdefault(row.row, []).extend(
                -logprob for logprob, counts in zip(logprobs, counted, strict=True) if counts
            )
        found += [(row.row, math.fsum(nats[row.row]), sums[row.row], row.bytes) for row in encoded]
    rows, totals, tokens, sizes = zip(*found, strict=True) if found else ((), (), (), ())
    return Likelihood(rows, totals, tokens, sizes, dict(skipped))


def reference_logprobs(engine: NativeEngine, chats: Sequence[Conversation]) -> list[float | None]:
    """The mean natural log-probability of a token of each conversation's last answer, the token that ends the turn
    included, given all that stands before it. None where the template refuses the turns, or they are too long.
    """
    encoded = list(_chats(engine, list(enumerate(chats))))
    answers = [_last_answer(each) for each in encoded if isinstance(each, Encoded)]
    scores = engine.score(answers)
    return [statistics.fmean(next(scores)) if isinstance(each, Encoded) else None for each in encoded]


def _last_answer(row: Encoded) -> Scored:
    """The last run of tokens that count, after all before it."""
    end = len(row.counted) - row.counted[::-1].index(True)
    begin = end
    while row.counted[begin - 1]:
        begin -= 1
    return Scored(tuple(row.ids[:begin]), tuple(row.ids[begin:end]))


def _encoded(
    engine: NativeEngine, block: Sequence[tuple[int, AnyRecord]], skipped: Counter[str]
) -> Iterator[Encoded]:
    """The rows of a block that can be scored, in their order."""
    chats = [(number, record) for number, record in block if isinstance(record, Conversation)]
    rendered = dict(zip([number for number, _ in chats], _chats(engine, chats), strict=True))
    for number, record in block:
        if isinstance(record, Document):
            found = _document(engine, number, record.text)
        elif isinstance(record, Conversation):
            found = rendered[number]
        else:
            found = "kind"
        if isinstance(found, str):
            skipped[found] += 1
        else:
            yield found


def _document(engine: NativeEngine, number: int, text: str) -> Encoded | str:
    """The text after the tokenizer's BOS, or, where it adds none, after its own first token."""
    tokenizer = engine.model.tokenizer
    ids, size = tokenizer.encode(text, special=False), len(text.encode("utf-8", "surrogatepass"))
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    elif ids:
        size -= len(tokenizer.token_bytes(ids[0]))
    if len(ids) < 2 or size < 1:
        return "empty"
    return Encoded(number, ids, [False, *[True] * (len(ids) - 1)], size)


def _chats(engine: NativeEngine, chats: Sequence[tuple[int, Conversation]]) -> Iterator[Encoded | str]:
    model = engine.model
    if not chats:
        return
    found = encode_chats(model.chat_template, model.tokenizer, [template_turns(chat) for _, chat in chats])
    for (number, chat), encoded in zip(chats, found, strict=True):
        if isinstance(encoded, InputRefused):
            yield "template"
            continue
        ids, counted = encoded
        counted = [False, *counted[1:]]
        said = "".join(turn["content"] for turn in chat.messages if turn["role"] == "assistant")
        size = len(said.encode("utf-8", "surrogatepass"))
        if len(ids) > (engine.context_tokens or len(ids)):
            yield "too_long"
        elif not any(counted) or not size:
            yield "empty"
        else:
            yield Encoded(number, ids, counted, size)


def _width(engine: NativeEngine) -> int:
    return min(LONGEST_WINDOW, engine.context_tokens or LONGEST_WINDOW)


Piece = tuple[
    Sequence[int], Sequence[int], Sequence[bool]
]  # what stands before, what is scored, what of it counts


def _windows(row: Encoded, width: int) -> Iterator[Piece]:
    """The row in pieces of at most `width` tokens. What stands before the first token that counts is only read."""
    first = row.counted.index(True)
    if len(row.ids) <= width or first >= width:  # a long conversation is read whole
        yield row.ids[:first], row.ids[first:], row.counted[first:]
        return
    yield row.ids[:first], row.ids[first:width], row.counted[first:width]
    step = width // 2
    for start in range(width, len(row.ids), step):
        end = min(start + step, len(row.ids))
        yield row.ids[start + step - width : start], row.ids[start:end], row.counted[start:end]


Floats = NDArray[np.float64]


def ratio_interval(
    above: Floats, below: Floats, random: np.random.Generator, samples: int = SAMPLES
) -> list[float]:
    """sum(above) / sum(below), and 95 % of a bootstrap over rows: [value, low, high]."""
    ratios = []
    for _ in range(samples):
        drawn = random.integers(len(above), size=len(above))
        ratios.append(above[drawn].sum() / below[drawn].sum())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return [float(above.sum() / below.sum()), float(low), float(high)]
