"""Rows whose logits are no numbers: they end as failed, their neighbours and successors do not notice."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch

from ojak.engines.native import ALL_BROKEN, NativeEngine, generate
from ojak.errors import InputRefused
from ojak.model.load import Model
from ojak.model.request import Completion, Request, Sampling

POISON = 7  # the token after which the model overflows


def poisoned(dtype: torch.dtype = torch.float32) -> Model:
    model = tiny.model("llama", dtype=dtype)
    model.decoder.model.embed_tokens.weight[POISON] = float("nan")
    model.decoder.get_parameter("lm_head.weight")[POISON] = 0  # so that it is not drawn by itself
    return model


def asked(tag: int, prompt: tuple[int, ...], **fields: object) -> Request:
    sampling = Sampling(temperature=1.0, banned_first=(POISON,))
    return Request(
        prompt=prompt,
        max_tokens=6,
        sampling=sampling if tag % 2 else Sampling(),
        seed=tag,
        tag=tag,
        logprobs=True,
        **fields,  # type: ignore[arg-type]
    )


def run(model: Model, requests: list[Request], slots: int) -> dict[int, Completion]:
    engine = NativeEngine(model, slots=slots)
    return {done.request.tag: done for done in engine.generate(iter(requests), longest=60)}


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_a_broken_row_fails_alone(slots: int) -> None:
    """Few slots: a broken row's slot is used again at once, and nothing of it may be left."""
    prompts = [(*range(20, 20 + n), POISON, 9) if n % 3 == 0 else tuple(range(30, 32 + n)) for n in range(18)]
    requests = [asked(n, prompt) for n, prompt in enumerate(prompts)]
    found = run(poisoned(), requests, slots)
    assert {tag for tag, done in found.items() if done.finish_reason == "failed"} == set(range(0, 18, 3))
    whole = run(tiny_without_poison(), [r for r in requests if r.tag % 3], slots)
    for tag, done in found.items():
        if tag % 3 == 0:
            assert done.error
            assert "no finite numbers" in done.error
            assert (done.token_ids, done.text, done.logprobs) == ((), "", ())
        else:
            assert done.error is None
            assert (done.token_ids, done.logprobs) == (whole[tag].token_ids, whole[tag].logprobs)


def tiny_without_poison() -> Model:
    model = poisoned()
    model.decoder.model.embed_tokens.weight[POISON] = 0
    return model


def test_a_model_that_only_fails_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"(?s)weights of tiny are broken.*3 texts.*float32.*fix"):
        generate(poisoned(), [[POISON]] * 3, max_tokens=5)


def test_a_model_that_only_fails_is_given_up_early() -> None:
    made: list[Request] = []
    endless = (made.append(asked(n, (POISON, 1))) or made[-1] for n in itertools.count())
    with pytest.raises(InputRefused, match="broken"):
        list(NativeEngine(poisoned(), slots=4).generate(endless, longest=60))
    assert len(made) < 2 * ALL_BROKEN


def test_early_failures_do_not_condemn_rows_at_work() -> None:
    requests = [asked(0, (1, 2)), *(asked(n, (POISON, 1)) for n in range(1, 4 * ALL_BROKEN))]
    found = run(poisoned(), requests, 2)
    assert len(found) == len(requests)
    assert found[0].error is None


def test_a_broken_prefix_breaks_its_own_rows_alone() -> None:
    """Masked entries are multiplied by 0, which makes a NaN of a NaN: the pool must not hold one."""
    head = (POISON, *range(40, 60))
    requests = [
        asked(n, (*head, n + 100, 3), shared_prefix=(*head, 1)) if n % 2 else asked(n, (n + 100, 3))
        for n in range(8)
    ]
    found = run(poisoned(), requests, 8)
    assert {tag for tag, done in found.items() if done.error} == {1, 3, 5, 7}
