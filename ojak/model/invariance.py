"""Whether a row gets the same bits whatever shares its batch: measured on this machine, with this model, at start-up.

Kernels may choose their order of summation by the shape they are given. A generator may use another batch size, a
longer masked cache or a prefill tile only where that leaves each row's result bit for bit as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ojak.errors import OjakError
from ojak.model.cache import (
    LEAST_COLUMNS,
    LENGTH_STEP,
    PREFILL_TOKENS,
    TILE_STEP,
    DecodeAttend,
    Piece,
    PrefillAttend,
    SlotCache,
)
from ojak.model.decoder import Attend, Decoder, Layer, rope_cos_sin
from ojak.model.sharing import PIECE, sharing_agrees

FILLED = 20  # cache entries that the probe's rows look back on
LONGER = 8 * LENGTH_STEP  # a masked cache of this length must give what a short one gives
EVIDENCE = (
    1 << 16
)  # numbers compared for each product and size: rounded to bf16, few show another order of sums


@dataclass(frozen=True)
class Invariance:
    """`sizes`: the smaller batch sizes that change nothing. `tiled`: neither do prefill tiles and longer caches.

    `shares`: the pool of shared prefixes may be used, since a row's bits do not depend on what else lies in it.
    `reusable`: a token's keys and values are the same whether it was fed as part of a prompt or drawn and fed alone.
    """

    sizes: frozenset[int] = frozenset()
    tiled: bool = False
    reusable: bool = False
    shares: bool = False


@torch.inference_mode()
def check_invariance(
    decoder: Decoder, cache: SlotCache, sizes: Sequence[int], halted: threading.Event | None = None
) -> Invariance:
    """Runs the first layer of each kind and the output layer on random rows, in each shape, and compares the bits.

    Takes seconds, on a busy machine many; once `halted` is set, it ends with an OjakError.
    """
    slots = cache.shape.slots
    smaller = [size for size in sizes if LEAST_COLUMNS <= size < slots]
    same, tiled, reusable, shares = set(smaller), True, True, True
    layers = {window: i for i, window in reversed(list(enumerate(cache.windows)))}.values()
    halted = halted or threading.Event()
    probes = [_Probe(decoder, cache, layer, halted) for layer in layers]
    for probe in probes:
        full = probe.decode(slots, FILLED + 1)
        same = {size for size in same if torch.equal(full[:size], probe.decode(size, FILLED + 1))}
        same = {size for size in same if probe.products_agree(size, slots)}
        tiled &= (
            torch.equal(full, probe.decode(slots, min(LONGER, cache.shape.capacity)))
            and probe.prefill_agrees()
        )
        reusable &= (
            tiled and probe.decode_agrees_with_prefill() and probe.products_agree(slots, PREFILL_TOKENS)
        )
        cache.fit(probe.filled + PIECE, only=probe.layer)
        shares &= sharing_agrees(cache, probe.layer, probe.filled, same if tiled else ())
    if tiled and same:  # once, not for each kind of layer: of a large vocabulary it costs the most
        same = probes[-1].logits_agree(same)
    cache.empty()
    return Invariance(frozenset(same if tiled else ()), tiled, reusable, shares)


class _Probe:
    def __init__(self, decoder: Decoder, cache: SlotCache, layer: int, halted: threading.Event) -> None:
        self.decoder, self.cache, self.layer, self.halted = decoder, cache, layer, halted
        random = torch.Generator().manual_seed(0)
        like = decoder.model.embed_tokens.weight
        rows = max(cache.shape.slots, PREFILL_TOKENS)
        self.x_ND = torch.randn(rows, like.shape[1], generator=random).to(like)
        self.filled = min(FILLED, cache.shape.capacity - 1)
        self.references: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        cache.fit(self.filled + 1, only=layer)
        for kept in (cache.k[layer], cache.v[layer]):
            size = kept[:, :, : self.filled].shape
            kept[:, :, : self.filled] = torch.randn(size, generator=random).to(like)

    def _go_on(self) -> None:
        if self.halted.is_set():
            raise OjakError("the start-up check was ended before its time")

    def _run(self, x_ND: Tensor, positions: Sequence[int], attend: Attend) -> Tensor:
        self._go_on()
        config = self.decoder.config
        positions_BT = torch.tensor([positions], device=x_ND.device)
        cos_sin = rope_cos_sin(config, config.rope_base(self.layer), positions_BT)
        x_BTD = self.decoder.model.layers[self.layer](x_ND[None], cos_sin, attend)
        return x_BTD[0]

    def products_agree(self, size: int, reference: int) -> bool:
        """The linear parts by themselves, many rows in batches of `size` against batches of `reference`.

        Behind a residual sum rounded to bf16, most bits that differ are not seen.
        """
        for place, (part, width) in enumerate(self._linear_parts()):
            self._go_on()
            x_ND, full = self._reference(place, part, width, reference)
            wanted = max(size, -(-EVIDENCE // full.shape[-1]))
            compared = wanted - wanted % size
            got = torch.cat([part(rows) for rows in x_ND[:compared].split(size)])
            if not torch.equal(full[:compared], got):
                return False
        return True

    def _reference(self, place: int, part: nn.Module, width: int, batch: int) -> tuple[Tensor, Tensor]:
        """Random rows and what a linear part makes of them in batches of one size; worked out once."""
        if (place, batch) not in self.references:
            out_width = part(self.x_ND.new_zeros(1, width)).shape[-1]
            rows = max(len(self.x_ND), -(-EVIDENCE // out_width))
            random = torch.Generator().manual_seed(1)
            x_ND = torch.randn(-(-rows // batch) * batch, width, generator=random).to(self.x_ND)
            full = torch.cat([part(some) for some in x_ND.split(batch)])
            self.references[place, batch] = x_ND, full
        return self.references[place, batch]

    def _linear_parts(self) -> list[tuple[nn.Module, int]]:
        """What multiplies by weights, and the width of its input. `decode` compares enough of a large output layer."""
        layer, config = self.decoder.model.layers[self.layer], self.decoder.config
        assert isinstance(layer, Layer)
        attention = layer.self_attn
        separate = [attention.q_proj, attention.k_proj, attention.v_proj]
        joined = separate if attention.fused_qkv is None else [attention.fused_qkv]
        small = [self.decoder.lm_head] if 2 * config.vocab_size < EVIDENCE else []
        parts = [(part, config.hidden_size) for part in (*joined, layer.mlp, *small)]
        return [*parts, (attention.o_proj, config.num_attention_heads * config.head_dim)]

    def decode(self, rows: int, attended: int) -> Tensor:
        self.cache.fit(attended, only=self.layer)
        own = torch.full((rows,), self.filled, device=self.x_ND.device)
        attend = DecodeAttend(self.cache, own, torch.zeros(rows, 2, dtype=torch.int64, device=own.device))
        return self._run(self.x_ND[:rows], [self.filled] * rows, attend)

    def logits_agree(self, sizes: Iterable[int]) -> set[int]:
        """The sizes at which the output layer gives each row what it gives in the whole batch."""
        x_ND = self.decoder.model.norm(self.x_ND[: self.cache.shape.slots])
        full = self.decoder.logits(x_ND)
        return {size for size in sizes if torch.equal(full[:size], self._logits(x_ND[:size]))}

    def _logits(self, x_ND: Tensor) -> Tensor:
        self._go_on()
        return self.decoder.logits(x_ND)

    def prefill_agrees(self) -> bool:
        """A piece of a prompt: in a tile of its own, in a small one, behind another row's tokens, and cut in two."""
        count = min(10, self.cache.shape.capacity - 1)
        if self.cache.shape.slots < 2 or count < 2:
            return True
        alone = self._piece_outputs([(0, 0, count)])[0]
        small = self._piece_outputs([(0, 0, count)], tile=TILE_STEP)[0]
        other = min(LENGTH_STEP * 3, self.cache.shape.capacity - 1, PREFILL_TOKENS - count)
        beside = self._piece_outputs([(1, 0, other), (0, 0, count)])[1]
        first = self._piece_outputs([(0, 0, count // 2)])[0]
        second = self._piece_outputs([(0, count // 2, count)])[0]
        others = beside, small, torch.cat([first, second])
        tiles = range(TILE_STEP, PREFILL_TOKENS, TILE_STEP)
        return all(torch.equal(alone, other) for other in others) and all(
            self.products_agree(tile, PREFILL_TOKENS) for tile in tiles
        )

    def decode_agrees_with_prefill(self) -> bool:
        """The same tokens of one slot as a prompt, and one by one."""
        count = min(6, self.cache.shape.capacity - 1)
        alone = self._piece_outputs([(0, 0, count)])[0]
        k, v = (kept[self.layer][0, :, :count].clone() for kept in (self.cache.k, self.cache.v))
        one_by_one = torch.stack([self._decode_one(position) for position in range(count)])
        written = self.cache.k[self.layer][0, :, :count], self.cache.v[self.layer][0, :, :count]
        return torch.equal(alone, one_by_one) and torch.equal(k, written[0]) and torch.equal(v, written[1])

    def _decode_one(self, position: int) -> Tensor:
        rows = self.cache.shape.slots
        own = torch.full((rows,), -1, device=self.x_ND.device)
        own[0] = position
        attend = DecodeAttend(self.cache, own, torch.zeros(rows, 2, dtype=torch.int64, device=own.device))
        x_ND = self.x_ND[:rows].clone()
        x_ND[0] = self.x_ND[position]
        return self._run(x_ND, [position] * rows, attend)[0]

    def _piece_outputs(self, runs: list[tuple[int, int, int]], tile: int = PREFILL_TOKENS) -> list[Tensor]:
        """Feeds tokens begin..end of each (slot, begin, end), whose values depend on begin..end and the slot alone."""
        self.cache.fit(max(end for _, _, end in runs), only=self.layer)
        pieces = [Piece((0,) * (end - begin), slot, begin, (0, 0)) for slot, begin, end in runs]
        values = [self.x_ND[begin + 7 * slot : end + 7 * slot] for slot, begin, end in runs]
        used = sum(len(value) for value in values)
        x_ND = torch.cat([*values, self.x_ND.new_zeros(tile - used, self.x_ND.shape[1])])
        positions = [p for _, begin, end in runs for p in range(begin, end)] + [0] * (tile - used)
        out = self._run(x_ND, positions, PrefillAttend(self.cache, pieces))
        return list(out[:used].split([len(value) for value in values]))
