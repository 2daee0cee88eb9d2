"""The plan of a Magpie run: what is there, what is left, what it may cost, and that looking changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ojak.engines.scripted import scripted_text
from ojak.errors import Stopped, UsageError
from ojak.ledger import Ledger
from ojak.model import estimate, hub
from ojak.model.request import Request
from ojak.synthesize import plan as planning
from ojak.synthesize.config import MagpieConfig, PersonasConfig
from ojak.synthesize.folder import LEDGER
from ojak.synthesize.personas import LABEL, synthesize_personas
from ojak.synthesize.plan import plan
from scripted_runs import Recorder, answers, config, run

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def stopped_run(out: Path, rows: int) -> None:
    """A run that Ctrl-C ended half way."""
    engine = Recorder()

    def interrupted(request: Request) -> str:
        if engine.sent == rows:
            os.kill(os.getpid(), signal.SIGINT)
        return answers(request)

    engine._answer = interrupted
    with pytest.raises(Stopped):
        run(out, rows, engine=engine)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in it and itself: files made and removed again show in the folder's time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in [folder, *folder.rglob("*")]}


def test_a_new_folder_would_be_started_and_is_not_made(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "d"
    found = plan(config(out, 100, max_instruction_tokens=10, max_response_tokens=20))
    assert (found.verdict, found.why) == ("start", "")
    assert (found.rows, found.rows_begun, found.rows_answered, found.rows_to_do) == (100, 0, 0, 100)
    assert found.tokens == {"instruction": 100 * 10, "response": 70 * 20}
    assert "typical" in found.tokens_from
    assert found.ledger_bytes > 0
    assert found.artifact_bytes > 0
    assert found.free_disk_bytes > 0
    assert found.free_memory_bytes > 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_stopped_would_be_resumed(tmp_path: Path) -> None:
    stopped_run(tmp_path, 40)
    before = listing(tmp_path)
    with Ledger(tmp_path / LEDGER) as ledger:
        counts = {kind: states["ok"] for kind, states in ledger.counts().items()}
    before = listing(tmp_path)
    found = plan(config(tmp_path, 40))
    assert listing(tmp_path) == before
    assert found.verdict == "resume"
    assert (found.rows_begun, found.rows_answered) == (counts["instruction"], counts["response"])
    assert found.rows_to_do == 40 - counts["instruction"]
    assert "the ledger" in found.tokens_from
    fresh = plan(config(tmp_path / "new", 40))
    assert found.ledger_bytes < fresh.ledger_bytes


def test_a_ledger_in_use_is_read_with_its_latest_rows(tmp_path: Path) -> None:
    """Rows that lie in SQLite's write-ahead log alone count, too."""
    run(tmp_path, 12)
    with Ledger(tmp_path / LEDGER) as ledger:
        entry = next(ledger.entries("instruction"))
        ledger.put(type(entry)("k", 12, "instruction", "ok", 256, "stop", "x", 3, 1))
        assert (tmp_path / f"{LEDGER}-wal").stat().st_size
        assert plan(config(tmp_path, 20)).rows_begun == 13


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    run(tmp_path, 24)
    before = listing(tmp_path)
    found = plan(config(tmp_path, 24))
    assert found.verdict == "finished"
    assert (found.rows_to_do, sum(found.tokens.values()), found.seconds) == (0, 0, 0)
    assert plan(config(tmp_path, 30)).verdict == "resume"
    assert plan(config(tmp_path, 30)).rows_to_do == 6
    assert listing(tmp_path) == before


def test_the_means_are_those_of_the_ledger(tmp_path: Path) -> None:
    run(tmp_path, 40, engine=Recorder(scripted_text))
    with Ledger(tmp_path / LEDGER) as ledger:
        asked = [e.token_count for e in ledger.entries("instruction")]
        answered = [e.token_count for e in ledger.entries("response")]
    found = plan(config(tmp_path, 140))
    assert found.tokens["instruction"] == round(100 * sum(asked) / len(asked))
    more = round(140 * len(answered) / 40) - len(answered)
    assert found.tokens["response"] == round(more * sum(answered) / len(answered))


def test_rows_that_a_larger_cap_reopens_are_to_do(tmp_path: Path) -> None:
    caps: dict[str, Any] = {"max_instruction_tokens": 11, "max_response_tokens": 400}
    artifact = run(tmp_path, 30, **caps)
    cut = sum(
        r.meta["finish_reason"]["instruction"] == "length"
        for r in [*artifact.records(), *artifact.rejected()]
    )
    assert 0 < cut < 30
    found = plan(config(tmp_path, 30, max_instruction_tokens=64, max_response_tokens=400))
    assert (found.verdict, found.rows_begun, found.rows_to_do) == ("resume", 30 - cut, cut)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"rows": 20}, "rows: 24 -> 20 (may only grow)"),
        ({"max_response_tokens": 5}, "max_response_tokens: 512 -> 5"),
        ({"resume": "never"}, "--resume never"),
    ],
)
def test_what_would_be_refused_is_refused_in_the_plan(
    tmp_path: Path, asked: dict[str, object], why: str
) -> None:
    run(tmp_path, 24)
    found = plan(config(tmp_path, **{"rows": 24, **asked}))
    assert found.verdict == "refused"
    assert why in found.why
    assert f"would be refused: {found.why}" in found.lines()[0]


def test_resume_always_without_a_run_is_refused(tmp_path: Path) -> None:
    assert "no run to resume" in plan(config(tmp_path / "d", 8, resume="always")).why
    assert not (tmp_path / "d").exists()


def test_a_damaged_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b"not a database, but long enough to look like one" * 100)
    found = plan(config(tmp_path, 8))
    assert found.verdict == "refused"
    assert "damaged" in found.why


def test_the_plan_is_plain_json_and_lines(tmp_path: Path) -> None:
    found = plan(config(tmp_path, 8))
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["rows"], told["instruction_tokens"]) == (8, found.tokens["instruction"])
    assert [line.split()[0] for line in found.lines()] == [
        "folder", "model", "rows", "tokens", "time", "disk", "memory",
    ]  # fmt: skip


# -- personas -----------------------------------------------------------------------------------------------------------


def people(folder: Path, **more: Any) -> PersonasConfig:
    """Settings for personas out of 20 texts."""
    source = folder / "texts.jsonl"
    source.write_text("".join(f'{{"text": "Of craft number {n}."}}\n' for n in range(20)), "utf-8")
    return PersonasConfig(**{"model": "scripted", "out": folder / "p", "source": source, "rounds": 1, **more})


def somebody(request: Request) -> str:
    row = request.tag[0]
    return f"{LABEL} A person of {row} years who lives in house {row * 7} and reads." if row % 2 else "No."


def test_personas_are_planned_as_the_most_there_may_be(tmp_path: Path) -> None:
    found = plan(people(tmp_path, rounds=2, relatives=3))
    assert (found.verdict, found.rows, found.at_most) == ("start", 20 * (1 + 3 + 9), True)
    assert found.tokens == {"persona": 260 * planning.TYPICAL_TOKENS["persona"]}
    assert found.ledger_bytes > 260 * planning.LEDGER_REQUEST_BYTES
    assert "at most 260" in found.lines()[2]
    assert not (tmp_path / "p").exists()


def test_a_finished_run_of_personas_has_nothing_to_do_and_may_grow(tmp_path: Path) -> None:
    config = people(tmp_path)
    artifact = synthesize_personas(config, engine=Recorder(somebody))
    rows = artifact.counts["rows"]
    assert 20 < rows < 40
    before = listing(tmp_path / "p")
    found = plan(config)
    assert (found.verdict, found.rows, found.rows_begun, found.rows_answered) == (
        "finished",
        rows,
        rows,
        rows,
    )
    assert (found.rows_to_do, found.tokens, found.seconds) == (0, {"persona": 0}, 0)
    more = plan(people(tmp_path, rounds=2))
    assert (more.verdict, more.rows, more.rows_to_do) == ("resume", 60, 60 - rows)
    with Ledger(tmp_path / "p" / LEDGER, read_only=True) as ledger:
        means = [entry.token_count for entry in ledger.entries("persona")]
    assert more.tokens["persona"] == round((60 - rows) * sum(means) / len(means))
    less = plan(people(tmp_path, rounds=0))
    assert (less.verdict, "rounds: 1 -> 0" in less.why) == ("refused", True)
    assert listing(tmp_path / "p") == before


def test_a_model_that_nobody_knows_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        plan(config(tmp_path, 8, model="smollm"))


def test_an_absent_model_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub, "pull", lambda *_a, **_k: pytest.fail("fetched"))
    for name in ("smollm2-135m-instruct", "org/name"):
        found = plan(config(tmp_path / "d", 8, model=name))
        assert found.verdict == "start"
        assert found.seconds is None
        assert "not on this machine" in found.seconds_from
        assert found.download_bytes == {"org/name": None}.get(name, 98_362_432)
    assert not (tmp_path / "home").exists()


def test_a_licence_that_was_not_accepted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OJAK_ACCEPT_LICENSES", raising=False)
    found = plan(config(tmp_path / "d", 8, model="gemma-3-270m"))
    assert (found.verdict, found.license, found.license_accepted) == ("refused", "gemma", False)
    assert "--accept-license gemma" in found.why
    agreed = plan(config(tmp_path / "d", 8, model="gemma-3-270m", accept_license=("gemma",)))
    assert (agreed.verdict, agreed.license_accepted) == ("start", True)
    assert not (tmp_path / "home").exists()


def test_the_time_follows_from_size_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "matrix_rate", lambda: 2e11)
    files, known = planning.Files(multiplied=10**8), planning.Known()
    seconds, told = planning._seconds(files, known, 7000, estimate.Machine("cpu", "bfloat16", 1))
    assert seconds == pytest.approx(7000 * 2 * 10**8 / (2e11 * planning.estimate.EFFICIENCY))
    assert "200 GFLOP/s" in told
    assert f"{planning.estimate.EFFICIENCY:.0%}" in told


def test_parameters_are_counted_from_the_configuration() -> None:
    attention = 8 * 8 + 2 * (8 * 4) + 8 * 8
    layers = 2 * (attention + 3 * 8 * 16 + 2 * 8) + 8
    assert estimate.parameters({**LLAMA, "tie_word_embeddings": True}) == (layers + 800, layers + 800)
    assert estimate.parameters({**LLAMA, "tie_word_embeddings": False}) == (layers + 1600, layers + 800)


def test_the_rate_is_measured_within_its_time() -> None:
    assert 1e8 < estimate.matrix_rate(0.05) < 1e16


@pytest.mark.real
def test_a_real_model_is_measured_without_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.find("smollm2-135m-instruct")
    monkeypatch.setattr(estimate, "matrix_rate", lambda: 1e12)
    found = plan(MagpieConfig(model="smollm2-135m-instruct", out=tmp_path / "d", rows=512))
    assert found.verdict == "start"
    assert found.weights_bytes in (134_515_008 * 2, 134_515_008 * 4)
    assert found.seconds == pytest.approx(
        sum(found.tokens.values()) * 2 * 134_515_008 / (1e12 * planning.estimate.EFFICIENCY)
    )
    assert (found.license, found.download_bytes) == ("apache-2.0", 0)
    assert not (tmp_path / "d").exists()
