"""Long texts read through the generator's cache, tile by tile: how probable each token is, and what the reading took.

The rings bound the memory: a local layer keeps its window and one tile, whatever the length of the text. The window and
the soft caps may be others than the model was trained with; its weights, positions and layers stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ojak.model.attention import softcap
from ojak.model.cache import (
    PREFILL_TOKENS,
    CacheShape,
    DecodeAttend,
    Piece,
    SlotCache,
    feed_tile,
)
from ojak.model.decoder import Decoder, DecoderConfig
from ojak.model.fuse import ready
from ojak.model.memory import forget_peak, held_bytes, peak_bytes
from ojak.model.sampling import token_logprobs

LOGIT_ROWS = 64  # tokens whose logits are in memory at once: of a large vocabulary they take the most
ALONE = (0, 0)  # the span of a text that shares no prefix


@dataclass(frozen=True, slots=True)
class View:
    """What a model is read with. capacity: tokens of the longest text. window: tokens that local layers see; None: all.

    softcaps: whether the caps on attention scores and on logits that its configuration names are applied.
    """

    capacity: int
    window: int | None
    softcaps: bool = True

    def config(self, config: DecoderConfig) -> DecoderConfig:
        """The configuration with the window and the caps of this view."""
        caps = {} if self.softcaps else {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        return replace(config, sliding_window=self.window or self.capacity, **caps)


@dataclass(slots=True)
class Reading:
    """nats: minus the natural log-probability of each target, text after text. cache_bytes: keys and values of a text
    of `capacity` tokens. memory_bytes: the most that reading held beside the weights.

    prefill_tokens, prefill_s: what went through the layers in tiles, without the output layer. steps_s: the seconds of
    each token that was fed alone, the output layer included.
    """

    cache_bytes: int
    nats: list[float] = field(default_factory=list)
    memory_bytes: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)


def read_texts(
    decoder: Decoder, texts: Iterable[tuple[Sequence[int], Sequence[int]]], view: View, *, stepped: int = 0
) -> Reading:
    """Reads each (ids, targets), a target being the token after the same place in ids; both of equal length.

    stepped: so many tokens at the end of the last text are fed one at a time, as generation does.
    """
    ready(decoder)
    forget_peak()
    before = held_bytes(_device(decoder))
    reader = _Reader(decoder, view)
    waiting = list(texts)
    for place, (ids, targets) in enumerate(waiting, 1):
        reader.read(ids, targets, stepped if place == len(waiting) else 0)
    # The kernel counts the two in different ways, so that of a tiny model the peak can be a page below what was held.
    reader.found.memory_bytes = max(0, peak_bytes(_device(decoder)) - before)
    return reader.found


def _device(decoder: Decoder) -> torch.device:
    return decoder.model.embed_tokens.weight.device


class _Reader:
    """One slot of a cache, and what was found so far."""

    def __init__(self, decoder: Decoder, view: View) -> None:
        self.decoder, self.config, self.device = decoder, view.config(decoder.config), _device(decoder)
        dtype = decoder.model.embed_tokens.weight.dtype
        shape = CacheShape(slots=1, capacity=view.capacity, prefix_capacity=0)
        self.cache = SlotCache(self.config, shape, dtype, self.device)
        self.found = Reading(shape.bytes_per_slot(self.config, dtype))

    @torch.inference_mode()
    def read(self, ids: Sequence[int], targets: Sequence[int], stepped: int) -> None:
        found, whole = self.found, len(ids) - stepped
        self.cache.empty()
        for begin in range(0, whole, PREFILL_TOKENS):
            end = min(begin + PREFILL_TOKENS, whole)
            since = self._now()
            x_ND = self._tile(ids[begin:end], begin)
            found.prefill_s += self._now() - since
            found.prefill_tokens += end - begin
            for at in range(0, end - begin, LOGIT_ROWS):
                rows = slice(at, min(at + LOGIT_ROWS, end - begin))
                found.nats += self._nats(self._logits(x_ND[rows]), targets[begin:end][rows])
        for place in range(whole, len(ids)):
            since = self._now()
            logits_NV = self._logits(self._step(ids[place], place))
            found.steps_s.append(self._now() - since)
            found.nats += self._nats(logits_NV, targets[place : place + 1])

    def _tile(self, ids: Sequence[int], begin: int) -> Tensor:
        """The last hidden states of tokens from place `begin` on."""
        self.cache.fit(begin + len(ids))
        return feed_tile(self.decoder, self.cache, [Piece(tuple(ids), 0, begin, ALONE)])

    def _step(self, token: int, place: int) -> Tensor:
        """The last hidden state of a token that is fed alone."""
        self.cache.fit(place + 1)
        own_N, spans_N2 = torch.tensor([place], device=self.device), torch.tensor([ALONE], device=self.device)
        ids_BT = torch.tensor([[token]], device=self.device)
        return self.decoder.hidden(ids_BT, own_N[None], DecodeAttend(self.cache, own_N, spans_N2))[0]

    def _logits(self, x_ND: Tensor) -> Tensor:
        return softcap(self.decoder.lm_head(x_ND), self.config.final_logit_softcapping)

    def _nats(self, logits_NV: Tensor, targets: Sequence[int]) -> list[float]:
        return (-token_logprobs(logits_NV, torch.tensor(targets, device=self.device))).tolist()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
