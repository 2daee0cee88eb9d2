"""Magpie over the scripted engine: the order of its steps, what it keeps, and that stopping anywhere changes nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak._progress import Progress
from ojak.artifact import verify
from ojak.chat import ChatPrefix
from ojak.engines.base import Capabilities
from ojak.engines.native import row_seed
from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.errors import InputRefused, ResumeRefused, Stopped, TargetExists, UsageError
from ojak.ledger import Ledger
from ojak.model.request import Completion, Request
from ojak.records import Conversation
from ojak.synthesize import magpie
from ojak.synthesize.folder import LEDGER
from ojak.synthesize.run import summary, synthesize_magpie
from ojak.synthesize.systems import DOMAINS, LANGUAGES
from scripted_runs import MULTI_LINE, SCRIPT, Recorder, answers, config, data, fates, ledger_state, run

ROWS = 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The data of a run that nothing interrupted."""
    return data(run(tmp_path_factory.mktemp("whole") / "d", ROWS))


# -- the steps ----------------------------------------------------------------------------------------------------------


def test_every_row_meets_its_fate(tmp_path: Path) -> None:
    artifact = run(tmp_path, len(SCRIPT))
    assert fates(artifact) == {row: fate for row, (_, fate) in enumerate(SCRIPT)}
    counts = artifact.counts
    assert (
        counts["rows"]
        == len(SCRIPT)
        == counts["accepted"] + sum(counts["rejected"].values()) + counts["failed"]
    )
    verify(tmp_path)


def test_only_rows_that_passed_are_answered(tmp_path: Path) -> None:
    engine = Recorder()
    run(tmp_path, len(SCRIPT), engine=engine)
    answered = {row for row, kind in engine.log if kind == "response"}
    assert answered == {row for row, (_, fate) in enumerate(SCRIPT) if fate in ("accepted", "response_empty")}
    assert len(engine.log) == len(set(engine.log))
    for row in answered:
        assert engine.log.index((row, "instruction")) < engine.log.index((row, "response"))


def test_responses_come_before_new_instructions(tmp_path: Path) -> None:
    """With one slot, a response is asked for as soon as its instruction is judged."""
    engine = Recorder(slots=1)
    run(tmp_path, 2, engine=engine)
    assert engine.log == [(0, "instruction"), (0, "response"), (1, "instruction"), (1, "response")]


def test_the_prompts_are_the_template_around_the_cleaned_instruction(tmp_path: Path) -> None:
    engine = Recorder()
    run(tmp_path, len(SCRIPT), engine=engine)
    prefix = engine.chat_prefix()
    by_tag = {request.tag: request for request in engine.requests}
    assert by_tag[6, "instruction"].prompt == prefix.pre_query
    assert by_tag[6, "response"].prompt == (
        f"{prefix.pre_query}Explain why the sky is blue in the evening.{prefix.post_query}"
    )
    assert by_tag[1, "response"].prompt == prefix.pre_query + MULTI_LINE + prefix.post_query
    assert {request.stop_strings for request in engine.requests} == {prefix.stop_strings}


@settings(max_examples=25, deadline=None)
@given(shuffle_seed=st.integers(0, 2**32), slots=st.integers(1, 40))
def test_the_order_of_completion_changes_nothing(
    whole: dict[str, str], shuffle_seed: int, slots: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        artifact = run(Path(folder), ROWS, engine=Recorder(slots=slots, shuffle_seed=shuffle_seed))
        assert data(artifact) == whole


class Backwards(Recorder):
    """The latest of the requests in flight finishes first."""

    def generate(self, requests: Any, *, longest: int) -> Any:
        self._order.randrange = lambda size: size - 1  # type: ignore[method-assign]
        return super().generate(requests, longest=longest)


def test_of_two_duplicates_the_earlier_row_stays_even_if_the_later_one_is_there_first(tmp_path: Path) -> None:
    engine = Backwards(
        lambda r: "Explain how tides work to a child." if r.tag[1] == "instruction" else "By the moon."
    )
    artifact = run(tmp_path, 6, engine=engine)
    assert engine.log[0] == (5, "instruction")
    assert fates(artifact) == {0: "accepted", **{row: "duplicate_exact" for row in range(1, 6)}}


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_multi_line_instructions_survive(tmp_path: Path) -> None:
    rows = {record.meta["row"]: record for record in run(tmp_path, 4).records()}
    record = rows[1]
    assert isinstance(record, Conversation)
    assert record.messages[0] == {"role": "user", "content": MULTI_LINE}


def test_a_row_carries_all_that_made_it(tmp_path: Path) -> None:
    settings = config(tmp_path, len(SCRIPT), seed=7, grid="0.5:0.9,1.0:1.0", first_temperature=1.2)
    engine = Recorder()
    artifact = synthesize_magpie(settings, engine=engine)
    record = {record.meta["row"]: record for record in artifact.records()}[6]
    assert isinstance(record, Conversation)
    assert record.source == "magpie"
    assert record.messages == [
        {"role": "user", "content": "Explain why the sky is blue in the evening."},
        {"role": "assistant", "content": "The answer to number 6, in full."},
    ]
    assert record.meta == {
        "method": "magpie",
        "row": 6,
        **engine.identity,
        "seed": {"instruction": row_seed(7, 6, "instruction", 0), "response": row_seed(7, 6, "response", 0)},
        "sampling": {
            "instruction": {"temperature": 0.5, "top_p": 0.9, "first_temperature": 1.2},
            "response": {"temperature": 0.0, "top_p": 1.0},
        },
        "finish_reason": {"instruction": "stop", "response": "stop"},
        "tokens": {
            "instruction": 11,
            "response": 11,
        },  # ten words and the stop, seven with two blanks around them
        "prompt_tokens": {"instruction": 1, "response": 11},  # words; a header is one
        "edits": ["enumerator", "emphasis"],
        "raw": {"instruction": "1. **Explain why the sky is blue in the evening.**"},
    }


def test_rejected_rows_keep_reason_stage_and_raw_text(tmp_path: Path) -> None:
    found = {record.meta["row"]: record for record in run(tmp_path, len(SCRIPT)).rejected()}
    assert (found[7].stage, found[7].text) == ("instruction", SCRIPT[7][0])
    assert found[3].meta["raw"] == {"instruction": SCRIPT[3][0]}
    assert set(found[7].meta["seed"]) == set(found[7].meta["tokens"]) == {"instruction"}
    assert (found[9].stage, found[9].reason, found[9].text) == ("response", "response_empty", "")
    assert [m["role"] for m in found[9].messages] == ["user", "assistant"]
    assert set(found[9].meta["finish_reason"]) == {"instruction", "response"}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"system": "@math"}, DOMAINS["@math"]),
        ({"language": "de"}, LANGUAGES["de"]),
        ({"system": "You sell bicycles."}, "You sell bicycles."),
    ],
)
def test_the_system_turn_is_sent_and_stored(tmp_path: Path, asked: dict[str, Any], text: str) -> None:
    engine = Recorder()
    artifact = run(tmp_path, len(SCRIPT), engine=engine, **asked)
    assert all(text in str(request.prompt) for request in engine.requests)
    turns = [record.messages for record in artifact.records() if isinstance(record, Conversation)]
    assert turns
    for messages in [*turns, *(record.messages for record in artifact.rejected())]:
        assert messages[0] == {"role": "system", "content": text}
        assert messages[1]["role"] == "user"


def test_without_one_no_system_turn_is_stored(tmp_path: Path) -> None:
    for record in run(tmp_path, 2).records():
        assert isinstance(record, Conversation)
        assert [m["role"] for m in record.messages] == ["user", "assistant"]


def test_a_failed_request_is_counted_as_failed_and_not_sent_again(tmp_path: Path) -> None:
    run(tmp_path, 12)
    with Ledger(tmp_path / LEDGER) as ledger:
        asked = {(e.row, e.kind): e for e in ledger.entries()}
        for tag in ((11, "instruction"), (10, "response")):
            entry = asked[tag]
            ledger.put(
                type(entry)(
                    entry.key, *tag, "failed", entry.max_tokens, None, "", 0, 1, payload={"error": "no"}
                )
            )
    engine = Recorder()
    artifact = run(tmp_path, 13, engine=engine)
    assert {row for row, _ in engine.log} == {12}
    assert artifact.counts["failed"] == 2
    assert artifact.counts["rows"] == 13
    assert not {10, 11} & fates(artifact).keys()


def test_totals_count_every_token_also_of_rejected_rows_and_of_earlier_runs(tmp_path: Path) -> None:
    run(tmp_path, 6)
    artifact = run(tmp_path, len(SCRIPT))
    told = summary(artifact)
    with Ledger(tmp_path / LEDGER) as ledger:
        entries = list(ledger.entries())
    assert told["completion_tokens"] == sum(e.token_count for e in entries)
    assert told["completion_tokens"] == told["instruction_tokens"] + told["response_tokens"]
    assert (told["rows"], told["failed"], told["out"]) == (len(SCRIPT), 0, str(tmp_path))
    assert told["seconds"] > 0
    assert told["stopped"] is None


# -- seeds and growth ---------------------------------------------------------------------------------------------------


def test_seeds_are_a_function_of_run_row_and_turn(tmp_path: Path) -> None:
    engine = Recorder()
    run(tmp_path, 20, engine=engine, seed=3)
    for request in engine.requests:
        assert request.seed == row_seed(3, *request.tag, 0)
    assert len({request.seed for request in engine.requests}) == len(engine.requests)
    assert all(0 <= request.seed < 2**63 for request in engine.requests)


def test_a_larger_run_begins_with_the_rows_of_a_smaller_one(tmp_path: Path) -> None:
    small = {r.id: r for r in run(tmp_path / "small", 12).records()}
    large = {r.id: r for r in run(tmp_path / "large", 30).records()}
    assert small
    assert small.items() <= large.items()


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    one, other = (run(tmp_path / str(s), 12, engine=ScriptedEngine(), seed=s) for s in (0, 1))
    assert not {r.id for r in one.records()} & {r.id for r in other.records()}
    assert data(one) != data(other)


def test_growing_rows_sends_only_the_new_ones_and_ends_as_if_begun_so(
    tmp_path: Path, whole: dict[str, str]
) -> None:
    run(tmp_path, 12)
    engine = Recorder()
    artifact = run(tmp_path, ROWS, engine=engine)
    assert {row for row, _ in engine.log} == set(range(12, ROWS))
    assert data(artifact) == whole


# -- caps ---------------------------------------------------------------------------------------------------------------


def lengthy(request: Request) -> str:
    """Row 2's question and row 3's answer are too long for small caps."""
    words = " ".join(f"word{n}" for n in range(30))
    if request.tag == (2, "instruction"):
        return f"Explain what these words have in common: {words}?"
    return f"Well, {words}." if request.tag == (3, "response") else scripted_text(request)


def test_a_larger_cap_reopens_the_rows_that_were_cut_and_only_them(tmp_path: Path) -> None:
    caps: dict[str, Any] = {"max_instruction_tokens": 24, "max_response_tokens": 24}
    first = run(tmp_path, 8, engine=Recorder(lengthy), **caps)
    assert fates(first)[2] == "instruction_cut"
    assert fates(first)[3] == "response_cut"
    before = {entry[:2]: entry for entry in ledger_state(tmp_path)}
    engine = Recorder(lengthy)
    second = run(tmp_path, 8, engine=engine, max_instruction_tokens=64, max_response_tokens=64)
    assert sorted(engine.log) == [(2, "instruction"), (2, "response"), (3, "response")]
    assert fates(second) == {row: "accepted" for row in range(8)}
    after = {entry[:2]: entry for entry in ledger_state(tmp_path)}
    assert all(after[tag] == entry for tag, entry in before.items() if tag not in engine.log)
    fresh = run(
        tmp_path / "b", 8, engine=Recorder(lengthy), max_instruction_tokens=64, max_response_tokens=64
    )
    assert data(second) == data(fresh)


@pytest.mark.parametrize("name", ["max_instruction_tokens", "max_response_tokens", "rows"])
def test_shrinking_is_refused(tmp_path: Path, name: str) -> None:
    caps: dict[str, Any] = {"rows": 8, "max_instruction_tokens": 64, "max_response_tokens": 64}
    before = run(tmp_path, **caps)
    with pytest.raises(ResumeRefused, match=rf"{name}: {caps[name]} -> {caps[name] - 1}") as caught:
        run(tmp_path, **{**caps, name: caps[name] - 1})
    assert caught.value.exit_code == 4
    assert verify(tmp_path) == before


# -- resume -------------------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    before = run(tmp_path, 8)
    with pytest.raises(ResumeRefused) as caught:
        run(tmp_path, 8, seed=5, grid="plain")
    assert caught.value.exit_code == 4
    assert set(caught.value.why.split("; ")) == {"seed: 0 -> 5", "grid: 'default' -> 'plain'"}
    assert verify(tmp_path) == before


class OtherWeights(Recorder):
    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "model_sha256": "1" * 64}


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 8)
    with pytest.raises(ResumeRefused, match=r"engine\.model_sha256: '000"):
        run(tmp_path, 9, engine=OtherWeights())


def test_a_folder_in_which_nothing_was_done_takes_other_settings(tmp_path: Path) -> None:
    """A refused model leaves nothing behind that would stand in the way of the next one."""
    with pytest.raises(InputRefused):
        run(tmp_path, 8, engine=WithoutTemplate(), seed=1)
    assert run(tmp_path, 8, seed=2).counts["rows"] == 8


def test_resume_always_wants_a_run_and_never_refuses_one(tmp_path: Path) -> None:
    with pytest.raises(ResumeRefused) as caught:
        run(tmp_path, 8, resume="always")
    assert caught.value.exit_code == 4
    before = run(tmp_path, 8, resume="never")
    with pytest.raises(TargetExists):
        run(tmp_path, 9, resume="never")
    assert verify(tmp_path) == before
    assert run(tmp_path, 9, resume="always").counts["rows"] == 9


def test_a_finished_run_is_given_back_without_work(tmp_path: Path) -> None:
    before = run(tmp_path, 8)
    engine = Recorder()
    assert run(tmp_path, 8, engine=engine, limit_tokens=1) == before
    assert engine.sent == 0


@pytest.mark.parametrize("name", ["data", "README.md"])
def test_a_folder_with_files_of_others_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    engine = Recorder()
    with pytest.raises(TargetExists, match=name):
        run(tmp_path, 8, engine=engine)
    assert engine.sent == 0


# -- budgets and signals ------------------------------------------------------------------------------------------------


def test_a_token_budget_stops_publishes_and_goes_on_to_the_same_data(
    tmp_path: Path, whole: dict[str, str]
) -> None:
    rounds, sent = 0, []
    while True:
        engine = Recorder(shuffle_seed=rounds)
        artifact = run(tmp_path, ROWS, engine=engine, limit_tokens=150)
        sent += engine.log
        verify(tmp_path)
        if not artifact.stats["stopped"]:
            break
        assert artifact.stats["stopped"] == "limit_tokens"
        assert artifact.counts["rows"] + artifact.stats["pending"] == ROWS
        rounds += 1
    assert 2 <= rounds < 20
    assert data(artifact) == whole
    assert len(sent) == len(set(sent))


def test_a_budget_of_minutes_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, str]
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    artifact = run(tmp_path, ROWS, limit_minutes=1)
    assert artifact.stats["stopped"] == "limit_minutes"
    assert 0 < artifact.counts["rows"] < ROWS
    assert data(run(tmp_path, ROWS)) == whole


class Endless(Recorder):
    """Steps and draws a token at each, and finishes nothing."""

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        self.drawn_tokens = 0  # as an engine does that is made ready for another length
        return self._steps(requests)

    def _steps(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        for _ in range(1000):
            next(requests)
            self.drawn_tokens += 1
        raise AssertionError("nothing stopped it")
        yield


def test_a_token_budget_counts_rows_in_flight(tmp_path: Path) -> None:
    engine = Endless()
    engine.drawn_tokens = 900
    artifact = run(tmp_path, 8, engine=engine, limit_tokens=50)
    assert (artifact.stats["stopped"], artifact.stats["pending"]) == ("limit_tokens", 8)
    assert engine.drawn_tokens == 50


def test_the_clock_is_looked_at_while_nothing_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    engine = Endless()
    assert run(tmp_path, 8, engine=engine, limit_minutes=1).stats["stopped"] == "limit_minutes"
    assert engine.drawn_tokens <= 60


def test_a_budget_that_lasts_to_the_last_row_has_stopped_nothing(tmp_path: Path) -> None:
    tokens = run(tmp_path / "a", 8).stats["completion_tokens"]
    artifact = run(tmp_path / "b", 8, limit_tokens=tokens)
    assert (artifact.stats["stopped"], artifact.stats["pending"]) == (None, 0)
    assert run(tmp_path / "c", 8, limit_tokens=tokens - 1).stats["stopped"] in (None, "limit_tokens")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_publishes_what_is_done_and_the_run_goes_on(
    tmp_path: Path, whole: dict[str, str], number: int
) -> None:
    engine = Recorder()

    def interrupted(request: Request) -> str:
        if engine.sent == 25:
            os.kill(os.getpid(), number)
        return answers(request)

    engine._answer = interrupted
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        run(tmp_path, ROWS, engine=engine)
    assert caught.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    stopped = verify(tmp_path)
    assert stopped.stats["stopped"] == "signal"
    assert 0 < stopped.counts["rows"] < ROWS
    again = Recorder()
    assert data(run(tmp_path, ROWS, engine=again)) == whole
    assert not set(engine.log[:-1]) & set(again.log)


def test_a_signal_amid_the_books_leaves_no_row_half_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes after the answer is in the ledger and before it is checked."""

    def check(*_text: object, **_more: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "response_echo"

    monkeypatch.setattr(magpie, "check_response", check)
    with pytest.raises(Stopped):
        run(tmp_path, 4)
    artifact = verify(tmp_path)
    assert artifact.counts["accepted"] == 0
    assert artifact.counts["rejected"]["response_echo"] == 1


# -- refusals -----------------------------------------------------------------------------------------------------------


class WithoutTemplate(Recorder):
    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        raise InputRefused("the model has no chat template", fix="use an instruction-tuned model")


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    engine = WithoutTemplate()
    with pytest.raises(InputRefused, match="no chat template") as caught:
        run(tmp_path, 8, engine=engine)
    assert caught.value.exit_code == 9
    assert engine.sent == 0
    assert not (tmp_path / "manifest.json").exists()


def test_an_engine_that_takes_no_raw_prompt_is_refused(tmp_path: Path) -> None:
    engine = Recorder()
    engine.capabilities = Capabilities(seed=True)
    with pytest.raises(UsageError, match="raw_prompt"):
        run(tmp_path / "new", 8, engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(InputRefused, match="no chat template"):
        run(tmp_path, 8, engine=WithoutTemplate())
    assert {path.name for path in tmp_path.iterdir()} <= {"notes.txt", ".lock"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match="no chat template"):
        run(tmp_path / "empty", 8, engine=WithoutTemplate())
    assert (tmp_path / "empty").is_dir()


def test_the_probe_refuses_a_model_that_writes_fragments(tmp_path: Path) -> None:
    engine = Recorder(lambda request: f"and then {request.tag[0]} of the", slots=4)
    with pytest.raises(InputRefused, match="does not write a user's turns") as caught:
        run(tmp_path, 500, engine=engine)
    assert caught.value.exit_code == 9
    assert (
        f"of its first {magpie.PROBE_ROWS} instructions {magpie.PROBE_ROWS} are unusable" in caught.value.why
    )
    assert "and then 0 of the" in caught.value.why
    assert engine.sent <= magpie.PROBE_ROWS + engine.slots
    assert not (tmp_path / "manifest.json").exists()


def mostly_fragments(good: int) -> Recorder:
    """Of the first rows so many write a question."""

    def answer(request: Request) -> str:
        row, kind = request.tag
        return (
            "and the" if kind == "instruction" and good <= row < magpie.PROBE_ROWS else scripted_text(request)
        )

    return Recorder(answer)


def test_the_probe_lets_a_middling_model_pass(tmp_path: Path) -> None:
    least = round(magpie.PROBE_ROWS * (1 - magpie.PROBE_REFUSED)) + 1
    assert run(tmp_path / "a", 20, engine=mostly_fragments(least)).counts["rows"] == 20
    with pytest.raises(InputRefused):
        run(tmp_path / "b", 20, engine=mostly_fragments(least - 2))


# -- progress -----------------------------------------------------------------------------------------------------------


def test_the_listener_hears_how_far_the_run_is(tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.seen: list[tuple[int, int, int]] = []

        def update(self, state: Progress) -> None:
            self.seen.append((state.rows_done, state.accepted, sum(state.rejected.values())))
            assert state.rows_total == ROWS
            self.last = state

    listener = Listener()
    artifact = synthesize_magpie(config(tmp_path, ROWS), engine=Recorder(), progress=listener)
    assert listener.seen == sorted(listener.seen)
    assert all(done == accepted + rejected for done, accepted, rejected in listener.seen)
    assert listener.last.completion_tokens == artifact.stats["completion_tokens"]
    assert listener.seen[-1][0] >= ROWS - 1


def test_finish_reasons_of_the_engine_are_kept(tmp_path: Path) -> None:
    artifact = run(tmp_path, 8, engine=Recorder(lengthy), max_response_tokens=24)
    cut = next(record for record in artifact.rejected() if record.reason == "response_cut")
    assert cut.meta["finish_reason"] == {"instruction": "stop", "response": "length"}
    assert cut.meta["tokens"]["response"] == 24
