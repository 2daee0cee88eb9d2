"""Conversations of several turns over the scripted engine: prompts, what ends them, growth, and that no stop matters."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.artifact import Artifact, verify
from ojak.chat import ChatPrefix
from ojak.engines.native import row_seed
from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.errors import InputRefused, ResumeRefused
from ojak.ledger import Ledger
from ojak.model.request import Request
from ojak.records import Conversation
from ojak.synthesize.folder import LEDGER
from ojak.synthesize.turns import FOLLOW_UP
from scripted_runs import Recorder, data, run

ROWS, TURNS = 16, 3
FIRST = "How do I repair the flat tyre of a bicycle on the road?"
SECOND = "Which tools should I carry with me for that?"
SAID = {
    "instruction": FIRST,
    "response": "  Take the wheel out and patch the tube. ",
    "instruction-2": SECOND,
    "response-2": "Two levers, a pump and patches.",
    "instruction-3": "And how long does a patch last?",
    "response-3": "For years, if it sits well.",
}


def says(**changed: str) -> Callable[[Request], str]:
    """One row's script; `instruction_2` changes what is said there."""
    said = SAID | {name.replace("_", "-"): text for name, text in changed.items()}
    return lambda request: said[request.tag[1]]


def one(out: Path, *, turns: int = TURNS, engine: Recorder | None = None, **said: str) -> Conversation:
    artifact = run(out, 1, engine=engine or Recorder(says(**said)), turns=turns)
    (record,) = artifact.records()
    assert isinstance(record, Conversation)
    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The data of a run of several turns that nothing interrupted."""
    return data(run(tmp_path_factory.mktemp("whole") / "d", ROWS, turns=TURNS))


# -- what is sent -------------------------------------------------------------------------------------------------------


def test_the_conversation_goes_on_after_each_answer(tmp_path: Path) -> None:
    record = one(tmp_path)
    assert [turn["role"] for turn in record.messages] == ["user", "assistant"] * TURNS
    assert [turn["content"] for turn in record.messages] == [text.strip() for text in SAID.values()]
    assert "turn_end" not in record.tags
    assert [turn["turn"] for turn in record.meta["turns"]] == [2, 3]
    assert record.meta["turns"][0]["raw"] == {"instruction": SECOND}


def chatml(system: str | None, turns: list[str], header: str) -> str:
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    roles = ("user", "assistant")
    said = "".join(f"<|im_start|>{roles[n % 2]}\n{text}<|im_end|>\n" for n, text in enumerate(turns))
    return f"{opening}{said}<|im_start|>{header}\n"


@pytest.mark.parametrize("system", [None, "You sell bicycles."])
def test_follow_ups_are_sampled_under_a_reminder_and_answered_without_it(
    tmp_path: Path, system: str | None
) -> None:
    engine = Recorder(says(), slots=1)
    run(tmp_path, 1, engine=engine, turns=2, system=system)
    said = [text.strip() for text in SAID.values()]
    reminder = f"{system} {FOLLOW_UP}" if system else FOLLOW_UP
    assert [request.prompt for request in engine.requests] == [
        chatml(system, [], "user"),
        chatml(system, said[:1], "assistant"),
        chatml(reminder, said[:2], "user"),
        chatml(system, said[:3], "assistant"),
    ]


class WithoutSystem(Recorder):
    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        if system is not None:
            raise InputRefused("the chat template is refused", why="it leaves out the system turn")
        return super().chat_prefix(system, turns=turns)


def test_a_template_without_system_turns_gets_no_reminder_and_its_contexts_are_used_again(
    tmp_path: Path,
) -> None:
    engine = WithoutSystem(says(), slots=1)
    run(tmp_path, 1, engine=engine, turns=2)
    said = [text.strip() for text in SAID.values()]
    assert engine.requests[2].prompt == chatml(None, said[:2], "user")
    assert [(r.keep, r.reuse) for r in engine.requests] == [(0, None), (0, 0), (0, 0), (None, 0)]


def test_an_answer_begins_with_the_context_of_the_answer_before(tmp_path: Path) -> None:
    """A follow-up has another system turn in front of it: of what the answer left, it could use nothing."""
    engine = Recorder(says(), slots=1)
    run(tmp_path, 1, engine=engine, turns=2)
    assert [(r.keep, r.reuse) for r in engine.requests] == [(0, None), (0, 0), (None, None), (None, 0)]


def test_every_request_has_its_own_seed(tmp_path: Path) -> None:
    engine = Recorder()
    run(tmp_path, ROWS, engine=engine, turns=TURNS, responses=2, seed=3)
    for request in engine.requests:
        row, kind = request.tag
        name, _, sample = kind.partition(".")
        assert request.seed == row_seed(3, row, name, int(sample or 0))
    assert len({request.seed for request in engine.requests}) == len(engine.requests)


# -- what ends it -------------------------------------------------------------------------------------------------------

BAD = [
    ({"instruction_2": "Sure, here is a list of tools."}, "instruction", "instruction_assistant_voice"),
    ({"instruction_2": "You're welcome! How can I help you?"}, "instruction", "instruction_assistant_voice"),
    ({"instruction_2": ""}, "instruction", "instruction_empty"),
    ({"instruction_2": "How do I repair the flat tyre of my bicycle on the road?"}, "instruction", "turn_repeats"),
    ({"instruction_2": SAID["response"].strip()}, "instruction", "turn_repeats"),
    ({"response_2": ""}, "response", "response_empty"),
    ({"response_2": SECOND}, "response", "response_echo"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "stage", "reason"), BAD, ids=[f"{b[2]}-{n}" for n, b in enumerate(BAD)])
def test_a_bad_turn_ends_the_conversation_before_it(
    tmp_path: Path, said: dict[str, str], stage: str, reason: str
) -> None:
    engine = Recorder(says(**said))
    record = one(tmp_path, engine=engine)
    assert [turn["content"] for turn in record.messages] == [FIRST, SAID["response"].strip()]
    assert record.tags == {"turn_end": reason}
    raw = next(iter(said.values()))
    assert record.meta["turn_end"] == {"turn": 2, "stage": stage, "reason": reason, "text": raw}
    stats = Artifact.open(tmp_path).stats
    assert (stats["turns"], stats["turn_ends"]) == ({"1": 1}, {reason: 1})
    assert engine.log[-1] == (0, "instruction-2" if stage == "instruction" else "response-2")


def test_a_bad_third_turn_leaves_two(tmp_path: Path) -> None:
    record = one(tmp_path, instruction_3=SECOND)
    assert len(record.messages) == 4
    assert record.meta["turn_end"]["turn"] == 3


def test_a_follow_up_may_point_at_what_was_said(tmp_path: Path) -> None:
    """Asked first, the same words would point at nothing (`instruction_content_missing`)."""
    assert len(one(tmp_path, turns=2, instruction_2="Please shorten the text above.").messages) == 4


def test_a_bad_first_turn_still_rejects_the_row(tmp_path: Path) -> None:
    artifact = run(tmp_path, 1, engine=Recorder(says(response="")), turns=TURNS)
    assert artifact.counts["rejected"] == {"response_empty": 1}


def test_a_failed_follow_up_keeps_the_turns_before(tmp_path: Path) -> None:
    one(tmp_path)
    with Ledger(tmp_path / LEDGER) as ledger:
        (entry,) = ledger.entries("instruction-2")
        values = (entry.key, 0, entry.kind, "failed", entry.max_tokens, None, "", 0, 1)
        ledger.put(type(entry)(*values, payload={"error": "no"}))
    run(tmp_path, 2, engine=Recorder(), turns=TURNS)
    record = next(iter(Artifact.open(tmp_path).records()))
    assert isinstance(record, Conversation)
    assert (len(record.messages), record.tags) == (2, {"turn_end": "failed"})


# -- caps and growth ----------------------------------------------------------------------------------------------------


def test_a_conversation_without_room_ends_and_a_larger_cap_goes_on(tmp_path: Path) -> None:
    caps: dict[str, Any] = {"turns": 3, "max_instruction_tokens": 40, "max_response_tokens": 60}
    small = Recorder(says())
    artifact = run(tmp_path, 1, engine=small, max_total_tokens=260, **caps)
    assert artifact.stats["turn_ends"] == {"turn_no_room": 1}
    assert artifact.stats["turns"] == {"2": 1}
    large = Recorder(says())
    artifact = run(tmp_path, 1, engine=large, max_total_tokens=1000, **caps)
    assert artifact.stats["turns"] == {"3": 1}
    assert large.log == [(0, "instruction-3"), (0, "response-3")]
    with pytest.raises(ResumeRefused, match="max_total_tokens: 1000 -> 999"):
        run(tmp_path, 1, engine=large, max_total_tokens=999, **caps)


class Short(Recorder):
    context_tokens = 260
    asked_for = 0

    def generate(self, requests: Any, *, longest: int) -> Any:
        self.asked_for = longest
        return super().generate(requests, longest=longest)


def test_the_model_s_context_is_a_cap_too(tmp_path: Path) -> None:
    engine = Short(says())
    caps = {"max_instruction_tokens": 40, "max_response_tokens": 60}
    artifact = run(tmp_path, 1, engine=engine, turns=3, **caps)
    assert artifact.stats["turn_ends"] == {"turn_no_room": 1}
    assert engine.asked_for == 260


@settings(max_examples=15, deadline=None)
@given(total=st.integers(170, 700), cap=st.integers(8, 40), turns=st.integers(2, 6), seed=st.integers(0, 99))
def test_no_request_is_longer_than_the_engine_was_told(total: int, cap: int, turns: int, seed: int) -> None:
    engine = Short()
    engine.context_tokens = total
    caps = {"max_instruction_tokens": 2 * cap, "max_response_tokens": cap + 5}
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), 6, engine=engine, turns=turns, seed=seed, **caps)
    for request in engine.requests:
        assert engine.count_tokens(str(request.prompt)) + request.max_tokens <= engine.asked_for


def test_more_turns_ask_only_what_is_new_and_keep_the_ids(tmp_path: Path) -> None:
    first = run(tmp_path / "a", ROWS)
    ids = {record.id for record in first.records()}
    engine = Recorder()
    grown = run(tmp_path / "a", ROWS, engine=engine, turns=TURNS)
    assert {kind for _, kind in engine.log} == {"instruction-2", "response-2", "instruction-3", "response-3"}
    assert {record.id for record in grown.records()} == ids
    assert data(grown) == data(run(tmp_path / "b", ROWS, turns=TURNS))
    with pytest.raises(ResumeRefused, match="turns: 3 -> 2"):
        run(tmp_path / "a", ROWS, turns=2)


# -- stops --------------------------------------------------------------------------------------------------------------


def test_the_whole_run_has_conversations_of_every_length(tmp_path: Path) -> None:
    """Otherwise the tests below would compare too little."""
    artifact = run(tmp_path, ROWS, turns=TURNS)
    assert set(artifact.stats["turns"]) == {"1", "3"}
    kept = Counter(str(len(r.messages) // 2) for r in artifact.records() if isinstance(r, Conversation))
    assert artifact.stats["turns"] == dict(sorted(kept.items()))
    verify(tmp_path)


@settings(max_examples=20, deadline=None)
@given(shuffle_seed=st.integers(0, 2**32), slots=st.integers(1, 40))
def test_the_order_of_completion_changes_nothing(
    whole: dict[str, str], shuffle_seed: int, slots: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Recorder(slots=slots, shuffle_seed=shuffle_seed)
        assert data(run(Path(folder), ROWS, engine=engine, turns=TURNS)) == whole


def test_a_budget_stops_amid_turns_and_the_run_goes_on_to_the_same_data(
    tmp_path: Path, whole: dict[str, str]
) -> None:
    sent: list[tuple[int, str]] = []
    stops = 0
    while True:
        engine = Recorder(shuffle_seed=stops)
        artifact = run(tmp_path, ROWS, engine=engine, turns=TURNS, limit_tokens=200)
        sent += engine.log
        verify(tmp_path)
        if not artifact.stats["stopped"]:
            break
        stops += 1
    assert 3 <= stops < 30
    assert len(sent) == len(set(sent))
    assert data(artifact) == whole


def test_a_scripted_run_reads_as_a_conversation() -> None:
    """The engine's own texts: a question after the user's header, a reply after the assistant's."""
    prefix = ScriptedEngine().chat_prefix(turns=2)
    request = Request(prompt=prefix.text(["a", "b"]), max_tokens=9)
    assert scripted_text(request).split()[0] in {
        "Explain", "Describe", "Compare", "Summarise", "Plan", "Write", "Give",
    }  # fmt: skip
