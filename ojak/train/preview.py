"""What a run would learn, row by row: the tokens as the model gets them, and which of them it is taught to write.

The rows come from the code that training reads them with, so that a mask that is wrong there is seen here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ojak._progress import silent
from ojak.errors import InputRefused
from ojak.train.encode import Encoder, Encoding
from ojak.train.fresh import starting_source
from ojak.train.sources import parse_source, split_of
from ojak.train.sources import read_source as read_data
from ojak.train.styles import style_for, style_template, turn_end_ids

if TYPE_CHECKING:
    from ojak.model.source import Source
    from ojak.model.tokenizer import Tokenizer
    from ojak.train.config import TrainConfig
    from ojak.train.encode import Ids, Mask


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens in a row that are all learnt or all not: their text. `ends`: they end with the end of a turn."""

    learnt: bool
    text: str
    tokens: int
    ends: bool


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """A row of a source, or a document of a pair: the number of its record there (from 0), and its runs."""

    source: str
    record: int
    runs: tuple[Run, ...]

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self.runs)

    @property
    def supervised(self) -> int:
        return sum(run.tokens for run in self.runs if run.learnt)


@dataclass(frozen=True, slots=True)
class Preview:
    """`style`: None where no template is used. `stops`: the tokens that end an answer. `refused`: counts by reason."""

    model: str
    style: str | None
    stops: tuple[str, ...]
    rows: tuple[PreviewRow, ...]
    refused: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        rows = [
            {
                "source": row.source, "record": row.record, "tokens": row.tokens, "supervised": row.supervised,
                "runs": [{name: getattr(run, name) for name in Run.__slots__} for run in row.runs],
            }
            for row in self.rows
        ]  # fmt: skip
        return {
            "model": self.model, "style": self.style, "stops": list(self.stops), "rows": rows, "refused": self.refused,
        }  # fmt: skip


def preview(config: TrainConfig, rows: int, notify: Callable[[str], None] = silent) -> Preview:
    """The first `rows` rows of each source of a run, as the model would get them. Nothing is written.

    Raises what `rows.open_rows` does for data that cannot be read; InputRefused where no row comes of them.
    """
    model = starting_source(config, notify)
    style = style_for(config.reads, config.style, model.chat_template)
    template = style_template(style, model.tokenizer, model.chat_template) if style else None
    encoding = Encoding(config.reads, template, config.mask_roles, config.max_len, config.long_rows)
    ends = _ends(model, encoding)
    shown: list[PreviewRow] = []
    refused: dict[str, int] = {}
    for text in config.data:
        source = parse_source(text)
        encoder = Encoder(model.tokenizer, encoding)
        records = read_data(source, split_of(source), notify)
        for row in itertools.islice(encoder.rows(records), rows):
            for document in row.documents():
                runs = tuple(_runs(*document, model.tokenizer, ends))
                shown.append(PreviewRow(str(source.path), row.record, runs))
        for reason, number in encoder.counts.refused.items():
            refused[reason] = refused.get(reason, 0) + number
    if not shown:
        raise InputRefused(
            "there is no row to learn from",
            why="; ".join(f"{n:,}: {r}" for r, n in refused.items()) or "the data hold no records",
            fix="give other data, or see to --max-len, the style and mask_roles",
        )
    names = {i: name for name, i in model.tokenizer.special_tokens.items()}
    return Preview(model.name, style, tuple(names.get(i, "") for i in ends), tuple(shown), refused)


def _ends(model: Source, encoding: Encoding) -> tuple[int, ...]:
    if encoding.template is not None:
        return turn_end_ids(encoding.template, model.tokenizer)
    return () if model.tokenizer.eos_id is None else (model.tokenizer.eos_id,)


def _runs(ids: Ids, mask: Mask, tokenizer: Tokenizer, ends: tuple[int, ...]) -> Iterator[Run]:
    pairs = zip(ids.tolist(), mask.tolist(), strict=True)
    for learnt, group in itertools.groupby(pairs, lambda pair: pair[1]):
        own = [i for i, _ in group]
        text = b"".join(map(tokenizer.token_bytes, own)).decode("utf-8", errors="replace")
        yield Run(learnt, text, len(own), learnt and _ends_turn(own, tokenizer, ends))


def _ends_turn(ids: list[int], tokenizer: Tokenizer, ends: tuple[int, ...]) -> bool:
    """Whether an end of turn comes last, but for the blanks that some templates write after it."""
    last = next((i for i in reversed(ids) if i in ends or tokenizer.token_bytes(i).strip()), None)
    return last in ends
