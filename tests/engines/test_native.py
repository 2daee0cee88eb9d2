"""`ojak.generate` and the embedded engine, on tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch

from ojak.engines.base import require
from ojak.engines.native import NativeEngine, engine_of, generate, row_seed
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, UsageError
from ojak.model.load import Model
from ojak.model.request import Request


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


def greedy(model: Model, ids: list[int], count: int) -> tuple[int, ...]:
    text = list(ids)
    for _ in range(count):
        text.append(int(model.decoder(torch.tensor([text]))[0, -1].argmax()))
    return tuple(text[len(ids) :])


def test_raw_text_gets_the_bos_that_the_tokenizer_adds(model: Model) -> None:
    text, ids = generate(model, ["Hello", [72, 101, 108, 108, 111]], max_tokens=6)
    assert text.prompt_tokens == 6
    assert text.token_ids == greedy(model, [tiny.BOS, *b"Hello"], 6)
    assert ids.prompt_tokens == 5
    assert ids.token_ids == greedy(model, [*b"Hello"], 6)


def test_a_tokenizer_that_adds_none_adds_none_and_a_written_bos_is_not_doubled(model: Model) -> None:
    bare = tiny.model("llama", adds_bos=False)
    assert generate(bare, ["Hello"], max_tokens=6)[0].token_ids == greedy(bare, [*b"Hello"], 6)
    written = generate(model, ["<s>Hello"], max_tokens=6)[0]
    assert written.token_ids == greedy(model, [tiny.BOS, *b"Hello"], 6)


def test_completions_come_in_the_order_of_the_prompts(model: Model) -> None:
    prompts = [[n] * (1 + n % 5) for n in range(20)]
    done = generate(model, prompts, max_tokens=4)
    assert [d.token_ids for d in done] == [greedy(model, prompt, 4) for prompt in prompts]
    assert {d.finish_reason for d in done} <= {"length", "stop"}
    assert generate(model, [], max_tokens=4) == []


def test_the_seed_decides_and_places_differ(model: Model) -> None:
    def texts(seed: int, count: int = 3) -> list[tuple[int, ...]]:
        return [
            d.token_ids for d in generate(model, ["x"] * count, max_tokens=15, temperature=1.0, seed=seed)
        ]

    assert texts(1) == texts(1)
    assert texts(1)[:2] == texts(1, 2)
    assert len(set(texts(1))) == 3
    assert not set(texts(1)) & set(texts(2))


def test_settings_arrive(model: Model) -> None:
    cold = generate(model, ["abc"], max_tokens=10)[0].token_ids
    narrow: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}]
    for setting in narrow:
        assert generate(model, ["abc"], max_tokens=10, temperature=1.0, **setting)[0].token_ids == cold
    refused: list[dict[str, Any]] = [{"temperature": -1.0}, {"top_p": 2.0}, {"min_p": -1.0}, {"top_k": -2}]
    for wrong in refused:
        with pytest.raises(UsageError):
            generate(model, ["abc"], max_tokens=10, **wrong)


def test_stops_are_texts_and_ids_besides_the_models_own(model: Model) -> None:
    ids = greedy(model, [tiny.BOS, *b"q"], 12)
    at = next(i for i in range(3, 12) if ids[i] < 256 and ids[i] not in ids[:i])
    by_id = generate(model, ["q"], max_tokens=12, stop=[ids[at]])[0]
    assert by_id.token_ids == ids[: at + 1]
    assert by_id.finish_reason == "stop"
    spelled = tiny.model("llama")
    spelled.stop_ids = (ids[at],)
    assert generate(spelled, ["q"], max_tokens=12)[0].token_ids == ids[: at + 1]


def test_a_stop_text(model: Model) -> None:
    plain = next(
        d
        for n in range(50)
        if (d := generate(model, [[n]], max_tokens=20)[0]) and "\ufffd" not in d.text[4:6]
    )
    stop = plain.text[4:6]
    done = generate(model, [plain.request.prompt], max_tokens=20, stop=stop)[0]
    assert done.text == plain.text[: plain.text.find(stop)]
    assert done.finish_reason == "stop"


def test_logprobs_only_where_asked(model: Model) -> None:
    done = generate(model, ["abc"], max_tokens=5, logprobs=True)[0]
    assert done.logprobs is not None
    assert len(done.logprobs) == 5
    assert all(value <= 0 for value in done.logprobs)
    assert generate(model, ["abc"], max_tokens=5)[0].logprobs is None


def test_prompts_that_cannot_be_used(model: Model) -> None:
    with pytest.raises(InputRefused, match="single token"):
        generate(model, [[]], max_tokens=5)
    with pytest.raises(UsageError, match="max_tokens"):
        generate(model, ["a"], max_tokens=0)
    assert generate(model, ["a"], max_tokens=5)[0].token_ids == greedy(model, [tiny.BOS, *b"a"], 5)


def test_the_engine_is_made_once_and_grows_with_what_is_asked(model: Model) -> None:
    generate(model, ["a"], max_tokens=3)
    engine = engine_of(model)
    assert engine.generator is not None
    before = engine.generator.shape.capacity
    longer = generate(model, ["a"], max_tokens=before + 10)[0]
    assert engine_of(model) is engine
    assert engine.generator.shape.capacity >= before + 10
    assert longer.token_ids[:5] == greedy(model, [tiny.BOS, *b"a"], 5)


def test_two_engines_may_share_a_model() -> None:
    shared = tiny.model("llama", dtype=torch.bfloat16)
    request = Request(prompt=(1, 2, 3), max_tokens=6)
    first, second = (NativeEngine(shared, slots=2) for _ in range(2))
    assert (
        next(first.generate(iter([request]), longest=9)).token_ids
        == next(second.generate(iter([request]), longest=9)).token_ids
    )


def test_requests_are_asked_for_at_every_step_with_room_and_may_end_the_work(model: Model) -> None:
    """What a budget rests on: it can be looked at while nothing finishes, and ends the run with rows in flight."""
    engine, drawn = NativeEngine(model, slots=2), []

    def asked() -> Iterator[Request | None]:
        yield Request(prompt=(1, 2, 3), max_tokens=60)
        while engine.drawn_tokens < 8:
            drawn.append(engine.drawn_tokens)
            yield None
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        list(engine.generate(asked(), longest=63))
    assert {*range(1, 8)} <= {*drawn}
    assert engine.drawn_tokens == 8
    (again,) = engine.generate(iter([Request(prompt=(1, 2, 3), max_tokens=6)]), longest=63)
    assert again.token_ids == greedy(model, [1, 2, 3], 6)


def test_a_model_that_has_generated_is_saved_whole(tmp_path: Any) -> None:
    saved = tiny.model("llama", dtype=torch.bfloat16)
    names = set(saved.decoder.state_dict())
    generate(saved, ["a"], max_tokens=3)
    assert set(saved.decoder.state_dict()) == names
    from safetensors.torch import load_file

    folder = saved.save(tmp_path / "model")
    assert set(load_file(folder / "model.safetensors")) == names


def test_what_an_engine_says_of_itself(model: Model) -> None:
    engine = NativeEngine(model)
    assert engine.stats() == {}
    assert engine.identity == {
        "engine": "native",
        "model": "tiny",
        "model_sha256": "0" * 64,
        "dtype": "float32",
    }
    assert engine.count_tokens("abc") == 4
    assert engine.first_tokens(["b", "", "abc", "a"]) == (97, 98)
    assert set(engine.special_tokens) == {"<s>", "</s>"}
    assert engine.stop_ids == (tiny.EOS,)
    list(engine.generate(iter([Request(prompt=(1,), max_tokens=2)]), longest=3))
    stats = engine.stats()
    assert stats["slots"] >= 1
    assert stats["steps"] >= 2
    assert stats["planned_bytes"] > 0


def test_seeds_of_rows() -> None:
    seeds = {row_seed(0, row, turn) for row in range(500) for turn in ("instruction", "response")}
    assert len(seeds) == 1000
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert row_seed(1, 23) != row_seed(12, 3)
    assert row_seed(5, 6) == row_seed("5", "6")


def test_a_stage_asks_for_what_it_needs() -> None:
    require(NativeEngine(tiny.model()), "a stage", "logprobs", "seed", "raw_prompt")
    with pytest.raises(UsageError, match="logprobs"):
        require(ScriptedEngine(), "a stage", "seed", "logprobs")
