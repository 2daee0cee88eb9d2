"""What the probe finds out about a server, what it refuses, and how prompts are sent after it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from faulty_server import CHATML, MODEL, FaultyServer, write_tokenizer
from ojak.engines.endpoint import EndpointEngine
from ojak.engines.endpoint_retry import Policy
from ojak.engines.open import EngineSpec, open_engine
from ojak.errors import EngineUnavailable, InputRefused, OjakError, UsageError
from ojak.model.request import Request, Sampling

QUICK = Policy(connect_s=1.0, read_s=2.0, total_s=3.0, base_s=0.01, cap_s=0.05)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t"))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "b", bos=True))


def open_(server: FaultyServer, tokenizer: str | None, model: str = MODEL, **more: Any) -> EndpointEngine:
    return EndpointEngine.open(model, server.url, tokenizer=tokenizer, policy=QUICK, **more)


def sent(engine: EndpointEngine, server: FaultyServer, **more: Any) -> dict[str, Any]:
    """The body of one request, at the chat template's pre-query text."""
    prefix = engine.chat_prefix()
    request = Request(prompt=prefix.pre_query, max_tokens=9, seed=2**40 + 5, stop_ids=prefix.stop_ids, **more)
    assert len(list(engine.generate(iter([request]), longest=100))) == 1
    return server.bodies[-1]


# -- what is found ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "vllm", "llama.cpp", "ollama"])
def test_the_kind_of_server_is_found(kind: str, tokenizer: str) -> None:
    with FaultyServer(kind=kind) as server:
        engine = open_(server, tokenizer)
        stats = engine.stats()
        assert (stats["server"], stats["seed"], stats["raw_prompt"]) == (kind, "followed", "counted")
        assert stats["prompts"] == ("text" if kind == "ollama" else "token ids")
        assert engine.capabilities.raw_prompt
        assert engine.capabilities.seed


def test_the_identity_names_model_and_template_and_not_the_place(tokenizer: str, with_bos: str) -> None:
    identities = []
    for text in (tokenizer, tokenizer, with_bos):
        with FaultyServer() as server:
            identities.append(open_(server, text).identity)
    assert identities[0] == identities[1]
    assert identities[0]["model"] == MODEL
    assert identities[0]["model_sha256"] != identities[2]["model_sha256"]
    assert "127.0.0.1" not in str(identities)


def test_a_llama_cpp_server_lends_its_template_and_tokenizer() -> None:
    with FaultyServer(kind="llama.cpp") as server:
        engine = open_(server, None, model="whatever-its-name")
        prefix = engine.chat_prefix()
        assert (prefix.pre_query, prefix.post_query) == (
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        )
        assert set(engine.special_tokens) == {"<|im_start|>", "<|im_end|>"}
        assert set(engine.stop_ids) <= set(prefix.stop_ids)
        assert engine.count_tokens("<|im_start|>abc") == 4
        body = sent(engine, server)
    assert body["prompt"] == prefix.pre_query
    assert {"<|im_start|>", "<|im_end|>"} <= set(body["stop"])
    assert CHATML not in str(server.bodies)


@pytest.mark.parametrize("kind", ["openai", "vllm", "llama.cpp"])
def test_settings_are_sent_in_the_servers_own_words(kind: str, tokenizer: str) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2)
    with FaultyServer(kind=kind) as server:
        engine = open_(server, tokenizer)
        body = sent(engine, server, sampling=sampling)
        ends = engine.chat_prefix().stop_ids
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.9, 5, 0.1)
    assert body["repeat_penalty" if kind == "llama.cpp" else "repetition_penalty"] == 1.2
    assert (body["max_tokens"], body["model"], body["stream"]) == (9, MODEL, False)
    assert 0 <= body["seed"] < 2**31
    if kind == "vllm":
        assert set(body["stop_token_ids"]) == set(ends)
    assert server.text_of(body["prompt"]) == "<|im_start|>user\n"


def test_plain_sampling_is_spelled_out_where_servers_have_other_defaults(tokenizer: str) -> None:
    with (
        FaultyServer(kind="llama.cpp") as llama,
        FaultyServer(kind="ollama") as ollama,
        FaultyServer(kind="vllm") as vllm,
    ):
        bodies = [sent(open_(server, tokenizer), server) for server in (llama, ollama, vllm)]
    assert (bodies[0]["top_k"], bodies[0]["min_p"], bodies[0]["repeat_penalty"]) == (0, 0.0, 1.0)
    options = bodies[1]["options"]
    assert (options["top_k"], options["min_p"], options["repeat_penalty"], options["num_predict"]) == (
        0,
        0.0,
        1.0,
        9,
    )
    assert bodies[1]["raw"] is True
    assert options["num_ctx"] == 1024
    assert (bodies[2]["top_k"], bodies[2]["repetition_penalty"]) == (-1, 1.0)


def test_an_openai_server_gets_nothing_that_it_may_not_know(tokenizer: str) -> None:
    with FaultyServer() as server:
        body = sent(open_(server, tokenizer), server)
    assert body.keys() == {
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "n",
        "stream",
        "stop",
    }
    assert len(body["stop"]) <= 4


# -- one BOS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("takes_ids", [False, True])
def test_no_prompt_begins_with_two_bos(adds: bool, takes_ids: bool, with_bos: str) -> None:
    """Whether or not the server adds one to a text, and whether or not it takes ids, to which none is added."""
    with FaultyServer(extra_tokens=int(adds), takes_ids=takes_ids) as server:
        engine = open_(server, with_bos)
        assert engine.chat_prefix().pre_query.startswith("<s>")
        prompt = sent(engine, server)["prompt"]
        seen = server.text_of(prompt)
    assert isinstance(prompt, list) is takes_ids
    assert (adds and not takes_ids) + seen.count("<s>") == 1
    assert seen.removeprefix("<s>") == "<|im_start|>user\n"


def test_a_model_without_bos_gets_none(tokenizer: str) -> None:
    with FaultyServer(takes_ids=False) as server:
        assert sent(open_(server, tokenizer), server)["prompt"] == "<|im_start|>user\n"


def test_ids_that_are_not_known_here_are_refused(tokenizer: str) -> None:
    with FaultyServer(takes_ids=False) as server, pytest.raises(UsageError, match="texts"):
        list(open_(server, tokenizer).generate(iter([Request(prompt=(1, 2), max_tokens=1)]), longest=9))


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_a_chat_only_server_is_refused_plainly(tokenizer: str) -> None:
    with (
        FaultyServer(chat_only=True) as server,
        pytest.raises(UsageError, match="no route that continues") as caught,
    ):
        open_(server, tokenizer)
    assert "template" in caught.value.why
    assert "vLLM" in caught.value.fix


def test_a_server_that_puts_its_template_around_a_text_is_refused(tokenizer: str) -> None:
    with FaultyServer(extra_tokens=23) as server, pytest.raises(UsageError, match="as it is") as caught:
        open_(server, tokenizer)
    assert "+23" in caught.value.why
    assert "template" in caught.value.why


def test_a_tokenizer_of_another_model_is_refused(tokenizer: str) -> None:
    with FaultyServer(miscount=3) as server, pytest.raises(InputRefused, match="not that of the server"):
        open_(server, tokenizer)


def test_a_name_that_is_not_served_is_refused_with_those_that_are(tokenizer: str) -> None:
    with FaultyServer() as server, pytest.raises(UsageError, match="does not serve 'gpt'") as caught:
        open_(server, tokenizer, model="gpt")
    assert MODEL in caught.value.why


def test_without_any_template_it_says_what_to_give() -> None:
    with FaultyServer() as server, pytest.raises(InputRefused, match="not known here") as caught:
        open_(server, None)
    assert "--tokenizer" in caught.value.fix


def test_a_server_that_draws_the_same_whatever_the_seed_is_refused(tokenizer: str) -> None:
    with FaultyServer(seed="stuck") as server, pytest.raises(UsageError, match="whatever the seed"):
        open_(server, tokenizer)


def test_a_server_that_ignores_seeds_is_used_and_named(tokenizer: str) -> None:
    told: list[str] = []
    with FaultyServer(seed="ignored") as server:
        engine = open_(server, tokenizer, notify=told.append)
    assert not engine.capabilities.seed
    assert engine.stats()["seed"] == "ignored"
    assert "seeds" in told[-1]


def test_a_server_that_counts_nothing_is_used_with_texts(tokenizer: str) -> None:
    with FaultyServer(gives_usage=False) as server:
        engine = open_(server, tokenizer)
        (done,) = engine.generate(iter([Request(prompt="Say", max_tokens=9, seed=1)]), longest=100)
    assert (engine.stats()["prompts"], engine.stats()["raw_prompt"]) == ("text", "not counted by the server")
    assert done.token_count == 9


def test_more_than_the_servers_context_is_refused(tokenizer: str) -> None:
    with FaultyServer(kind="llama.cpp") as server, pytest.raises(UsageError, match="5000 tokens together"):
        open_(server, tokenizer).generate(iter([]), longest=5000)


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineUnavailable, match="does not answer") as caught:
            EndpointEngine.open(MODEL, url, policy=QUICK)
    assert caught.value.exit_code == 5


def test_a_key_that_is_missing_is_named(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer(key="canary-0123456789") as server:
        with pytest.raises(EngineUnavailable, match="does not let us in") as caught:
            open_(server, tokenizer)
        assert "401" in caught.value.why
        assert "OJAK_ENDPOINT_KEY" in caught.value.fix
        monkeypatch.setenv("MY_KEY", " canary-0123456789\n")
        open_(server, tokenizer, key_variable="MY_KEY")
    assert "canary-0123456789" in server.keys


# -- the way in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (EngineSpec(model="m", engine="endpoint"), "needs its address"),
        (EngineSpec(model="smollm2-135m-instruct", url="http://127.0.0.1:1"), "settings of an endpoint"),
        (EngineSpec(model="smollm2-135m-instruct", workers=2), "settings of the engine ray"),
    ],
)
def test_settings_that_do_not_go_together(spec: EngineSpec, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        open_engine(spec)


def test_open_engine_opens_endpoints(tokenizer: str) -> None:
    with FaultyServer() as server:
        spec = EngineSpec(
            model=MODEL, engine="endpoint", url=f"{server.url}/v1/completions", tokenizer=tokenizer
        )
        assert open_engine(spec).identity["engine"] == "endpoint"


def test_a_template_that_cannot_be_used_is_refused_before_any_row(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", template="{{ messages[0]['content'] | upper }}")
    with FaultyServer() as server, pytest.raises(OjakError, match="chat template is refused"):
        open_engine(EngineSpec(model=MODEL, engine="endpoint", url=server.url, tokenizer=str(folder)))
