"""Drawing the next token of many rows at once, each row by its own settings and its own random number.

The random number of a row's n-th token is a function of (row seed, n) alone, so a draw depends on neither the batch nor
what was drawn before elsewhere. Drawing inverts the cumulative distribution: one uniform number a row, one pass over
the vocabulary for the weights, and a second over one block of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.model.request import Sampling

BLOCK = 256  # the vocabulary is searched in blocks of this many tokens
CHUNK_ROWS = 16  # rows worked on at once: their float32 logits stay in the cache (3 MB at 49k tokens)
BROKEN = -1  # drawn for a row whose logits are not numbers
CANDIDATES = (
    1024  # nucleus sampling looks at this many most probable tokens before it sorts the whole vocabulary
)


def uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """A float64 in [0, 1) for each (seed, counter), int64 both: splitmix64's finaliser over the pair (CPU tensors)."""
    z = seeds + (counters + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed number
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    z = z ^ _shift(z, 31)
    return _shift(z, 11).double() * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit numbers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def argmax(logits_NV: Tensor) -> Tensor:
    """The first largest logit of each row. Several times faster on CPU than torch.argmax, which is scalar there."""
    N, V = logits_NV.shape
    if V % BLOCK:
        return logits_NV.argmax(-1)
    blocks = logits_NV.view(N, V // BLOCK, BLOCK)
    best = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(N, device=logits_NV.device), best].argmax(-1)
    return best * BLOCK + inside


def in_blocks(weights_NV: Tensor) -> Tensor:
    """(N, V) as (N, V / BLOCK, BLOCK), padded with zeros. A row's sum by blocks is the same in any batch."""
    N, V = weights_NV.shape
    return (
        F.pad(weights_NV, (0, -V % BLOCK)).view(N, -1, BLOCK) if V % BLOCK else weights_NV.view(N, -1, BLOCK)
    )


def invert(weights_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """The token at which the running sum of weights passes uniform * total; weights are not negative, float32."""
    blocks = in_blocks(weights_NV)
    sums = blocks.sum(-1).double()
    ends = sums.cumsum(-1)
    target = uniforms_N.to(ends.device)[:, None] * ends[:, -1:]
    block = _first_past(ends, target, sums > 0)
    rows = torch.arange(len(block), device=block.device)
    inside = blocks[rows, block].double()
    before = (ends[rows, block] - sums[rows, block])[:, None]
    token = _first_past(inside.cumsum(-1), target - before, inside > 0)
    return block * BLOCK + token


def _first_past(ends: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """The first column whose running sum exceeds the target; the last allowed one where rounding left none."""
    past = (ends > target) & allowed
    return torch.where(past.any(-1), past.int().argmax(-1), allowed.int().cumsum(-1).argmax(-1))


def draw(
    logits_NV: Tensor,
    settings: Sequence[Sampling],
    uniforms_N: Tensor,
    is_first: Sequence[bool],
    seen: Sequence[Tensor | None],
) -> Tensor:
    """One token for each row.

    logits_NV: any float dtype. settings, is_first: one a row. uniforms_N: float64 in [0, 1). seen: for a row with a
    repetition penalty, the ids it holds so far (int64), None for others. Returns int64 (N,), BROKEN for a row whose
    largest logit is NaN or infinite: nothing can be drawn from it.
    """
    tokens = torch.empty(len(settings), dtype=torch.int64, device=logits_NV.device)
    temperatures = [_temperature(s, first) for s, first in zip(settings, is_first, strict=True)]
    plain = [
        t == 0 and not _edits(s, first) for s, t, first in zip(settings, temperatures, is_first, strict=True)
    ]
    if all(plain):
        return _largest(logits_NV)
    greedy = [i for i, flag in enumerate(plain) if flag]
    if greedy:
        tokens[greedy] = _largest(logits_NV[greedy])
    others = [i for i, flag in enumerate(plain) if not flag]
    for at in range(0, len(others), CHUNK_ROWS):
        rows = others[at : at + CHUNK_ROWS]
        logits = edit(
            logits_NV[rows].float(),
            [settings[i] for i in rows],
            [is_first[i] for i in rows],
            [seen[i] for i in rows],
        )
        tokens[rows] = draw_chunk(
            logits, [settings[i] for i in rows], [temperatures[i] for i in rows], uniforms_N[rows]
        )
    return tokens


def _largest(logits_NV: Tensor) -> Tensor:
    """The first largest logit of each row, BROKEN where that is no finite number (a NaN counts as the largest)."""
    tokens = argmax(logits_NV)
    finite = logits_NV.gather(-1, tokens[:, None])[:, 0].isfinite()
    return torch.where(finite, tokens, BROKEN)


def _temperature(sampling: Sampling, first: bool) -> float:
    return (
        sampling.first_temperature
        if first and sampling.first_temperature is not None
        else sampling.temperature
    )


def _edits(sampling: Sampling, first: bool) -> bool:
    return sampling.repetition_penalty != 1 or bool(first and sampling.banned_first)


def edit(
    logits: Tensor, settings: Sequence[Sampling], is_first: Sequence[bool], seen: Sequence[Tensor | None]
) -> Tensor:
    """Applies repetition penalties and first-token bans, in place; `logits` float32 (n, V)."""
    for i, (sampling, first, ids) in enumerate(zip(settings, is_first, seen, strict=True)):
        if sampling.repetition_penalty != 1 and ids is not None:
            old = logits[i, ids]
            penalty = sampling.repetition_penalty
            logits[i, ids] = torch.where(old > 0, old / penalty, old * penalty)
        if first and sampling.banned_first:
            logits[i, list(sampling.banned_first)] = float("-inf")
    return logits


def draw_chunk(
    logits: Tensor, settings: Sequence[Sampling], temperatures: Sequence[float], uniforms: Tensor
) -> Tensor:
    """Draws a few rows, as `draw` says: logits float32 (n, V), already edited. A temperature of 0 takes the largest."""
    device = logits.device
    heat = torch.tensor(temperatures, device=device)
    peaks = logits.amax(-1, keepdim=True)
    scaled = (logits - peaks) / torch.where(heat > 0, heat, torch.ones_like(heat))[:, None]
    weights = scaled.exp_()
    if any(s.top_p < 1 or s.top_k or s.min_p for s in settings):
        weights = cut(weights, settings)
    drawn = torch.where(heat > 0, invert(weights, uniforms), argmax(logits))
    return torch.where(peaks[:, 0].isfinite(), drawn, BROKEN)


def cut(weights: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """Sets to zero the weights that top-k, top-p and min-p leave out, each applied to what the one before kept.

    Tokens exactly as probable as the last one kept are kept, too. weights: float32 (n, V), largest is 1.
    """
    floors = torch.zeros(len(settings), dtype=weights.dtype, device=weights.device)
    ranked = weights.topk(min(CANDIDATES, weights.shape[-1]), -1).values
    total = in_blocks(weights).sum(-1).double().sum(-1)
    for i, sampling in enumerate(settings):
        if sampling.top_p < 1 or sampling.top_k:
            floors[i] = _floor(ranked[i], weights[i], float(total[i]), sampling)
        floors[i] = max(float(floors[i]), sampling.min_p)
    return weights.masked_fill_(weights < floors[:, None], 0.0)


def _floor(ranked: Tensor, weights: Tensor, total: float, sampling: Sampling) -> Tensor:
    """The smallest weight that top-k and then top-p keep in one row; `ranked` its largest weights, in order."""
    if sampling.top_k > len(ranked) or (
        not sampling.top_k and float(ranked.sum(dtype=torch.float64)) < sampling.top_p * total
    ):
        ranked = weights.sort(descending=True).values
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
        total = float(ranked.sum(dtype=torch.float64))
    if sampling.top_p >= 1:
        return ranked[-1]
    enough = ranked.double().cumsum(0) >= sampling.top_p * total
    last = int(enough.int().argmax()) if bool(enough.any()) else len(ranked) - 1
    return ranked[last]


def likeliest(logits_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most probable tokens of one row with log p, the largest first, of the unedited logits."""
    logits_V = logits_V.float()
    top = logits_V.topk(min(count, len(logits_V)))
    logprobs = top.values - torch.logsumexp(logits_V, -1)
    return tuple(zip(top.indices.tolist(), logprobs.tolist(), strict=True))


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """log p(token) for each row, float32, of the unedited logits; without meaning for a BROKEN token."""
    picked = logits_NV.gather(-1, tokens_N.clamp(min=0)[:, None]).squeeze(-1).float()
    return picked - torch.logsumexp(logits_NV.float(), -1)
