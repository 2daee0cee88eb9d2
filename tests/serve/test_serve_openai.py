"""The official client against a server: what comes back is what the engine writes when it is asked directly."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import tiny
import torch
from serving import Running, written

from ojak.engines.native import generate
from ojak.model.load import Model

CHAT: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And now?"},
]
RENDERED = (
    "<s>system\nBe brief.</s><s>user\nHello</s><s>assistant\nHi.</s><s>user\nAnd now?</s><s>assistant\n"
)


def test_the_model_is_listed(server: Running) -> None:
    client = server.client()
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "ojak"
    with pytest.raises(openai.NotFoundError, match="the model served here is 'tiny'"):
        client.models.retrieve("gpt-6")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-6", prompt="a")


# -- completions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        (["Once", "Twice upon"], ["Once", "Twice upon"]),
        ([79, 110], [[79, 110]]),
        ([[79, 110], [1, 2, 3]], [[79, 110], [1, 2, 3]]),
    ],
    ids=str,
)
def test_prompts_of_all_kinds(server: Running, model: Model, prompt: Any, prompts: list[Any]) -> None:
    done = server.client().completions.create(model="tiny", prompt=prompt, max_tokens=12, temperature=0)
    assert [choice.text for choice in done.choices] == written(model, prompts, max_tokens=12)
    assert [choice.index for choice in done.choices] == list(range(len(prompts)))
    assert done.usage is not None
    assert done.usage.prompt_tokens == sum(map(len, prompts))
    assert done.usage.completion_tokens == 12 * len(prompts)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert {choice.finish_reason for choice in done.choices} == {"length"}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.2, "top_k": 5},
        {"temperature": 1.0, "min_p": 0.1},
    ],
    ids=str,
)
def test_sampling_is_the_engines(server: Running, model: Model, settings: dict[str, float]) -> None:
    extra = {name: settings[name] for name in settings.keys() & {"top_k", "min_p"}}
    known: dict[str, Any] = {name: settings[name] for name in settings.keys() - extra.keys()}
    ask = server.client().completions.create
    done = ask(model="tiny", prompt=["a", "b"], max_tokens=20, seed=7, extra_body=extra, **known)
    wanted: dict[str, Any] = {**settings}
    assert [c.text for c in done.choices] == written(model, ["a", "b"], max_tokens=20, seed=7, **wanted)


def test_a_repetition_penalty_has_an_effect(server: Running) -> None:
    ask = server.client().completions.create

    def ids(penalty: float) -> list[str]:
        body = {"repetition_penalty": penalty}
        done = ask(model="tiny", prompt="abc", max_tokens=60, temperature=0, logprobs=0, extra_body=body)
        assert done.choices[0].logprobs is not None
        return done.choices[0].logprobs.tokens or []

    assert len(set(ids(5.0))) > len(set(ids(1.0)))


def test_n_answers_have_seeds_of_their_own(server: Running, model: Model) -> None:
    ask = server.client().completions.create
    done = ask(model="tiny", prompt=["a", "b"], n=2, max_tokens=20, seed=3)
    wanted = written(model, ["a", "a", "b", "b"], max_tokens=20, seed=3, temperature=1.0)
    assert [choice.text for choice in done.choices] == wanted
    assert len(set(wanted)) == 4
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2, 80)


def test_without_a_seed_answers_differ(server: Running) -> None:
    ask = server.client().completions.create
    texts = {ask(model="tiny", prompt="a", max_tokens=20).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_16_tokens_unless_more_are_asked_for(server: Running) -> None:
    done = server.client().completions.create(model="tiny", prompt="a", temperature=0)
    assert done.usage is not None
    assert done.usage.completion_tokens == 16


def test_stops(server: Running, model: Model) -> None:
    (plain,) = written(model, ["Once"], max_tokens=40)
    stop = next(plain[i : i + 2] for i in range(5, 39) if "\ufffd" not in plain[i : i + 2])
    ask = server.client().completions.create
    for stops in (stop, ["never there", stop]):
        done = ask(model="tiny", prompt="Once", max_tokens=40, temperature=0, stop=stops).choices[0]
        assert (done.text, done.finish_reason) == (plain[: plain.find(stop)], "stop")
    fourth = generate(model, ["Once"], max_tokens=4)[0].token_ids[-1]
    body = {"stop_token_ids": [fourth]}
    done = ask(model="tiny", prompt="Once", max_tokens=40, temperature=0, extra_body=body)
    (wanted,) = written(model, ["Once"], max_tokens=40, stop=[fourth])
    assert (done.choices[0].text, done.choices[0].finish_reason) == (wanted, "stop")


# -- chat ---------------------------------------------------------------------------------------------------------------


def answer(server: Running, messages: list[Any], **settings: Any) -> str:
    done = server.client().chat.completions.create(model="tiny", messages=messages, **settings)
    assert done.choices[0].message.role == "assistant"
    return done.choices[0].message.content or ""


def test_a_conversation_goes_through_the_template(server: Running, model: Model) -> None:
    wanted = written(model, [RENDERED], max_tokens=30, stop=[tiny.BOS], temperature=1.0, seed=5)
    assert [answer(server, CHAT, max_tokens=30, seed=5)] == wanted
    parts = [{**m, "content": [{"type": "text", "text": c} for c in m["content"]]} for m in CHAT]
    assert [answer(server, parts, max_completion_tokens=30, seed=5)] == wanted
    newer = [{**CHAT[0], "role": "developer"}, *CHAT[1:]]
    assert [answer(server, newer, max_tokens=30, seed=5)] == wanted
    assert [answer(server, CHAT[:2], max_tokens=30, seed=5)] != wanted


def test_an_answer_can_be_sent_back_as_it_came(server: Running) -> None:
    done = server.client().chat.completions.create(model="tiny", messages=CHAT, max_tokens=5, seed=1)
    more = [*CHAT, done.choices[0].message, {"role": "user", "content": "Go on"}]
    assert done.usage is not None
    again = server.client().chat.completions.create(model="tiny", messages=more, max_tokens=5, seed=1)
    assert again.usage is not None
    assert again.usage.prompt_tokens > done.usage.prompt_tokens


def test_without_a_limit_an_answer_takes_what_room_there_is(server: Running) -> None:
    done = server.client().chat.completions.create(model="tiny", messages=CHAT, temperature=0)
    assert done.usage is not None
    assert done.usage.total_tokens == server.service.served.room
    assert done.choices[0].finish_reason == "length"


# -- log-probabilities --------------------------------------------------------------------------------------------------


def oracle(model: Model, prompt: bytes, ids: list[int], count: int) -> tuple[list[float], list[list[float]]]:
    """Log-probabilities of `ids` after the prompt, and the `count` largest at each place, by the decoder alone."""
    logits = model.decoder(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1].float()
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist(), logprobs.topk(
        count
    ).values.tolist()


def test_logprobs_of_a_completion(server: Running, model: Model) -> None:
    ask = server.client().completions.create
    done = ask(model="tiny", prompt="Once", max_tokens=9, seed=2, temperature=1.5, logprobs=3).choices[0]
    found = done.logprobs
    assert found is not None
    assert found.tokens
    assert found.token_logprobs
    assert found.top_logprobs
    ids = [raw_id(token) for token in found.tokens]
    chosen, largest = oracle(model, b"Once", ids, 3)
    assert found.token_logprobs == pytest.approx(chosen, abs=1e-4)
    for told, token, likeliest in zip(found.top_logprobs, found.tokens, largest, strict=True):
        assert sorted(told.values(), reverse=True)[:3] == pytest.approx(likeliest, abs=1e-4)
        assert token in told
        assert len(told) in (3, 4)
    assert found.text_offset is not None
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[0] == 0


def raw_id(token: str) -> int:
    """The id of a token of the byte tokenizer by its name."""
    names = {"<s>": tiny.BOS, "</s>": tiny.EOS}
    if token.startswith("bytes:"):
        return int(token.removeprefix("bytes:\\x"), 16)
    return names[token] if token in names else ord(token)


def test_logprobs_of_a_chat(server: Running, model: Model) -> None:
    ask = server.client().chat.completions.create
    done = ask(model="tiny", messages=CHAT, max_tokens=9, seed=2, logprobs=True, top_logprobs=2).choices[0]
    assert done.logprobs is not None
    content = done.logprobs.content
    assert content
    ids = [each.bytes[0] for each in content if each.bytes]
    rendered = model.tokenizer.encode(RENDERED)
    logits = model.decoder(torch.tensor([[*rendered, *ids]]))[0, len(rendered) - 1 : -1].float()
    logprobs = logits.log_softmax(-1)
    wanted = logprobs.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert [each.logprob for each in content] == pytest.approx(wanted, abs=1e-4)
    for each, row in zip(content, logprobs.topk(2).values.tolist(), strict=True):
        assert [top.logprob for top in each.top_logprobs] == pytest.approx(row, abs=1e-4)
    assert server.client().chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=2
    ).choices[0].logprobs is None  # fmt: skip


# -- streams ------------------------------------------------------------------------------------------------------------

STREAMED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 1},
    {"seed": 2, "n": 3},
    {"seed": 3, "stop": ["a", "B", "\x01"]},
    {"seed": 4, "n": 2, "logprobs": True},
    {"seed": 5, "stop": ["e", "\ufffd\ufffd"]},
]


@pytest.mark.parametrize("settings", STREAMED, ids=str)
def test_a_streamed_completion_is_the_whole_one(server: Running, settings: dict[str, Any]) -> None:
    settings = {**settings, "logprobs": 2 if settings.get("logprobs") else None}
    body: dict[str, Any] = {"model": "tiny", "prompt": ["One", "Two"], "max_tokens": 60, **settings}
    client = server.client()
    whole = client.completions.create(**body)
    chunks = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts][-1] == choice.finish_reason
        assert {part.finish_reason for part in parts[:-1]} <= {None}
        if choice.logprobs:
            told = [part.logprobs for part in parts if part.logprobs]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [*itertools.chain.from_iterable(getattr(one, name) for one in told)]
                assert joined == getattr(choice.logprobs, name)


@pytest.mark.parametrize("settings", STREAMED, ids=str)
def test_a_streamed_chat_is_the_whole_one(server: Running, settings: dict[str, Any]) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 60, **settings}
    client = server.client()
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        if choice.logprobs:
            told = [entry for part in parts if part.logprobs for entry in part.logprobs.content or []]
            assert told == choice.logprobs.content


def test_text_comes_while_it_is_written(server: Running) -> None:
    """The first piece is here long before the last token is drawn."""
    before = server.engine.drawn_tokens
    stream = server.client().completions.create(
        model="tiny", prompt="a", max_tokens=500, temperature=1.0, seed=1, stream=True
    )
    next(iter(stream))
    assert server.engine.drawn_tokens - before < 400
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


# -- many at once -------------------------------------------------------------------------------------------------------


def test_sixteen_at_once_are_answered_as_one_by_one(server: Running) -> None:
    client = server.client()
    prompts = [chr(65 + n) * (1 + 7 * n % 40) for n in range(16)]

    def ask(n: int) -> str:
        shared: dict[str, Any] = {"model": "tiny", "max_tokens": 10 + 5 * (n % 7), "seed": n}
        if n % 2:
            messages: list[Any] = [{"role": "user", "content": prompts[n]}]
            return (
                client.chat.completions.create(messages=messages, **shared).choices[0].message.content or ""
            )
        stream = client.completions.create(prompt=prompts[n], stream=True, **shared)
        return "".join(chunk.choices[0].text for chunk in stream)

    alone = [ask(n) for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == alone
    assert len(set(alone)) == 16
