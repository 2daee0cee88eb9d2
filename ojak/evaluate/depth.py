"""Which layers a model misses least: the student that is cut out of it then begins far ahead.

One run of neighbouring layers goes (arXiv 2403.17887, section 3; arXiv 2408.11796 tries places by loss, too):
every place for it is tried on some texts. In its best place one gap costs far less than several; in a bad one it
costs more, so no place goes untried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ojak.artifact import Artifact
from ojak.engines.native import NativeEngine
from ojak.errors import InputRefused
from ojak.evaluate.likelihood import likelihood
from ojak.evaluate.rows import rows_at
from ojak.model.load import Model, from_source
from ojak.model.shrink import decoder_with, spread
from ojak.model.source import Source
from ojak.records import AnyRecord, Conversation, Document
from ojak.sources import evenly, is_artifact

ROWS = 32  # read once for each place that is tried
LONGEST = 2000  # characters of a document; the loss of a long one differs little from that of its beginning


@dataclass(frozen=True, slots=True)
class Cut:
    """The layers that stay, from 0, and the loss with them alone: nats a token over the `rows` that could be scored,
    infinite where the numbers are not finite.
    """

    layers: tuple[int, ...]
    loss: float
    rows: int


def cuts(model: Model, layers: int, records: Sequence[AnyRecord]) -> list[Cut]:
    """Every way to take one run out so that `layers` stay, the one with the least loss first.

    Raises UsageError for more layers than there are, InputRefused where no row can be scored, or none to a finite loss.
    """
    count = model.config.num_hidden_layers
    spread(count, layers)  # refuses sizes that the model has not
    found: list[Cut] = []
    for first in range(layers + 1 if layers < count else 1):
        kept = (*range(first), *range(count - layers + first, count))
        small = decoder_with(model.decoder, kept)
        measured = likelihood(NativeEngine(replace(model, config=small.config, decoder=small)), records)
        if not measured.rows:
            raise InputRefused(
                "no row can tell which layers are missed",
                why=measured.why,
                fix="give texts, or conversations that the model's chat template takes",
            )
        loss = math.fsum(measured.nats) / sum(measured.tokens)
        loss = loss if math.isfinite(loss) else math.inf  # a NaN has no place in an order
        found.append(Cut(kept, loss, len(measured.rows)))
    found.sort(key=lambda cut: cut.loss)
    if math.isinf(found[0].loss):
        raise InputRefused(
            "the model gives no finite numbers, whichever layers go",
            why=f"it ran as {str(model.dtype).removeprefix('torch.')}",
            fix="use another copy of the model",
        )
    return found


def least_missed(
    source: Source, layers: int, data: Path, split: str | None = None, *, notify: Callable[[str], None]
) -> tuple[int, ...]:
    """Which `layers` of a model's stay where those that its rows miss least go.

    data: rows or texts; of an artifact `split`, else what is for training, else all. Raises what `cuts`,
    `from_source` and `rows_at` do.
    """
    if split is None and is_artifact(data) and "train" in Artifact.open(data).splits:
        split = "train"
    rows = list(rows_at(data, split))
    rows = [rows[place] for place in evenly(len(rows), ROWS)]  # before the weights take their memory
    model = from_source(source)
    rows = [_short(row, model.chat_template is None) for row in rows]
    best, *others = cuts(model, layers, rows)
    worst = f"; the worst place for the gap: {others[-1].loss:.2f}" if others else ""
    notify(f"{best.loss:.2f} nats a token on {best.rows} rows with what stays{worst}")
    return best.layers


def _short(record: AnyRecord, plain: bool) -> AnyRecord:
    """A document's beginning; a conversation as it is, or, for a model without a template (`plain`), as such a text."""
    if plain and isinstance(record, Conversation):
        record = Document(record.id, "\n\n".join(message["content"] for message in record.messages))
    return replace(record, text=record.text[:LONGEST]) if isinstance(record, Document) else record
