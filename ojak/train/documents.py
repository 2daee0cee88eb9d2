"""A micro-batch as documents in one flat row: no padding, and what documents have in common only once.

Rows of one prompt style all begin with the same words. A token's hidden states depend on the tokens before it alone, so
documents that begin alike have the same states there, in every layer; and a gradient is a sum over all that a state
serves. So the documents are laid out as a tree: each distinct beginning is multiplied once, forward and backward, and
the loss and its gradients are those of the documents one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ojak.model.attention import DocumentAttention, take_rows

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Documents:
    """ids_1N and positions_1N of the flat row; for each document the places of its tokens in it.

    sources_S, targets_S: from which place which token is predicted, of all that is supervised; a place that serves
    several documents comes once for each. learnt: how many of these are each document's, in their order.
    """

    ids_1N: Tensor
    positions_1N: Tensor
    places: tuple[Tensor, ...]
    sources_S: Tensor
    targets_S: Tensor
    learnt: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are multiplied."""
        return self.ids_1N.shape[1]


def documents(batch: Batch, *, share: bool) -> Documents:
    """The documents of a batch, packed or padded; `share`: what they have in common only once."""
    rows = [row.numpy() for row in _split(batch, batch.ids_BT)]
    places, count = _tree(rows) if share else _in_order(rows)
    ids, positions = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for row, place in zip(rows, places, strict=True):
        ids[place], positions[place] = row, np.arange(len(row))
    targets = torch.cat(_split(batch, batch.targets_BT))
    learnt = targets != IGNORED
    tensors = tuple(torch.from_numpy(place) for place in places)
    return Documents(
        torch.from_numpy(ids)[None],
        torch.from_numpy(positions)[None],
        tensors,
        torch.cat(tensors)[learnt],
        targets[learnt],
        learnt_tokens(batch),
    )


def learnt_tokens(batch: Batch) -> tuple[int, ...]:
    """How many tokens of each document of a batch are learnt, in the documents' order."""
    return tuple(int((part != IGNORED).sum()) for part in _split(batch, batch.targets_BT))


def document_states(decoder: Decoder, batch: Batch, *, share: bool) -> tuple[Tensor, Tensor, Documents]:
    """(hidden_SD, targets_S, the documents): from which last state which token is told, on the decoder's device."""
    device, found = decoder.model.embed_tokens.weight.device, documents(batch, share=share)
    attend = DocumentAttention(decoder.config, found.places, device=device)
    hidden_1ND = decoder.hidden(found.ids_1N.to(device), found.positions_1N.to(device), attend)
    hidden_SD = take_rows(hidden_1ND[0], found.sources_S.to(device), repeats=share)
    return hidden_SD, found.targets_S.to(device), found


def _split(batch: Batch, x_BT: Tensor) -> list[Tensor]:
    """The documents' own parts of ids or targets, those without a token left out."""
    if batch.packed:
        return [row for row in x_BT[0].split(batch.lengths) if len(row)]
    return [row[:length] for row, length in zip(x_BT, batch.lengths, strict=True) if length]


def _in_order(rows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    ends = np.cumsum([len(row) for row in rows])
    return [np.arange(end - len(row), end) for row, end in zip(rows, ends, strict=True)], int(ends[-1])


def _tree(rows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Each document shares with its neighbour in alphabetical order what both begin with."""
    places: list[np.ndarray] = [rows[0]] * len(rows)
    count, before = 0, None
    for i in sorted(range(len(rows)), key=lambda i: rows[i].tolist()):
        shared = 0 if before is None else _common(rows[before], rows[i])
        own = np.arange(count, count + len(rows[i]) - shared)
        places[i] = own if before is None else np.concatenate([places[before][:shared], own])
        count, before = count + len(own), i
    return places, count


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two documents have in common at their beginning."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
