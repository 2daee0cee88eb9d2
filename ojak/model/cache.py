"""The generator's key-value cache: a fixed number of slots, one row of text in each, and prefixes that rows share.

Every step of the generator is a flat list of tokens, each with a slot and a position. The decoder runs its layers over
the list as one sequence; the `attend` objects below give each token the context of its own slot:

- `DecodeAttend`: one token for each of the first N slots (views of the cache, nothing is copied);
- `PrefillAttend`: several tokens of a few slots, for prompts;
- `PrefixAttend`: one whole prefix, whose keys and values go into the shared pool.

A slot's own tokens count from 0 after its prefix. Token p lies at ring index p mod R, R being the whole capacity for
a global layer and the window plus one prefill tile for a local one: a tile's tokens never overwrite what its first
token must still see. Letters as in decoder.py; N slots or rows, L ring entries attended, P entries of the prefix pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ojak.model.attention import CausalAttention, softcap
from ojak.model.decoder import Decoder, DecoderConfig

LENGTH_STEP = 32  # attended lengths are rounded up to a multiple of this
PREFILL_TOKENS = 256  # tokens in one prefill tile, at most
TILE_STEP = 32  # a prefill tile is padded to a multiple of this
LEAST_COLUMNS = 4  # products of up to three rows take another kernel, which sums in another order


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """How much room: slots, tokens of its own for each slot, tokens in the pool of shared prefixes."""

    slots: int
    capacity: int
    prefix_capacity: int

    def ring(self, window: int | None) -> int:
        """Entries that a layer with this window keeps for a slot."""
        return self.capacity if window is None else min(self.capacity, window + PREFILL_TOKENS - 1)

    def bytes_per_slot(self, config: DecoderConfig, dtype: torch.dtype) -> int:
        """Key and value bytes of one slot over all layers."""
        entries = sum(self.ring(config.window(i)) for i in range(config.num_hidden_layers))
        return entries * entry_bytes(config, dtype)


def entry_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Key and value bytes of one token in one layer."""
    return 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize


class SlotCache:
    """Keys and values: for each layer (slots, K, L, E), L growing and shrinking with the longest row in flight.

    Attention reads a layer's tensors whole: the CPU's batched products would copy a slice of them at every call.
    """

    def __init__(
        self, config: DecoderConfig, shape: CacheShape, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.shape, self.device, self.dtype = config, shape, device, dtype
        self.windows = [config.window(i) for i in range(config.num_hidden_layers)]
        K, E = config.num_key_value_heads, config.head_dim
        sizes = [shape.slots * K * shape.ring(window) * E for window in self.windows]
        self._k_room = [torch.empty(size, dtype=dtype, device=device) for size in sizes]
        self._v_room = [torch.empty(size, dtype=dtype, device=device) for size in sizes]
        self.k = [room[:0].view(shape.slots, K, 0, E) for room in self._k_room]
        self.v = [room[:0].view(shape.slots, K, 0, E) for room in self._v_room]
        self.prefix_k = [torch.empty(K, 0, E, dtype=dtype, device=device) for _ in self.windows]
        self.prefix_v = [torch.empty(K, 0, E, dtype=dtype, device=device) for _ in self.windows]
        self.prefix_used = 0

    def fit(self, attended: int, *, shrink: bool = False, only: int | None = None) -> None:
        """Makes each layer (or one) long enough for rows of `attended` tokens; with `shrink`, also far shorter."""
        for layer in range(len(self.windows)) if only is None else (only,):
            wanted = min(self.shape.ring(self.windows[layer]), -(-attended // LENGTH_STEP) * LENGTH_STEP)
            have = self.k[layer].shape[2]
            if wanted > have or (shrink and wanted * 2 < have):
                self.k[layer] = _resized(self.k[layer], wanted, self._k_room[layer])
                self.v[layer] = _resized(self.v[layer], wanted, self._v_room[layer])

    def empty(self) -> None:
        """Gives all slots the length 0."""
        for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            self.k[layer], self.v[layer] = k[:, :, :0], v[:, :, :0]

    def move(self, source: int, target: int) -> None:
        """Copies a slot's entries to another slot."""
        for cache in (*self.k, *self.v):
            cache[target] = cache[source]

    def copy_out(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]] | None:
        """A slot's first `length` keys and values of each layer; None where a ring has lost some of them."""
        if any(length > cache.shape[2] for cache in self.k):
            return None
        return [
            (k[slot, :, :length].clone(), v[slot, :, :length].clone())
            for k, v in zip(self.k, self.v, strict=True)
        ]

    def copy_in(self, slot: int, entries: list[tuple[Tensor, Tensor]], length: int) -> None:
        """Puts the first `length` entries that `copy_out` gave into a slot."""
        self.fit(length)
        for k, v, (kept_k, kept_v) in zip(self.k, self.v, entries, strict=True):
            k[slot, :, :length] = kept_k[:, :length]
            v[slot, :, :length] = kept_v[:, :length]

    def write(self, layer: int, flat_NK: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> None:
        """Stores tokens at the places that `Places` gave for this layer."""
        E = k_NKE.shape[-1]
        self.k[layer].view(-1, E).index_copy_(0, flat_NK, k_NKE.reshape(-1, E))
        self.v[layer].view(-1, E).index_copy_(0, flat_NK, v_NKE.reshape(-1, E))

    def add_prefix(self, layer: int, k_KPE: Tensor, v_KPE: Tensor) -> None:
        """Appends a prefix's keys and values to a layer's pool, filled up with zeros to a multiple of LENGTH_STEP.

        So an entry's place among the terms of a vectorised sum does not depend on the pool's other prefixes.
        """
        fill = (0, 0, 0, -k_KPE.shape[1] % LENGTH_STEP)
        self.prefix_k[layer] = torch.cat([self.prefix_k[layer], F.pad(k_KPE, fill)], 1)
        self.prefix_v[layer] = torch.cat([self.prefix_v[layer], F.pad(v_KPE, fill)], 1)

    def keep_prefixes(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Drops all prefixes from the pool but those at `spans`; gives their new places, in the same order."""
        kept = [range(begin, begin + padded_length(end - begin)) for begin, end in spans]
        index = torch.tensor([i for entries in kept for i in entries], dtype=torch.int64, device=self.device)
        for pool in (self.prefix_k, self.prefix_v):
            pool[:] = [entries[:, index] for entries in pool]
        begins = [sum(map(len, kept[:n])) for n in range(len(kept))]
        self.prefix_used = len(index)
        return [(at, at + end - begin) for at, (begin, end) in zip(begins, spans, strict=True)]


def padded_length(tokens: int) -> int:
    """The entries that a prefix takes in the pool."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


def _resized(kept: Tensor, length: int, room: Tensor) -> Tensor:
    """The same entries at another length, in the same room. New ones are 0: what is masked is multiplied by 0."""
    slots, K, before, E = kept.shape
    both = min(length, before)
    entries = kept[:, :, :both].clone()
    new = room[: slots * K * length * E].view(slots, K, length, E)
    new[:, :, :both] = entries
    new[:, :, both:] = 0
    return new


class Places:
    """Where tokens (slot, index) lie in a layer's cache seen as (slots * K * L, E); worked out once for each L."""

    def __init__(self, cache: SlotCache, slots_N: Tensor, own_N: Tensor) -> None:
        self.cache, self.slots_N, self.own_N = cache, slots_N, own_N
        self.known: dict[int, Tensor] = {}

    def __getitem__(self, layer: int) -> Tensor:
        length = self.cache.k[layer].shape[2]
        if length not in self.known:
            K = self.cache.config.num_key_value_heads
            heads = torch.arange(K, device=self.cache.device)
            rows_NK = self.slots_N[:, None] * K + heads
            self.known[length] = (rows_NK * length + (self.own_N % length)[:, None]).flatten()
        return self.known[length]


class Masks:
    """Additive masks (N, T, P + L), in the cache's dtype, of a step for each window that occurs.

    own_NT: index of each query token in its slot (-1 for padding); spans_N2: begin and end of each row's prefix in the
    pool.
    """

    def __init__(self, cache: SlotCache, own_NT: Tensor, spans_N2: Tensor) -> None:
        self.by_window: dict[int | None, Tensor] = {}
        own_NT, spans_N2 = own_NT.int(), spans_N2.int()  # far into a text, half the memory to go through
        newest_N1 = own_NT.amax(-1, keepdim=True)
        for window in set(cache.windows):
            length = cache.k[cache.windows.index(window)].shape[2]
            shared = _prefix_visible(own_NT, spans_N2, cache.prefix_used, window)
            kept = _ring_visible(own_NT, newest_N1, length, window)
            visible = torch.cat([shared, kept], -1)
            mask = torch.zeros(visible.shape, dtype=cache.dtype, device=visible.device)
            self.by_window[window] = mask.masked_fill_(~visible, max(-1e30, torch.finfo(cache.dtype).min / 2))


def _prefix_visible(own_NT: Tensor, spans_N2: Tensor, total: int, window: int | None) -> Tensor:
    """Which entries of the prefix pool each token sees: its row's own prefix, as far as the window reaches."""
    begin, end = spans_N2[:, :1, None], spans_N2[:, 1:, None]
    entry = torch.arange(total, dtype=own_NT.dtype, device=own_NT.device)
    visible = (entry >= begin) & (entry < end) & (own_NT >= 0)[..., None]
    if window is None:
        return visible
    position_NT1 = own_NT[..., None] + (end - begin)
    return visible & (position_NT1 - (entry - begin) < window)


def _ring_visible(own_NT: Tensor, newest_N1: Tensor, length: int, window: int | None) -> Tensor:
    """Which ring entries each token sees. Entry i holds the newest token p with p mod length = i."""
    entry = torch.arange(length, dtype=own_NT.dtype, device=own_NT.device)
    held_N1L = (newest_N1 - (newest_N1 - entry) % length)[:, None]
    distance_NTL = own_NT[..., None] - held_N1L
    visible = (held_N1L >= 0) & (distance_NTL >= 0)
    return visible if window is None else visible & (distance_NTL < window)


def attend_rows(
    q_NKXE: Tensor,
    kv_NKLE: tuple[Tensor, Tensor],
    prefix_KPE: tuple[Tensor, Tensor],
    mask_N1XL: Tensor,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Attention of X queries a row and key-value head over the shared prefixes and the row's own ring.

    One softmax over both parts. The prefixes' part is one product for all rows, their keys being the same. `matmul` of
    four dimensions would copy all keys of a single row first; `bmm` of three gives the same bits without.
    """
    (k, v), (shared_k, shared_v) = kv_NKLE, prefix_KPE
    N, K, X, E = q_NKXE.shape
    P = shared_k.shape[1]
    scores = torch.bmm(q_NKXE.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(N, K, X, -1)
    if P:
        all_q = q_NKXE.transpose(0, 1).reshape(K, N * X, E)
        shared = (all_q @ shared_k.transpose(-1, -2)).view(K, N, X, P).transpose(0, 1)
        scores = torch.cat([shared, scores], -1)
    if cap is None:  # the softmax kernel works in float32 inside
        weights = scores.mul_(scale).add_(mask_N1XL).softmax(-1)
    else:
        weights = softcap(scores.float().mul_(scale), cap).add_(mask_N1XL).softmax(-1).type_as(v)
    out = torch.bmm(weights[..., P:].flatten(0, 1), v.flatten(0, 1)).view(N, K, X, E)
    if P:
        all_weights = weights[..., :P].transpose(0, 1).reshape(K, N * X, P)
        out = out + (all_weights @ shared_v).view(K, N, X, E).transpose(0, 1)
    return out


class DecodeAttend:
    """One new token for each of the first N slots; `own` says which token of its slot it is, -1 for an empty slot."""

    def __init__(self, cache: SlotCache, own_N: Tensor, spans_N2: Tensor) -> None:
        self.cache = cache
        slots_N = torch.arange(len(own_N), device=cache.device)
        self.places = Places(cache, slots_N, own_N.clamp(min=0))
        self.masks = Masks(cache, own_N[:, None], spans_N2)

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        cache, config = self.cache, self.cache.config
        window = cache.windows[layer]
        cache.write(layer, self.places[layer], k_BTKE[0], v_BTKE[0])
        _, N, H, E = q_BTHE.shape
        K = config.num_key_value_heads
        kv = cache.k[layer][:N], cache.v[layer][:N]
        mask = self.masks.by_window[window][:, None]
        q_NKGE = q_BTHE.view(N, K, H // K, E)
        cap = config.attn_logit_softcapping
        out = attend_rows(
            q_NKGE, kv, (cache.prefix_k[layer], cache.prefix_v[layer]), mask, config.attention_scale, cap
        )
        return out.reshape(1, N, H, E)


@dataclass(frozen=True)
class Piece:
    """A run of prompt tokens of one slot, in one prefill tile: token ids, slot, index of the first, prefix span."""

    ids: tuple[int, ...]
    slot: int
    start: int
    span: tuple[int, int]


class PrefillAttend:
    """Prompt tokens of a few slots, packed without gaps into a flat list padded at its end."""

    def __init__(self, cache: SlotCache, pieces: list[Piece]) -> None:
        self.cache, device = cache, cache.device
        self.longest = max(LEAST_COLUMNS, *(len(piece.ids) for piece in pieces))
        self.rows = len(pieces)
        self.row_N = torch.tensor([r for r, p in enumerate(pieces) for _ in p.ids], device=device)
        self.column_N = torch.tensor([c for p in pieces for c in range(len(p.ids))], device=device)
        own = torch.full((self.rows, self.longest), -1, device=device)
        starts = torch.tensor([piece.start for piece in pieces], device=device)
        own[self.row_N, self.column_N] = starts[self.row_N] + self.column_N
        self.slots_N = torch.tensor([piece.slot for piece in pieces], device=device)
        self.places = Places(cache, self.slots_N[self.row_N], own[self.row_N, self.column_N])
        spans = torch.tensor([piece.span for piece in pieces], device=device)
        self.masks = Masks(cache, own, spans)
        self.only = pieces[0].slot if len(pieces) == 1 else None
        self.repeated: dict[int | None, Tensor] = {}

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        cache, config = self.cache, self.cache.config
        window, used = cache.windows[layer], len(self.row_N)
        cache.write(layer, self.places[layer], k_BTKE[0, :used], v_BTKE[0, :used])
        _, _, H, E = q_BTHE.shape
        K, C = config.num_key_value_heads, self.longest
        padded = q_BTHE.new_zeros(self.rows, C, H, E)
        padded[self.row_N, self.column_N] = q_BTHE[0, :used]
        q_NKXE = (
            padded.view(self.rows, C, K, H // K, E).transpose(1, 2).reshape(self.rows, K, C * (H // K), E)
        )
        kv, mask = (
            (self._of_slots(cache.k[layer]), self._of_slots(cache.v[layer])),
            self._mask(window, H // K),
        )
        cap = config.attn_logit_softcapping
        out = attend_rows(
            q_NKXE, kv, (cache.prefix_k[layer], cache.prefix_v[layer]), mask, config.attention_scale, cap
        )
        out = out.view(self.rows, K, C, H // K, E).transpose(1, 2).reshape(self.rows, C, H, E)
        flat = q_BTHE.new_zeros(q_BTHE.shape)
        flat[0, :used] = out[self.row_N, self.column_N]
        return flat

    def _of_slots(self, kept_SKLE: Tensor) -> Tensor:
        """The entries of the tile's rows; of a single one no copy, which would be long for a long text."""
        return kept_SKLE[self.slots_N] if self.only is None else kept_SKLE[self.only : self.only + 1]

    def _mask(self, window: int | None, group: int) -> Tensor:
        """The mask of a kind of layer for each query head of a group, made once for all layers of the kind."""
        if window not in self.repeated:
            self.repeated[window] = self.masks.by_window[window].repeat_interleave(group, dim=1)[:, None]
        return self.repeated[window]


class PrefixAttend:
    """A whole prefix attending upon itself, its keys and values kept at the pool's end."""

    def __init__(self, cache: SlotCache, length: int) -> None:
        positions_BT = torch.arange(length, device=cache.device)[None]
        self.causal = CausalAttention(cache.config, positions_BT, plain=True)
        self.cache, self.begin, self.end = cache, cache.prefix_used, cache.prefix_used + length

    def __call__(self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
        self.cache.add_prefix(layer, k_BTKE[0].transpose(0, 1), v_BTKE[0].transpose(0, 1))
        return self.causal(layer, q_BTHE, k_BTKE, v_BTKE)


def feed_tile(decoder: Decoder, cache: SlotCache, pieces: list[Piece]) -> Tensor:
    """Takes the tokens of the pieces into the cache in one tile; their last hidden states, (tokens, D), in order."""
    ids = [token for piece in pieces for token in piece.ids]
    starts = [piece.start + piece.span[1] - piece.span[0] for piece in pieces]
    positions = [at + i for at, piece in zip(starts, pieces, strict=True) for i in range(len(piece.ids))]
    pad = [0] * (-len(ids) % TILE_STEP)
    device = decoder.model.embed_tokens.weight.device
    ids_BT, positions_BT = (torch.tensor([each + pad], device=device) for each in (ids, positions))
    return decoder.hidden(ids_BT, positions_BT, PrefillAttend(cache, pieces))[0, : len(ids)]
