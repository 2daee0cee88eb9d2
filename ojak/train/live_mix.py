"""Answers drawn from alpha * teacher + (1 - alpha) * model, token by token (MiniLLM, arXiv 2306.08543, section 2.2).

Both decoders read the same tokens, each into a cache of its own. All rows of a call go in step; one that has ended
gives its slot to the last one that has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ojak.errors import Diverged, UsageError
from ojak.model.cache import (
    LEAST_COLUMNS,
    PREFILL_TOKENS,
    CacheShape,
    DecodeAttend,
    Piece,
    SlotCache,
    feed_tile,
)
from ojak.model.decoder import Decoder
from ojak.model.request import Request
from ojak.model.sampling import CHUNK_ROWS, invert, uniform


@dataclass(frozen=True)
class Mix:
    """A teacher of the same vocabulary and on the same device, and its share `alpha` of each draw, from 0 to 1."""

    teacher: Decoder
    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"a teacher's share of {self.alpha:g} is none", fix="give one from 0 to 1")


@dataclass(slots=True)
class MixedRow:
    """What one request got: ids, the stop token last where it `stopped`, and both log-probabilities of each."""

    ids: list[int] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    teacher: list[float] = field(default_factory=list)
    stopped: bool = False


@torch.inference_mode()
def mixed_answers(
    decoder: Decoder, mix: Mix, requests: Sequence[Request], *, capacity: int
) -> list[MixedRow]:
    """One row a request (prompt ids, seed, max_tokens, stop_ids and temperature are looked at), in their order.

    capacity: tokens of a prompt and its answer together. Raises UsageError for a vocabulary of another size and for
    greedy drawing, Diverged where one of the two gives no finite numbers.
    """
    _check(decoder, mix, requests)
    readers = [_Reader(each, len(requests), capacity) for each in (decoder, mix.teacher)]
    prompts = [list(map(int, request.prompt)) for request in requests]
    for reader in readers:
        reader.read(prompts)
    rows = [MixedRow() for _ in requests]
    active = list(range(len(requests)))  # by slot
    while active:
        last = [(rows[i].ids or prompts[i])[-1] for i in active]
        own = [len(prompts[i]) + len(rows[i].ids) - 1 for i in active]
        logits = [reader.step(last, own) for reader in readers]
        _draw(logits[0], logits[1], mix.alpha, [requests[i] for i in active], [rows[i] for i in active])
        for slot in reversed(range(len(active))):
            if rows[active[slot]].stopped or len(rows[active[slot]].ids) >= requests[active[slot]].max_tokens:
                moved = active.pop()
                if slot < len(active):
                    active[slot] = moved
                    for reader in readers:
                        reader.cache.move(len(active), slot)
    return rows


def _check(decoder: Decoder, mix: Mix, requests: Sequence[Request]) -> None:
    sizes = decoder.config.vocab_size, mix.teacher.config.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(
            "the teacher has another vocabulary", why=f"{sizes[1]} tokens, the trained model has {sizes[0]}"
        )
    if any(request.sampling.temperature == 0 for request in requests):
        raise UsageError("answers of two models cannot be drawn greedily", fix="give a temperature above 0")


def _draw(
    own_NV: Tensor, teacher_NV: Tensor, alpha: float, requests: Sequence[Request], rows: Sequence[MixedRow]
) -> None:
    """Adds a token to each row; float32 probabilities of a few rows at a time."""
    seeds = torch.tensor([request.seed for request in requests])
    uniforms = uniform(seeds, torch.tensor([len(row.ids) for row in rows]))
    for begin in range(0, len(rows), CHUNK_ROWS):
        part = slice(begin, begin + CHUNK_ROWS)
        heat = torch.tensor([r.sampling.temperature for r in requests[part]], device=own_NV.device)[:, None]
        q, p = ((x[part].float() / heat).log_softmax(-1) for x in (own_NV, teacher_NV))
        weights = (1 - alpha) * q.exp() + alpha * p.exp()
        if not bool(weights.sum().isfinite()):
            raise Diverged("no answer can be drawn: the model or its teacher gives no finite numbers")
        tokens = invert(weights, uniforms[part])[:, None]
        drawn = (tokens, q.gather(1, tokens), p.gather(1, tokens))
        for request, row, (token, *logprobs) in zip(
            requests[part], rows[part], torch.cat([x.double() for x in drawn], 1).tolist(), strict=True
        ):
            row.ids.append(int(token))
            row.own.append(logprobs[0])
            row.teacher.append(logprobs[1])
            row.stopped = row.ids[-1] in request.stop_ids


class _Reader:
    """A decoder and its cache, a slot a row, nothing shared."""

    def __init__(self, decoder: Decoder, rows: int, capacity: int) -> None:
        weight = decoder.model.embed_tokens.weight
        shape = CacheShape(slots=max(rows, LEAST_COLUMNS), capacity=capacity, prefix_capacity=0)
        self.decoder, self.device = decoder, weight.device
        self.cache = SlotCache(decoder.config, shape, weight.dtype, weight.device)
        self.cache.fit(capacity)

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Takes in all but the last token of each prompt."""
        pieces: list[Piece] = []
        room = PREFILL_TOKENS
        for slot, prompt in enumerate(prompts):
            at, end = 0, len(prompt) - 1
            while at < end:
                taken = min(room, end - at)
                pieces.append(Piece(tuple(prompt[at : at + taken]), slot, at, (0, 0)))
                at, room = at + taken, room - taken
                if not room:
                    feed_tile(self.decoder, self.cache, pieces)
                    pieces, room = [], PREFILL_TOKENS
        if pieces:
            feed_tile(self.decoder, self.cache, pieces)

    def step(self, ids: list[int], own: list[int]) -> Tensor:
        """Feeds one token to each of the first slots, token `own` of its row; logits (N, V) of the next ones."""
        fed, at = (torch.tensor(x, device=self.device) for x in (ids, own))
        spans = torch.zeros(len(ids), 2, dtype=torch.int64, device=self.device)
        attend = DecodeAttend(self.cache, at, spans)
        return self.decoder.logits(self.decoder.hidden(fed[None], at[None], attend))[0]
