"""Answers sampled from the weights that are being trained, by the native engine, in the midst of a run.

    sampler = LiveSampler(material.model, max_tokens=64, longest_prompt=400, seed=config.seed)
    answers = sampler.sample(prompts_of(batch), epoch=batch.epoch, samples=2)
    learnt = answer_batch(answers)            # what was drawn is what is supervised

The decoder that generates is another one over the same numbers: its weights are those of the trained decoder, and what
it keeps beside them in a form of its own (products joined and laid out, adapters merged) is made anew before each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ojak.engines.native import NativeEngine, row_seed
from ojak.errors import Diverged, UsageError
from ojak.model.decoder import Decoder
from ojak.model.fuse import fuse, is_fused
from ojak.model.lora_layer import lora_layers
from ojak.model.request import Completion, Request, Sampling
from ojak.train.batches import IGNORED, packed_batch
from ojak.train.live_mix import Mix, mixed_answers

if TYPE_CHECKING:
    from ojak.model.load import Model
    from ojak.train.batches import Batch
    from ojak.train.processes import Processes

MOST_SLOTS = (
    64  # rows in flight; from twice as many on, threads would share them by the clock, a resume could differ
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a row, up to the first token that is learnt; `row` is the row's number."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was drawn after a prompt. `ids` ends with the stop token where `stopped`; `text` leaves that out.

    own_logprobs, teacher_logprobs: with a `Mix`, of each token the natural log-probability under the trained model and
    under the teacher, both at the temperature drawn with; empty without.
    """

    prompt: Prompt
    sample: int
    ids: tuple[int, ...]
    text: str
    stopped: bool
    own_logprobs: tuple[float, ...] = ()
    teacher_logprobs: tuple[float, ...] = ()


class LiveSampler:
    """Draws from `model.decoder` as it is at each call, its adapter (if it has one) merged.

    max_tokens: of an answer, its stop token counted. longest_prompt: the most tokens of any prompt of the run, and
    slots: the most answers in flight; how the cache is cut must not depend on what was asked before. temperature: 0 is
    greedy. stop_ids: the model's own by default. mix: draw from the teacher, too.

    Raises UsageError where prompt and answer exceed the model's length, or weights are split among processes.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_tokens: int,
        longest_prompt: int,
        seed: int,
        slots: int = MOST_SLOTS,
        temperature: float = 1.0,
        stop_ids: Sequence[int] | None = None,
        mix: Mix | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.live, self.seed, self.mix = model.decoder, seed, mix
        self.sampling, self.max_tokens = Sampling(temperature=temperature), max_tokens
        self.stop_ids = tuple(model.stop_ids if stop_ids is None else stop_ids)
        self.longest = longest_prompt + max_tokens
        _check(model, self.longest, processes)
        self.shadow = shadow_of(model.decoder)
        self.slots = min(slots, MOST_SLOTS)
        self.engine = NativeEngine(replace(model, decoder=self.shadow), slots=self.slots)
        self.tokenizer = model.tokenizer

    def sample(self, prompts: Sequence[Prompt], *, epoch: int, samples: int = 1) -> list[Answer]:
        """`samples` answers to each prompt, those of a prompt side by side, in the order of the prompts.

        The draws of an answer are a function of (seed, epoch, row, its number among the samples) alone. Raises Diverged
        where the model gives no finite numbers to draw from.
        """
        if not prompts:
            return []
        follow(self.shadow, self.live)
        requests = [
            Request(
                prompt=prompt.ids, max_tokens=self.max_tokens, sampling=self.sampling, stop_ids=self.stop_ids,
                seed=row_seed("answer", self.seed, epoch, prompt.row, number), tag=(place, number),
            )
            for place, prompt in enumerate(prompts) for number in range(samples)
        ]  # fmt: skip
        return self._mixed(prompts, requests) if self.mix else self._plain(prompts, requests)

    def _plain(self, prompts: Sequence[Prompt], requests: list[Request]) -> list[Answer]:
        found: dict[tuple[int, int], Completion] = {}
        for done in self.engine.generate(iter(requests), longest=self.longest):
            if done.error:
                raise Diverged(
                    "no answer can be drawn from the model as it is now", why=done.error, fix="lower --lr"
                )
            found[done.request.tag] = done
        return [
            Answer(prompts[tag[0]], tag[1], found[tag].token_ids, found[tag].text, found[tag].finish_reason == "stop")
            for tag in (request.tag for request in requests)
        ]  # fmt: skip

    def _mixed(self, prompts: Sequence[Prompt], requests: list[Request]) -> list[Answer]:
        assert self.mix is not None
        answers: list[Answer] = []
        for begin in range(0, len(requests), self.slots):
            asked = requests[begin : begin + self.slots]
            drawn = mixed_answers(self.shadow, self.mix, asked, capacity=self.longest)
            for request, row in zip(asked, drawn, strict=True):
                place, number = request.tag
                text = self.tokenizer.decode(list(row.ids[:-1] if row.stopped else row.ids))
                logprobs = tuple(row.own), tuple(row.teacher)
                answers.append(Answer(prompts[place], number, tuple(row.ids), text, row.stopped, *logprobs))
        return answers


def _check(model: Model, longest: int, processes: Processes | None) -> None:
    if processes is not None and processes.size > 1:
        raise UsageError(
            "answers are sampled in one process",
            why="the weights are split among several, and answers end at different times",
            fix="start it without torchrun",
        )
    most = model.config.max_position_embeddings
    if longest > most:
        raise UsageError(
            f"a prompt and its answer may take {longest} tokens together",
            why=f"{model.name} was made for texts of up to {most}",
            fix="lower --max-len or the most tokens of an answer",
        )


# The decoder that generates


def shadow_of(live: Decoder) -> Decoder:
    """A decoder for generation: the weights of `live` in the same memory, those with an adapter in its own."""
    with torch.device("meta"):
        made = Decoder(live.config)
    adapted = {f"{name}.weight" for name, _ in lora_layers(live)}
    for name, _ in list(made.named_parameters()):
        owner, _, key = name.rpartition(".")
        weight = live.get_parameter(name).detach()
        weight = weight.clone() if name in adapted else weight
        setattr(made.get_submodule(owner), key, torch.nn.Parameter(weight, requires_grad=False))
    if live.config.tie_word_embeddings:
        made.lm_head.weight = made.model.embed_tokens.weight
    return made.eval()


@torch.no_grad()
def follow(shadow: Decoder, live: Decoder) -> None:
    """Makes anew what the shadow keeps in a form of its own: merged adapters, weights ready for generation."""
    for name, layer in lora_layers(live):
        shadow.get_parameter(f"{name}.weight").copy_(layer.merged())
    if is_fused(shadow):
        fuse(shadow, again=True)


# Batches


def prompts_of(batch: Batch) -> list[Prompt]:
    """The prompts of a batch's rows, in their order: all that stands before the first learnt token.

    A row without learnt tokens gives none (the empty batch of a process that has no rows left is of this kind).
    """
    found: list[Prompt] = []
    begin = 0
    for place, length in enumerate(batch.lengths):
        row = 0 if batch.packed else place
        ids, targets = (x[row, begin : begin + length] for x in (batch.ids_BT, batch.targets_BT))
        learnt = (targets != IGNORED).nonzero()
        if len(learnt):
            found.append(Prompt(batch.rows[place], tuple(ids[: int(learnt[0]) + 1].tolist())))
        begin += length if batch.packed else 0
    return found


def answer_batch(answers: Sequence[Answer], *, epoch: int = 0) -> Batch:
    """Prompts and answers as a packed batch, document i answer i, whose targets are the tokens of the answers.

    Supervised tokens stand in the order of the answers, each answer's in its own.
    """
    documents = []
    for answer in answers:
        ids = np.array([*answer.prompt.ids, *answer.ids], np.uint32)
        documents.append((ids, np.arange(len(ids)) >= len(answer.prompt.ids)))
    rows = tuple(answer.prompt.row for answer in answers)
    return replace(packed_batch(documents), rows=rows, epoch=epoch)
