"""Batches made by hand: documents with what they teach, packed one after another or padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ojak.train.batches import Batch

Document = tuple[Sequence[int], Sequence[bool]]  # ids, and which of them are learnt


def targets_of(document: Document) -> list[int]:
    """The next token where it is learnt, -100 elsewhere."""
    ids, learnt = document
    return [ids[i + 1] if i + 1 < len(ids) and learnt[i + 1] else -100 for i in range(len(ids))]


def packed(documents: Sequence[Document]) -> Batch:
    ids = [i for document in documents for i in document[0]]
    targets = [i for document in documents for i in targets_of(document)]
    positions = [i for ids, _ in documents for i in range(len(ids))]
    return Batch(
        torch.tensor([ids]),
        torch.tensor([targets]),
        torch.tensor([positions]),
        tuple(len(ids) for ids, _ in documents),
        True,
        len(ids),
        sum(i != -100 for i in targets),
    )


def padded(documents: Sequence[Document], filler: int = 3) -> Batch:
    width = max(len(ids) for ids, _ in documents)
    rows = [[*ids, *[filler] * (width - len(ids))] for ids, _ in documents]
    targets = [[*targets_of(d), *[-100] * (width - len(d[0]))] for d in documents]
    return Batch(
        torch.tensor(rows),
        torch.tensor(targets),
        torch.arange(width).expand(len(rows), -1),
        tuple(len(ids) for ids, _ in documents),
        False,
        sum(len(ids) for ids, _ in documents),
        sum(i != -100 for row in targets for i in row),
    )


def some(
    seed: int = 0, *, count: int = 6, prefix: int = 5, longest: int = 24, vocabulary: int = 250
) -> list[Document]:
    """Documents of which most begin alike, of ragged lengths, learnt from a ragged place on."""
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> list[int]:
        return torch.randint(low, high, (size,), generator=random).tolist()

    shared = draw(0, vocabulary, prefix)
    made: list[Document] = []
    for number in range(count):
        own = draw(0, vocabulary, draw(2, longest - prefix)[0])
        ids = own if number == 1 else [*shared[: prefix - number % 3], *own]
        first = draw(1, len(ids))[0]
        made.append((ids, [i >= first for i in range(len(ids))]))
    return made
