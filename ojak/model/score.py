"""How probable given texts are: the decoder reads many at once and writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ojak.model.decoder import Decoder
from ojak.model.sampling import token_logprobs

WINDOW = 256  # texts looked at together, so that those of like length share a batch
BATCH_TOKENS = 4096  # tokens of a batch, padding included
LOGIT_ROWS = 256  # positions whose logits are in memory at once

Pair = tuple[Sequence[int], Sequence[int]]


def score(decoder: Decoder, pairs: Iterable[Pair]) -> Iterator[tuple[float, ...]]:
    """The natural log-probability of each token of each continuation, given its prompt and the tokens before it.

    pairs: (prompt ids, continuation ids); a prompt has at least one token. In the order of `pairs`, read as needed.
    """
    stream = iter(pairs)
    while window := list(islice(stream, WINDOW)):
        found: dict[int, tuple[float, ...]] = {}
        for batch in _batches(window):
            scored = _score_batch(decoder, [window[i] for i in batch])
            found |= dict(zip(batch, scored, strict=True))
        yield from (found[i] for i in range(len(window)))


def _batches(window: Sequence[Pair]) -> Iterator[list[int]]:
    """Places of pairs that go together: alike in length, as many as BATCH_TOKENS allow."""
    order = sorted(range(len(window)), key=lambda i: len(window[i][0]) + len(window[i][1]))
    batch: list[int] = []
    for place in order:
        length = len(window[place][0]) + len(window[place][1])
        if batch and (len(batch) + 1) * length > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.inference_mode()
def _score_batch(decoder: Decoder, pairs: Sequence[Pair]) -> list[tuple[float, ...]]:
    device = decoder.model.embed_tokens.weight.device
    texts = [[*prompt, *continuation] for prompt, continuation in pairs]
    width = max(len(text) for text in texts)
    ids_BT = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=device)
    x_BTD = decoder.hidden(ids_BT)  # causal: what pads a row's end is seen by nothing before it
    spans = [(len(prompt) - 1, len(text) - 1) for (prompt, _), text in zip(pairs, texts, strict=True)]
    x_ND = torch.cat([x_BTD[row, begin:end] for row, (begin, end) in enumerate(spans)])
    targets_N = torch.cat([ids_BT[row, begin + 1 : end + 1] for row, (begin, end) in enumerate(spans)])
    logprobs = _logprobs(decoder, x_ND, targets_N).tolist()
    ends = [sum(end - begin for begin, end in spans[: row + 1]) for row in range(len(spans))]
    return [
        tuple(logprobs[end - (last - begin) : end]) for end, (begin, last) in zip(ends, spans, strict=True)
    ]


def _logprobs(decoder: Decoder, x_ND: Tensor, targets_N: Tensor) -> Tensor:
    parts = [
        token_logprobs(decoder.logits(x[None])[0], targets)
        for x, targets in zip(x_ND.split(LOGIT_ROWS), targets_N.split(LOGIT_ROWS), strict=True)
    ]
    return torch.cat(parts)
