"""Continuous batching: many requests, a fixed number of slots, one token for every slot at each step.

    while requests are left or slots are busy:
        refill    free slots take the next requests; a prefix that several share is computed once
        prefill   their prompts, all but the last token, in tiles of up to 256 tokens
        step      the decoder runs over one token of each slot; each row draws its next token by its own settings
        finish    rows that stopped are handed out, their slots are free at once

Slots lie in lanes. On a CPU each lane has a thread and steps at its own pace, so that no core waits for another one
at each of the thousand small operations of a step; on a GPU there is one lane. When requests run out, the batch steps
down a ladder of smaller sizes. A row's text depends on its prompt, settings and seed alone: its random numbers are a
function of (seed, token index), and sizes are used only where `invariance.py` has found that they leave a row's bits
as they are. Where even the prefill tile changes them, prompts go through the decode step token by token, at one size
and one length.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ojak.errors import InputRefused, OjakError
from ojak.model.cache import (
    PREFILL_TOKENS,
    CacheShape,
    DecodeAttend,
    Piece,
    SlotCache,
    feed_tile,
)
from ojak.model.decoder import Decoder
from ojak.model.invariance import Invariance, check_invariance
from ojak.model.kept import Kept, KeptContexts
from ojak.model.prefixes import PrefixPool
from ojak.model.request import Completion, Drawn, Request
from ojak.model.sampling import BROKEN, draw, likeliest, token_logprobs, uniform
from ojak.model.tokenizer import Tokenizer

FED_BY_STEPS = 8  # so few prompt tokens go through the decode steps: a tile of its own would cost more
LEAST_REUSED = 4  # tokens of kept context from which on copying it pays
KEPT_TOKENS = 64  # tokens of contexts kept for reuse, for each slot
MOST_AHEAD = 8  # rows that a lane may hold more than the emptiest one
FAR_FEWER = 2 * MOST_AHEAD  # from this difference on, rows in flight change their lane
LADDER = (1, 2, 4, 8, 16, 24, *range(32, 128, 16), *range(128, 256, 32), 256, 320, 384, 512)
NOT_FINITE = "after {} tokens the model gave no finite numbers to draw from"
EncodePrompt = Callable[[str], Sequence[int]]


@dataclass
class Slot:
    """One row in flight: what is still to be fed, what it has written."""

    request: Request
    pending: list[int]  # prompt tokens not yet fed; then the one token drawn last
    prefix: tuple[int, ...]  # what it shares with other rows, kept in the pool; empty if nothing
    prompt: list[int]
    own: int = 0  # tokens fed after the prefix
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tail: bytes = b""
    reused: int = 0  # tokens whose keys and values were kept from another request
    by_steps: bool = (
        False  # whether its prompt goes through the decode steps: never decided by what shares a tile
    )
    seen: Tensor | None = None  # distinct ids so far, kept where a repetition penalty needs them
    likeliest: tuple[tuple[int, float], ...] = ()  # before the token that is being drawn


@dataclass
class Carried:
    """A row on its way to another lane: its slot, the keys and values of its own tokens."""

    slot: Slot
    entries: list[tuple[Tensor, Tensor]]


class Generator:
    """Runs requests through a decoder in `lanes` of `shape.slots` each; see the module's docstring.

    Made once, `run` as often as wanted. `strict` uses one size and one length only, whatever the checks would find.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        encode: EncodePrompt,
        shape: CacheShape,
        *,
        lanes: int = 1,
        strict: bool = False,
    ) -> None:
        self.shape = shape
        share = max(1, torch.get_num_threads() // lanes)
        self.pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(share,))
        self.halted = threading.Event()
        kept = KeptContexts(KEPT_TOKENS * shape.slots * lanes)
        self.lanes = [Lane(decoder, tokenizer, encode, shape, kept) for _ in range(lanes)]
        self.found = Invariance() if strict else self._check(decoder)
        self.sizes = sorted({shape.slots, *self.found.sizes})
        for lane in self.lanes:
            lane.sizes, lane.found = self.sizes, self.found

    @property
    def steps(self) -> int:
        """Steps made so far, over all lanes."""
        return sum(lane.steps for lane in self.lanes)

    @property
    def drawn(self) -> int:
        """Tokens drawn so far, over all lanes, those of rows in flight too."""
        return sum(lane.drawn for lane in self.lanes)

    def close(self) -> None:
        """Ends the lanes' threads."""
        self.pool.shutdown()

    def halt(self) -> None:
        """Ends `run` from any thread, with rows in flight: as soon as the lanes are done with a tile or a step."""
        self.halted.set()

    def _check(self, decoder: Decoder) -> Invariance:
        """The start-up check, in a lane's thread; whoever is interrupted here need not wait for its end."""
        checking = self.pool.submit(check_invariance, decoder, self.lanes[0].cache, LADDER, self.halted)
        try:
            return checking.result()
        except BaseException:
            self.halt()
            self.close()
            raise

    def run(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        """Yields completions in the order in which they finish.

        `requests` may yield None: nothing is ready now, ask again once something has finished. Raises OjakError if it
        says so while nothing is in flight; then it may wait for a request, as that of a server does.
        """
        working: dict[Future[list[Completion]], Lane] = {}
        more, halted = True, threading.Event()
        self.halted = halted
        for lane in self.lanes:
            lane.halted = halted
        try:
            while not halted.is_set():
                idle = [lane for lane in self.lanes if lane not in working.values()]
                more = more and self._refill(idle, requests)
                self._level(idle)
                working |= {self.pool.submit(lane.advance): lane for lane in idle if lane.busy}
                if not working and more:
                    raise OjakError("the generator waits for requests that wait for the generator")
                if not working:
                    return
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    del working[future]
                    yield from future.result()
        finally:
            halted.set()  # a lane may have the prompts of all its slots before it, which nobody wants any more
            wait(working)
            for lane in self.lanes:
                lane.clear()

    def _refill(self, idle: list[Lane], requests: Iterator[Request | None]) -> bool:
        """Gives requests to the free slots of idle lanes, the emptiest first; False when no more will come."""
        while lane := self._emptiest(idle):
            try:
                request = next(requests)
            except StopIteration:
                return False
            if request is None:
                return True
            lane.admit(request)
        return True

    def _level(self, idle: list[Lane]) -> None:
        """Lets idle lanes give rows to a lane that has far fewer: when requests run out, no core is left alone."""
        for lane in (lane for lane in idle if not lane.waiting):
            emptiest = min(self.lanes, key=lambda other: other.busy)
            for _ in range((lane.busy - emptiest.busy) // 2 if lane.busy - emptiest.busy > FAR_FEWER else 0):
                if not (carried := lane.release()):
                    break
                emptiest.adopt(carried)

    def _emptiest(self, idle: list[Lane]) -> Lane | None:
        """The idle lane to fill next; None if all are full, or far ahead of lanes that are at work."""
        least = min(lane.busy for lane in self.lanes)
        open_ = [lane for lane in idle if lane.busy < min(self.shape.slots, least + MOST_AHEAD)]
        return min(open_, key=lambda lane: lane.busy, default=None)


class Lane:
    """Some slots, their cache, and what happens in them."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        encode: EncodePrompt,
        shape: CacheShape,
        kept: KeptContexts,
    ) -> None:
        parameter = decoder.model.embed_tokens.weight
        self.decoder, self.tokenizer, self.encode, self.shape = decoder, tokenizer, encode, shape
        self.device = parameter.device
        self.cache = SlotCache(decoder.config, shape, parameter.dtype, self.device)
        self.slots: list[Slot | None] = [None] * shape.slots
        self.waiting: list[Request] = []
        self.arriving: deque[Carried] = deque()
        self.prefixes = PrefixPool(decoder, self.cache)
        self.kept = kept  # shared by all lanes
        self.halted = threading.Event()  # that of the run under way
        self.sizes, self.found = [shape.slots], Invariance()
        self.steps = self.drawn = 0

    @property
    def busy(self) -> int:
        """Rows in flight and requests that will be at the next step."""
        return sum(slot is not None for slot in self.slots) + len(self.waiting) + len(self.arriving)

    def admit(self, request: Request) -> None:
        """Takes a request for a free slot; it enters at the next `advance`."""
        self.waiting.append(request)

    def release(self) -> Carried | None:
        """Takes the last row out of this idle lane; None if its context cannot be carried."""
        index, slot = next((i, slot) for i, slot in reversed(list(enumerate(self.slots))) if slot)
        entries = self.cache.copy_out(index, slot.own)
        if entries is None:
            return None
        self.slots[index] = None
        return Carried(slot, entries)

    def adopt(self, carried: Carried) -> None:
        """Takes over a row; it enters at the next `advance`. This lane may be at work meanwhile."""
        self.arriving.append(carried)

    def clear(self) -> None:
        """Drops all rows in flight."""
        self.slots = [None] * self.shape.slots
        self.waiting = []
        self.arriving.clear()

    @torch.inference_mode()
    def advance(self) -> list[Completion]:
        """Refills, prefills and makes one step. Returns what finished; nothing where it was halted."""
        free = (i for i, slot in enumerate(self.slots) if slot is None)
        while self.arriving and self._settle(next(free), self.arriving[0]):
            self.arriving.popleft()
        while self.waiting and not self.halted.is_set() and (slot := self._enter(self.waiting[0])):
            index = next(free)
            self.slots[index] = slot
            self._reuse(index, slot)
            del self.waiting[0]
        if self.found.tiled:
            self._prefill()
        return [] if self.halted.is_set() else self._step()

    def _settle(self, index: int, carried: Carried) -> bool:
        """Gives a row from another lane its slot; False while its prefix has no room here."""
        slot = carried.slot
        if not self.prefixes.add(slot.prefix, self._in_use()):
            return False
        self.slots[index] = slot
        self.cache.copy_in(index, carried.entries, slot.own)
        return True

    def _in_use(self) -> Iterator[tuple[int, ...]]:
        return (slot.prefix for slot in self.slots if slot)

    # -- refill -----------------------------------------------------------------------------------------------------

    def _enter(self, request: Request) -> Slot | None:
        """The request's row; None while its prefix has no room beside those of the rows in flight."""
        ids = self._ids(request.prompt)
        if not ids:
            raise InputRefused(
                "a prompt without a single token", fix="give at least one token, such as the BOS"
            )
        if max(ids) >= self.decoder.config.vocab_size:
            raise InputRefused(
                "a prompt holds a token that the model does not have",
                why=f"its id is {max(ids)}; the model has {self.decoder.config.vocab_size} tokens",
                fix="leave the special token out of the prompt, or use the tokenizer that was made for this model",
            )
        prefix = self._prefix_of(request, ids)
        if not self.prefixes.add(prefix, self._in_use()):
            return None
        if prefix in self.prefixes.unsound:  # its own rows alone are to fail of it: they go without
            prefix = ()
        own = len(ids) - len(prefix)
        if own + request.max_tokens > self.shape.capacity:
            raise InputRefused(
                f"a prompt of {len(ids)} tokens with {request.max_tokens} more does not fit the cache",
                why=f"a slot holds {self.shape.capacity} tokens",
            )
        keeps_seen = request.sampling.repetition_penalty != 1
        seen = torch.tensor(sorted(set(ids)), device=self.device) if keeps_seen else None
        return Slot(request, ids[len(prefix) :], prefix, ids, seen=seen, by_steps=own <= FED_BY_STEPS)

    def _ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        return list(self.encode(prompt) if isinstance(prompt, str) else prompt)

    def _prefix_of(self, request: Request, ids: list[int]) -> tuple[int, ...]:
        """The ids that the row takes from the pool: the request's shared prefix but its last token, if it may be."""
        if request.shared_prefix is None or not self.found.shares:
            return ()
        shared = self._ids(request.shared_prefix)
        prefix = tuple(shared[: len(shared) - 1])
        begins = common_length(shared, ids) >= len(prefix) and len(ids) > len(prefix)
        return prefix if begins and self.prefixes.can_hold(prefix) else ()

    def _reuse(self, index: int, slot: Slot) -> None:
        """Begins a row with what another request left behind, as far as it holds the same tokens."""
        kept = self.kept.take(slot.request.reuse) if slot.request.reuse is not None else None
        if kept is None or kept.prefix != slot.prefix:
            return
        count = min(common_length(kept.ids, slot.pending), len(slot.pending) - 1)
        if count >= LEAST_REUSED:
            self.cache.copy_in(index, kept.entries, count)
            del slot.pending[:count]
            slot.own = slot.reused = count
            slot.by_steps = len(slot.pending) <= FED_BY_STEPS

    def _keep(self, index: int, slot: Slot, ids: list[int]) -> None:
        """Leaves a finished row's context behind for a request that will name it; the oldest give way."""
        entries = self.cache.copy_out(index, slot.own)
        if entries is None:
            return
        self.kept.put(slot.request.keep, Kept(slot.prefix, ids[: slot.own], entries))

    # -- prefill ----------------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """Feeds the longer prompts of all slots up to their last token, in tiles of up to PREFILL_TOKENS."""
        while not self.halted.is_set() and (pieces := self._next_tile()):
            self._feed(pieces)

    def _next_tile(self) -> list[Piece]:
        """As many prompt tokens of waiting slots as a tile holds; advances the slots."""
        pieces: list[Piece] = []
        room = PREFILL_TOKENS
        for index, slot in enumerate(self.slots):
            if slot is None or slot.by_steps or len(slot.pending) < 2 or not room:
                continue
            count = min(room, len(slot.pending) - 1)
            pieces.append(
                Piece(tuple(slot.pending[:count]), index, slot.own, self.prefixes.spans[slot.prefix])
            )
            del slot.pending[:count]
            slot.own += count
            room -= count
        return pieces

    def _feed(self, pieces: list[Piece]) -> None:
        self.cache.fit(self._longest())
        feed_tile(self.decoder, self.cache, pieces)

    # -- step -------------------------------------------------------------------------------------------------------

    def _step(self) -> list[Completion]:
        """Feeds one token of each busy slot; draws the next one for those whose prompt is fed."""
        rows = self._choose_size()
        slots = self.slots[:rows]
        own = [slot.own if slot else -1 for slot in slots]
        ids = [slot.pending.pop(0) if slot else 0 for slot in slots]
        self.cache.fit(self._longest() + 1 if self.found.tiled else self.shape.capacity, shrink=True)
        spans = torch.tensor(
            [self.prefixes.spans[slot.prefix] if slot else (0, 0) for slot in slots], device=self.device
        )
        positions = [slot.own + len(slot.prefix) if slot else 0 for slot in slots]
        attend = DecodeAttend(self.cache, torch.tensor(own, device=self.device), spans)
        x_BTD = self.decoder.hidden(
            torch.tensor([ids], device=self.device), torch.tensor([positions], device=self.device), attend
        )
        for slot in slots:
            if slot:
                slot.own += 1
        self.steps += 1
        drawing = [i for i, slot in enumerate(slots) if slot and not slot.pending]
        if not drawing:
            return []
        logits_NV = self.decoder.logits(x_BTD)[0]
        return self._draw(logits_NV, drawing)

    def _choose_size(self) -> int:
        """The smallest size that holds all busy slots, which move down into it when the ladder is descended."""
        busy = [i for i, slot in enumerate(self.slots) if slot]
        size = next(size for size in self.sizes if size >= len(busy))
        free = [i for i in range(size) if self.slots[i] is None]
        for source in busy:
            slot = self.slots[source]
            if source >= size and slot:
                target = free.pop(0)
                self.cache.move(source, target)
                self.slots[target], self.slots[source] = slot, None
        return size

    def _longest(self) -> int:
        return max(slot.own for slot in self.slots if slot)

    def _draw(self, logits_NV: Tensor, drawing: list[int]) -> list[Completion]:
        slots = [slot for i in drawing if (slot := self.slots[i])]
        picked = logits_NV if len(drawing) == len(logits_NV) else logits_NV[drawing]
        seeds = torch.tensor([_signed(slot.request.seed) for slot in slots])
        counters = torch.tensor([len(slot.written) for slot in slots])
        first = [not slot.written for slot in slots]
        settings = [slot.request.sampling for slot in slots]
        drawn = draw(picked, settings, uniform(seeds, counters), first, [slot.seen for slot in slots])
        logprobs = token_logprobs(picked, drawn).tolist() if any(s.request.logprobs for s in slots) else []
        for n, slot in enumerate(slots):
            if slot.request.top_logprobs:
                slot.likeliest = likeliest(picked[n], slot.request.top_logprobs)
        finished = []
        for n, (index, token) in enumerate(zip(drawing, drawn.tolist(), strict=True)):
            slot = slots[n]
            if token == BROKEN:
                finished.append(self._complete(slot, "failed"))
                self._wipe(index)
                continue
            reason = self._take(slot, token, logprobs[n] if logprobs else 0.0)
            if reason:
                finished.append(self._complete(slot, reason))
                if slot.request.keep is not None and self.found.reusable:
                    self._keep(index, slot, slot.prompt[len(slot.prefix) :] + slot.written)
                self.slots[index] = None
        return finished

    # -- finish -----------------------------------------------------------------------------------------------------

    def _take(self, slot: Slot, token: int, logprob: float) -> str | None:
        """Adds a drawn token to its row; the finish reason if the row ends with it."""
        request = slot.request
        slot.written.append(token)
        self.drawn += 1
        slot.pending.append(token)
        if request.logprobs:
            slot.logprobs.append(logprob)
        if slot.seen is not None:
            slot.seen = torch.unique(torch.cat([slot.seen, slot.seen.new_tensor([token])]))
        if request.on_token and not request.on_token(Drawn(token, logprob, slot.likeliest)):
            return "cancelled"
        if token in request.stop_ids:
            return "stop"
        if request.stop_strings:
            slot.tail += self.tokenizer.token_bytes(token)
            if any(stop.encode() in slot.tail for stop in request.stop_strings):
                return "stop"
            slot.tail = slot.tail[-max(len(stop.encode()) for stop in request.stop_strings) :]
        return "length" if len(slot.written) >= request.max_tokens else None

    def _wipe(self, index: int) -> None:
        """Frees a broken row's slot. NaNs left in it would reach the next row: what is masked is multiplied by 0."""
        for kept in (*self.cache.k, *self.cache.v):
            kept[index] = 0
        self.slots[index] = None

    def _complete(self, slot: Slot, reason: str) -> Completion:
        request, ids = slot.request, slot.written
        ended_by_id = reason == "stop" and ids[-1] in request.stop_ids
        text = self.tokenizer.decode(ids[:-1] if ended_by_id else ids)
        cuts = [at for stop in request.stop_strings if (at := text.find(stop)) >= 0]
        return Completion(
            request=request,
            text=text[: min(cuts)] if cuts else text,
            token_ids=tuple(ids),
            finish_reason=reason,
            prompt_tokens=len(slot.prompt),
            logprobs=tuple(slot.logprobs) if request.logprobs else None,
            error=NOT_FINITE.format(len(ids)) if reason == "failed" else None,
        )


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids the two have in common from the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _signed(seed: int) -> int:
    """A seed of up to 64 bits as a signed number, for an int64 tensor."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed
