"""`ojak.generate` where it could go wrong: stops over token borders, many rows, log-probabilities, batch sizes, memory.

`chain` is a model whose text is known: after each token of a text it writes the next one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
import torch

from model import tiny
from ojak.engines import native
from ojak.engines.native import FIXED_SLOTS, NativeEngine, engine_of, generate, plan_memory
from ojak.errors import InputRefused, ResourceExhausted, UsageError
from ojak.model.generate import LADDER
from ojak.model.invariance import Invariance
from ojak.model.load import Model
from ojak.model.request import Request, Sampling
from ojak.model.tokenizer import Tokenizer

JOINED = 258  # "[xyz]", one token


def chain(text: str, *, adds_bos: bool = False) -> Model:
    """Embeddings are unit vectors, layers add nothing, the output layer leads from each token to the next, then EOS."""
    model = tiny.model("llama", hidden_size=tiny.VOCAB)
    backend = model.tokenizer.backend
    backend.add_tokens([tokenizers.AddedToken("[xyz]", special=False, normalized=False)])
    model.tokenizer = Tokenizer(backend, bos_id=tiny.BOS, eos_id=tiny.EOS, adds_bos=adds_bos)
    decoder = model.decoder
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif "o_proj" in name or "down_proj" in name or "lm_head" in name:
            parameter.zero_()
    decoder.model.embed_tokens.weight.copy_(torch.eye(tiny.VOCAB))
    ids = [tiny.BOS, *model.tokenizer.encode(text), tiny.EOS]
    assert len(set(ids)) == len(ids)
    for before, after in itertools.pairwise(ids):
        decoder.get_parameter("lm_head.weight")[after, before] = 1.0
    return model


@pytest.fixture(scope="module")
def alphabet() -> Model:
    return chain("abcdé fgh[xyz]ijklmnopq")


@pytest.fixture(scope="module")
def random_model() -> Model:
    return tiny.model("llama")


# -- stops --------------------------------------------------------------------------------------------------------------


def test_the_models_own_stop_ends_a_text(alphabet: Model) -> None:
    done = generate(alphabet, ["a", "n"], max_tokens=40)
    assert [one.text for one in done] == ["bcdé fgh[xyz]ijklmnopq", "opq"]
    assert [one.finish_reason for one in done] == ["stop", "stop"]
    assert done[1].token_ids == (*b"opq", tiny.EOS)
    assert generate(chain("abc", adds_bos=True), [""], max_tokens=9)[0].text == "abc"


def test_a_stop_id_is_counted_but_not_part_of_the_text(alphabet: Model) -> None:
    (done,) = generate(alphabet, ["a"], max_tokens=40, stop=[ord("f")])
    assert (done.text, done.finish_reason, done.token_ids[-1]) == ("bcdé ", "stop", ord("f"))
    assert generate(alphabet, ["a"], max_tokens=40, stop=[JOINED])[0].text == "bcdé fgh"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("d", "bc"),
        ("cd", "b"),  # over two tokens
        ("é", "bcd"),  # one letter of two tokens
        ("dé f", "bc"),
        ("yz]i", "bcdé fgh[x"),  # from inside one token into the next
        ("xy", "bcdé fgh["),  # within one token
        ("h[", "bcdé fg"),
        ("[xyz]ijklmnopq", "bcdé fgh"),
        (["q", "fg", "m"], "bcdé "),
        (["gh", "fgh"], "bcdé "),  # both end with the same token: the text ends where the first begins
        (["zz", ord("g")], "bcdé f"),
    ],
)
def test_a_stop_text_cuts_wherever_token_borders_lie(alphabet: Model, stop: Any, text: str) -> None:
    (done,) = generate(alphabet, ["a"], max_tokens=40, stop=stop)
    assert (done.text, done.finish_reason) == (text, "stop")


def test_stops_are_whole_texts_and_not_looked_for_in_the_prompt(alphabet: Model) -> None:
    assert generate(alphabet, ["a"], max_tokens=40, stop="db")[0].text.endswith("opq")
    assert generate(alphabet, ["xyza"], max_tokens=3, stop=["ab", "xyz", ord("a")])[0].text == "bcd"


def test_max_tokens_is_the_most(alphabet: Model) -> None:
    for count in (1, 2, 3):
        (done,) = generate(alphabet, ["a"], max_tokens=count)
        assert (done.text, done.finish_reason, len(done.token_ids)) == ("bcd"[:count], "length", count)
    (done,) = generate(alphabet, ["p"], max_tokens=2)
    assert (done.text, done.finish_reason) == ("q", "stop")


def test_a_written_bos_is_the_only_one(random_model: Model) -> None:
    done = generate(random_model, ["ab", "<s>ab", "<s><s>ab", (tiny.BOS, *b"ab")], max_tokens=4)
    assert [one.request.prompt for one in done] == [(tiny.BOS, *b"ab")] * 4


# -- rows ---------------------------------------------------------------------------------------------------------------


def test_completions_keep_their_order_when_rows_end_at_different_times(random_model: Model) -> None:
    prompts = [chr(65 + n % 26) * (1 + n * 7 % 90) for n in range(300)]  # more than slots
    setting: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "stop": range(0, 256, 9)}
    done = generate(random_model, prompts, **setting)
    assert [one.prompt_tokens for one in done] == [len(prompt) + 1 for prompt in prompts]
    assert len({len(one.token_ids) for one in done}) > 10
    alone = generate(random_model, prompts[:7], **setting)
    assert [one.token_ids for one in alone] == [one.token_ids for one in done[:7]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logprobs_are_the_decoders(random_model: Model, temperature: float) -> None:
    """Of the model itself: neither temperature nor top-p shows in them."""
    prompts = ["hello", "a longer prompt than that one", (tiny.BOS, 5)]
    done = generate(random_model, prompts, max_tokens=9, temperature=temperature, top_p=0.9, logprobs=True)
    for one in done:
        assert isinstance(one.request.prompt, tuple)
        ids = torch.tensor([[*one.request.prompt, *one.token_ids]])
        logits = random_model.decoder(ids)[0, one.prompt_tokens - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(one.token_ids)[:, None])[:, 0]
        assert one.logprobs is not None
        assert torch.allclose(torch.tensor(one.logprobs), wanted, atol=2e-4)


@pytest.mark.parametrize("empty", ["", ()])
def test_an_empty_prompt_is_refused_and_the_next_call_works(alphabet: Model, empty: Any) -> None:
    with pytest.raises(InputRefused, match="without a single token"):
        generate(alphabet, ["a", empty], max_tokens=4)
    assert generate(alphabet, ["a"], max_tokens=3)[0].text == "bcd"


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": -3},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": 1000.0},
        {"top_p": 0.0},
        {"min_p": 1.5},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(random_model: Model, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        generate(random_model, ["a"], **{"max_tokens": 4, **bad})


@pytest.mark.parametrize(
    ("bad", "allowed"),
    [
        ({"temperature": -1}, "temperature = -1 .*0 or more and below 100"),
        ({"top_p": 1.5}, "top_p = 1.5 .*above 0 and at most 1"),
        ({"top_k": -2}, "top_k = -2 .*0 or more"),
        ({"min_p": 2}, "min_p = 2 .*from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0 .*above 0 and below 100"),
        ({"first_temperature": 100}, "first_temperature = 100 .*0 or more and below 100"),
    ],
)
def test_the_range_is_told(bad: dict[str, Any], allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**bad)
    assert re.search(allowed, str(caught.value), re.DOTALL)


# -- memory and batch sizes ---------------------------------------------------------------------------------------------


def room_for(monkeypatch: pytest.MonkeyPatch, slots: float, slot_bytes: int) -> None:
    free = int((native.SCRATCH_BYTES + slots * slot_bytes + 10) / native.CACHE_SHARE)
    monkeypatch.setattr(native, "available_bytes", lambda _device: free)


def test_the_plan_takes_what_fits(random_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    slot_bytes = plan_memory(random_model, 100, 1).slot_bytes
    seen = []
    for slots in (1, 5, 40, 10**6):
        room_for(monkeypatch, slots, slot_bytes)
        seen.append(plan_memory(random_model, 100).shape.slots)
    assert seen == [1, 4, 32, max(size for size in LADDER if size <= native.MOST_SLOTS["cpu"])]
    room_for(monkeypatch, 0.9, slot_bytes)
    with pytest.raises(ResourceExhausted, match="1 rows of 100 tokens"):
        plan_memory(random_model, 100)
    room_for(monkeypatch, 7, slot_bytes)
    with pytest.raises(ResourceExhausted, match="8 rows of 100 tokens"):
        plan_memory(random_model, 100, 8)


def test_planned_bytes_grow_with_slots_length_and_dtype(random_model: Model) -> None:
    plan, longer = plan_memory(random_model, 100, 8), plan_memory(random_model, 200, 8)
    config = random_model.config
    a_token = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4
    assert plan.slot_bytes >= 100 * a_token
    assert longer.slot_bytes - plan.slot_bytes >= 100 * a_token
    assert plan_memory(random_model, 100, 16).total_bytes - plan.total_bytes == 8 * plan.slot_bytes
    assert plan_memory(tiny.model(dtype=torch.bfloat16), 100, 8).slot_bytes * 2 == plan.slot_bytes


def test_the_text_is_the_same_with_less_memory(random_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"prompt number {n}" for n in range(50)]
    wanted = [one.token_ids for one in generate(random_model, prompts, max_tokens=10, temperature=1.0)]
    longest = len(prompts[-1]) + 1 + 10
    room_for(monkeypatch, 33, plan_memory(random_model, longest, 1).slot_bytes)
    small = replace(random_model)  # the same weights, an engine of its own
    assert [one.token_ids for one in generate(small, prompts, max_tokens=10, temperature=1.0)] == wanted
    assert engine_of(small).stats()["slots"] == 32


def texts() -> Iterator[Request]:
    return (Request(prompt=f"text {n}", max_tokens=6, tag=n) for n in range(40))


@pytest.mark.parametrize(
    ("found", "slots", "wanted"),
    [
        (Invariance(), None, [FIXED_SLOTS]),
        (Invariance(tiled=True), None, [FIXED_SLOTS]),
        (Invariance(), 8, [8]),
        (Invariance(frozenset({4, 64}), tiled=True), None, [4, 64, 256]),
    ],
)
def test_only_sizes_found_harmless_are_used(
    found: Invariance,
    slots: int | None,
    wanted: list[int],
    random_model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there are none the number of slots is a constant: free memory must not decide what is written."""
    plain = NativeEngine(random_model).generate(texts(), longest=40)
    expected = {one.request.tag: one.token_ids for one in plain}
    monkeypatch.setattr("ojak.model.generate.check_invariance", lambda *_: found)
    engine = NativeEngine(random_model, slots=slots)
    done = {one.request.tag: one.token_ids for one in engine.generate(texts(), longest=40)}
    stats = engine.stats()
    assert (stats["sizes"], stats["prefill_tiles"]) == (wanted, found.tiled)
    assert done == expected


def test_stats_tell_how_it_ran() -> None:
    engine = NativeEngine(tiny.model("llama"), slots=4)
    done = list(engine.generate(itertools.islice(texts(), 3), longest=40))
    stats = engine.stats()
    assert set(stats) == {
        "device", "threads", "lanes", "slots", "capacity", "sizes", "prefill_tiles", "steps", "planned_bytes",
        "peak_rss_bytes",
    }  # fmt: skip
    assert (stats["device"], stats["lanes"], stats["slots"], stats["capacity"]) == ("cpu", 1, 4, 40)
    assert stats["planned_bytes"] > native.SCRATCH_BYTES
    assert engine.drawn_tokens == sum(len(one.token_ids) for one in done) == 18
    with pytest.raises(InputRefused, match="does not fit the cache"):
        list(engine.generate(iter([Request(prompt="x" * 40, max_tokens=6)]), longest=20))
