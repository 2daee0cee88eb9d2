"""How probable given texts are: the decoder reads many at once and writes nothing.

Texts that stand one after another and have the same prompt are one tree: the prompt is read once, each continuation is
a branch that sees the prompt and itself (so all labels of a question cost about as much as one). What all prompts of a
window begin with is read once, too, and its keys and values are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from ojak.model.attention import CausalAttention, fused_attention, plain_attention
from ojak.model.decoder import Decoder, DecoderConfig

WINDOW = 512  # texts looked at together, so that those of like length share a batch
BATCH_TOKENS = 4096  # tokens of a batch, padding included
LOGIT_ROWS = 256  # positions whose logits are in memory at once
BRANCH_TOKENS = 64  # tokens that the branches of one tree take together; longer ones are trees of their own
LEAST_SHARED = 16  # tokens from which on sharing a prefix pays
PADDING = -1

Pair = tuple[Sequence[int], Sequence[int]]
Value = TypeVar("Value")
LookUp = Callable[[Tensor, Sequence[int], Sequence[int]], list[Value]]


@dataclass(slots=True)
class Tree:
    """One prompt with its continuations; `places`: where these stand in the window."""

    prompt: Sequence[int]
    branches: list[Sequence[int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def branch_tokens(self) -> int:
        """Tokens to be read after the prompt: the last one of a continuation is only looked up."""
        return sum(max(0, len(branch) - 1) for branch in self.branches)

    @property
    def length(self) -> int:
        return len(self.prompt) + self.branch_tokens


@dataclass(frozen=True, slots=True)
class Prefix:
    """What all prompts of a window begin with: its length, and for each layer keys and values (1, P, K, E)."""

    length: int = 0
    layers: tuple[tuple[Tensor, Tensor], ...] = ()


def score(decoder: Decoder, pairs: Iterable[Pair]) -> Iterator[tuple[float, ...]]:
    """The natural log-probability of each token of each continuation, given its prompt and the tokens before it.

    pairs: (prompt ids, continuation ids); a prompt has at least one token. In the order of `pairs`, read as needed.
    """
    return _scored(decoder, pairs, _look_up)


def score_greedy(decoder: Decoder, pairs: Iterable[Pair]) -> Iterator[tuple[tuple[float, bool], ...]]:
    """`score`, and of each token whether it is the likeliest: greedy decoding would have written it, too."""
    return _scored(decoder, pairs, _look_up_greedy)


def _scored(decoder: Decoder, pairs: Iterable[Pair], look_up: LookUp[Value]) -> Iterator[tuple[Value, ...]]:
    stream = iter(pairs)
    while window := list(islice(stream, WINDOW)):
        trees = list(_trees(window))
        prefix = _read_prefix(decoder, trees)
        found: list[tuple[Value, ...]] = [()] * len(window)
        for batch in _batches(trees, prefix.length):
            for tree, scored in zip(batch, _score_batch(decoder, batch, prefix, look_up), strict=True):
                for place, values in zip(tree.places, scored, strict=True):
                    found[place] = values
        yield from found


def _trees(window: Sequence[Pair]) -> Iterator[Tree]:
    """Neighbours with equal prompts together, as long as their branches are short."""
    tree: Tree | None = None
    for place, (prompt, continuation) in enumerate(window):
        room = tree is not None and tree.branch_tokens + len(continuation) - 1 <= BRANCH_TOKENS
        if tree is None or not room or (tree.prompt is not prompt and list(tree.prompt) != list(prompt)):
            if tree is not None:
                yield tree
            tree = Tree(prompt)
        tree.branches.append(continuation)
        tree.places.append(place)
    if tree is not None:
        yield tree


def _batches(trees: Sequence[Tree], shared: int) -> Iterator[list[Tree]]:
    """Trees that go together: alike in length, as many as BATCH_TOKENS allow."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=lambda tree: tree.length):
        if batch and (len(batch) + 1) * (tree.length - shared) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def _common_length(trees: Sequence[Tree]) -> int:
    """Tokens that all prompts begin with, short of the last one of each: its state is needed."""
    first = min((tree.prompt for tree in trees), key=len)
    length = len(first) - 1
    for tree in trees:
        same = (i for i in range(length) if first[i] != tree.prompt[i])
        length = next(same, length)
    return length


@torch.inference_mode()
def _read_prefix(decoder: Decoder, trees: Sequence[Tree]) -> Prefix:
    length = _common_length(trees) if len(trees) > 1 else 0
    if length < LEAST_SHARED:
        return Prefix()
    device = decoder.model.embed_tokens.weight.device
    ids_BT = torch.tensor([list(trees[0].prompt[:length])], device=device)
    positions_BT = torch.arange(length, device=device)[None]
    keeping = _Keeping(CausalAttention(decoder.config, positions_BT))
    decoder.hidden(ids_BT, positions_BT, keeping)
    return Prefix(length, tuple(keeping.layers))


class _Keeping:
    """Attention that keeps the keys and values of each layer as they pass."""

    def __init__(self, inner: CausalAttention) -> None:
        self.inner = inner
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        self.layers.append((k_BTKE, v_BTKE))
        return self.inner(layer, q_BTHE, k_BTKE, v_BTKE)


class TreeAttention:
    """Each token sees the shared prefix, the prompt before it and its own branch, as far as the layer's window reaches.

    branch_BT: 0 for the prompt, from 1 on for branches, PADDING for what fills up a row.
    """

    def __init__(
        self, config: DecoderConfig, positions_BT: Tensor, branch_BT: Tensor, prefix: Prefix
    ) -> None:
        self.config, self.prefix = config, prefix
        self.plain = config.attn_logit_softcapping is not None
        shared_BP = torch.arange(prefix.length, device=positions_BT.device).expand(len(positions_BT), -1)
        keys_BS = torch.cat([shared_BP, positions_BT], 1)
        key_branch_BS = torch.cat([torch.zeros_like(shared_BP), branch_BT], 1)
        distance_BTS = positions_BT[:, :, None] - keys_BS[:, None]
        own_BTS = (key_branch_BS[:, None] == 0) | (key_branch_BS[:, None] == branch_BT[:, :, None])
        visible_BTS = (distance_BTS >= 0) & own_BTS
        self.masks = {
            window: visible_BTS if window is None else visible_BTS & (distance_BTS < window)
            for window in {config.window(i) for i in range(config.num_hidden_layers)}
        }

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        config, mask = self.config, self.masks[self.config.window(layer)]
        if self.prefix.length:
            shared_k, shared_v = self.prefix.layers[layer]
            k_BTKE = torch.cat([shared_k.expand(len(k_BTKE), -1, -1, -1), k_BTKE], 1)
            v_BTKE = torch.cat([shared_v.expand(len(v_BTKE), -1, -1, -1), v_BTKE], 1)
        if self.plain:
            cap = config.attn_logit_softcapping
            return plain_attention(q_BTHE, k_BTKE, v_BTKE, mask, config.attention_scale, cap)
        return fused_attention(q_BTHE, k_BTKE, v_BTKE, mask, config.attention_scale)


@dataclass(slots=True)
class Layout:
    """A tree as one row of the batch: what is read, and from where each token of each branch is predicted."""

    ids: list[int]
    positions: list[int]
    branch: list[int]
    sources: list[list[int]]


def _layout(tree: Tree, shared: int) -> Layout:
    end = len(tree.prompt)
    own = list(tree.prompt[shared:])
    layout = Layout(own, list(range(shared, end)), [0] * len(own), [])
    last = len(own) - 1
    for number, branch in enumerate(tree.branches, 1):
        begin, fed = len(layout.ids), branch[:-1]
        layout.ids += fed
        layout.positions += range(end, end + len(fed))
        layout.branch += [number] * len(fed)
        layout.sources.append([last, *range(begin, begin + len(fed))][: len(branch)])
    return layout


@torch.inference_mode()
def _score_batch(
    decoder: Decoder, trees: Sequence[Tree], prefix: Prefix, look_up: LookUp[Value]
) -> list[list[tuple[Value, ...]]]:
    device = decoder.model.embed_tokens.weight.device
    layouts = [_layout(tree, prefix.length) for tree in trees]
    ids_BT = _padded([layout.ids for layout in layouts], 0, device)
    positions_BT = _padded([layout.positions for layout in layouts], 0, device)
    branch_BT = _padded([layout.branch for layout in layouts], PADDING, device)
    attend = TreeAttention(decoder.config, positions_BT, branch_BT, prefix)
    x_BTD = decoder.hidden(ids_BT, positions_BT, attend)
    places = [(row, at) for row, layout in enumerate(layouts) for at in _used(layout)]
    index = {place: i for i, place in enumerate(places)}
    rows, columns = [row for row, _ in places], [at for _, at in places]
    wanted = [
        (index[row, at], token)
        for row, (layout, tree) in enumerate(zip(layouts, trees, strict=True))
        for source, branch in zip(layout.sources, tree.branches, strict=True)
        for at, token in zip(source, branch, strict=True)
    ]
    values = iter(_values(decoder, x_BTD[rows, columns], wanted, look_up))
    return [[tuple(islice(values, len(branch))) for branch in tree.branches] for tree in trees]


def _used(layout: Layout) -> list[int]:
    """Places of a row from which a token is predicted, each once."""
    return sorted({at for source in layout.sources for at in source})


def _padded(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=device)


def _values(
    decoder: Decoder, x_ND: Tensor, wanted: Sequence[tuple[int, int]], look_up: LookUp[Value]
) -> list[Value]:
    """What `look_up` finds for each wanted (row of x, token), in their order. A row's logits are worked out once."""
    found: dict[int, Value] = {}
    order = sorted(range(len(wanted)), key=lambda i: wanted[i][0])
    at = 0
    for begin in range(0, len(x_ND), LOGIT_ROWS):
        logits_NV = decoder.logits(x_ND[None, begin : begin + LOGIT_ROWS])[0]
        end = at
        while end < len(order) and wanted[order[end]][0] < begin + len(logits_NV):
            end += 1
        chosen = [wanted[i] for i in order[at:end]]
        values = look_up(logits_NV, [row - begin for row, _ in chosen], [token for _, token in chosen])
        found.update(zip(order[at:end], values, strict=True))
        at = end
    return [found[i] for i in range(len(wanted))]


def _look_up(logits_NV: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """log p of each (row, token); the sum over the vocabulary once for each row."""
    picked = logits_NV[list(rows), list(tokens)].float()
    totals = torch.logsumexp(logits_NV.float(), -1)
    return (picked - totals[list(rows)]).tolist()


def _look_up_greedy(
    logits_NV: Tensor, rows: Sequence[int], tokens: Sequence[int]
) -> list[tuple[float, bool]]:
    """(log p, whether no other token is likelier) of each (row, token)."""
    likeliest = logits_NV.argmax(-1)[list(rows)].tolist()
    logprobs = _look_up(logits_NV, rows, tokens)
    return [(value, best == token) for value, best, token in zip(logprobs, likeliest, tokens, strict=True)]
