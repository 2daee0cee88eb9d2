"""Answers sampled from live weights: what a saved copy would write, whatever was learnt in between; mixed draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import batch_maker
import numpy as np
import pytest
import tiny
import torch

from ojak.engines.native import NativeEngine, row_seed
from ojak.errors import UsageError
from ojak.model.load import Model, load_model
from ojak.model.lora import LoraConfig, apply_lora, save_adapter
from ojak.model.request import Request, Sampling
from ojak.train.batches import IGNORED, packed_batch, padded_batch
from ojak.train.documents import documents
from ojak.train.live import Answer, LiveSampler, Prompt, answer_batch, prompts_of
from ojak.train.live_mix import Mix
from ojak.train.processes import Processes

PROMPTS = [Prompt(row, tuple(range(60 + row, 60 + row + length))) for row, length in enumerate((3, 30, 9, 1))]
LENGTH = 12


def sampler(model: Model, **changes: Any) -> LiveSampler:
    settings: dict[str, Any] = {"max_tokens": LENGTH, "longest_prompt": 40, "seed": 7, "temperature": 0.9}
    return LiveSampler(model, **(settings | changes))


def drawn_by_engine(model: Model, prompts: list[Prompt], epoch: int, samples: int) -> list[tuple[int, ...]]:
    """What the engine writes for the same requests."""
    requests = [
        Request(
            prompt=prompt.ids, max_tokens=LENGTH, sampling=Sampling(temperature=0.9), stop_ids=model.stop_ids,
            seed=row_seed("answer", 7, epoch, prompt.row, n), tag=(i, n),
        )
        for i, prompt in enumerate(prompts) for n in range(samples)
    ]  # fmt: skip
    found = {d.request.tag: d.token_ids for d in NativeEngine(model).generate(iter(requests), longest=60)}
    return [found[request.tag] for request in requests]


def learn(model: Model, seed: int) -> None:
    """Changes all weights that are learnt, in place, as an optimizer does."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=random).to(weight) * 0.05)


@pytest.mark.parametrize(
    ("family", "dtype"), [("qwen2", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.float32)]
)
def test_answers_are_those_of_a_saved_copy(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = tiny.model(family, dtype=dtype)
    model.decoder.requires_grad_(True)
    live, before = sampler(model), []
    for epoch in range(2):
        answers = live.sample(PROMPTS, epoch=epoch, samples=2)
        copy = load_model(model.save(tmp_path / f"copy-{epoch}"), dtype=dtype)
        assert [a.ids for a in answers] == drawn_by_engine(copy, PROMPTS, epoch, 2)
        assert [(a.prompt.row, a.sample) for a in answers] == [(p.row, n) for p in PROMPTS for n in (0, 1)]
        assert all(a.stopped == (a.ids[-1] == tiny.EOS) for a in answers)
        before = live.sample(PROMPTS, epoch=0, samples=2)
        learn(model, epoch)
    after = live.sample(PROMPTS, epoch=0, samples=2)
    assert [a.ids for a in after] != [a.ids for a in before], "what was learnt is followed"
    some = live.sample(PROMPTS[2:], epoch=0, samples=1)
    assert [a.ids for a in some] == [after[4].ids, after[6].ids], "a row's draws are its own"


def test_an_adapter_is_followed(tmp_path: Path) -> None:
    base = tiny.model("llama").save(tmp_path / "base")
    config = LoraConfig(r=2)
    model = load_model(base, dtype="float32")
    apply_lora(model.decoder, config, seed=0)
    live = sampler(model)
    live.sample(PROMPTS, epoch=0)
    learn(model, 1)
    save_adapter(tmp_path / "adapter", model, config, base=str(base))
    merged = load_model(tmp_path / "adapter", dtype="float32")
    found = [a.ids for a in live.sample(PROMPTS, epoch=3)]
    assert found == drawn_by_engine(merged, PROMPTS, 3, 1)
    assert found != drawn_by_engine(load_model(base, dtype="float32"), PROMPTS, 3, 1)


def test_a_mix_of_nothing_and_of_all() -> None:
    model, teacher = tiny.model("llama"), tiny.model("llama", seed=5)
    own = [a.ids for a in sampler(model).sample(PROMPTS, epoch=0, samples=3)]
    theirs = [a.ids for a in sampler(teacher).sample(PROMPTS, epoch=0, samples=3)]
    for alpha, expected in ((0.0, own), (1.0, theirs)):
        mixed = sampler(model, mix=Mix(teacher.decoder, alpha)).sample(PROMPTS, epoch=0, samples=3)
        assert [a.ids for a in mixed] == expected
    assert own != theirs


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the second has windows and caps
def test_both_probabilities_of_each_token_are_told(family: str) -> None:
    model, teacher = tiny.model(family), tiny.model("qwen3", seed=5)
    answers = sampler(model, mix=Mix(teacher.decoder, 0.5)).sample(PROMPTS, epoch=0, samples=2)
    for answer in answers:
        ids = torch.tensor([[*answer.prompt.ids, *answer.ids]])
        for decoder, told in (
            (model.decoder, answer.own_logprobs),
            (teacher.decoder, answer.teacher_logprobs),
        ):
            logprobs = (decoder(ids)[0, :-1] / 0.9).log_softmax(-1)[-len(answer.ids) :]
            expected = logprobs.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
            assert told == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_mix_draws_in_the_shares_it_says() -> None:
    model, teacher = (tiny.model("llama", seed=seed, vocab_size=260, scale=0.2) for seed in (0, 1))
    live = sampler(model, max_tokens=1, mix=Mix(teacher.decoder, 0.25), stop_ids=(), temperature=1.0)
    count = 4000
    answers = live.sample([Prompt(0, (65, 66))], epoch=0, samples=count)
    drawn = np.bincount([a.ids[0] for a in answers], minlength=260) / count
    own, theirs = (m.decoder(torch.tensor([[65, 66]]))[0, -1].softmax(-1).numpy() for m in (model, teacher))
    wanted = 0.25 * theirs + 0.75 * own
    assert np.abs(drawn - wanted).max() < 4.5 * np.sqrt(wanted.max() / count)
    assert np.abs(drawn - wanted).sum() < 0.6 * np.abs(drawn - own).sum()


def test_prompts_of_rows_and_batches_of_answers() -> None:
    some = batch_maker.some()
    made = [(np.array(ids, np.uint32), np.array([False, *mask[1:]])) for ids, mask in some]
    learnt = [(ids, mask) for ids, mask in made if mask.any()]
    expected = [tuple(ids[: int(mask.argmax())].tolist()) for ids, mask in learnt]
    for build in (packed_batch, padded_batch):
        batch = replace(build(made), rows=tuple(range(len(made))))
        assert [prompt.ids for prompt in prompts_of(batch)] == expected
    answers = [Answer(Prompt(4, (1, 2)), 0, (3, 4, 5), "", True), Answer(Prompt(6, (1,)), 0, (9,), "", False)]
    batch = answer_batch(answers, epoch=2)
    assert batch.rows == (4, 6) and batch.epoch == 2 and batch.supervised == 4
    assert batch.targets_BT[0].tolist() == [IGNORED, 3, 4, 5, IGNORED, 9, IGNORED]
    assert documents(batch, share=True).targets_S.tolist() == [3, 4, 5, 9]


def test_what_cannot_be_sampled() -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError, match="one process"):
        sampler(model, processes=Processes(0, 2))
    with pytest.raises(UsageError, match="up to 512"):
        sampler(model, longest_prompt=501)
    other = tiny.decoder("llama", vocab_size=300)
    with pytest.raises(UsageError, match="vocabulary"):
        sampler(model, mix=Mix(other)).sample(PROMPTS, epoch=0)
    with pytest.raises(UsageError, match="greedily"):
        sampler(model, temperature=0.0, mix=Mix(model.decoder)).sample(PROMPTS, epoch=0)
