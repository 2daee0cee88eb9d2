"""LIFT: every limit is true to its row, and evaluation finds the answers that break theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ojak.artifact import publish, verify
from ojak.augment.lift import LiftConfig, lift_data, lifted
from ojak.cli.app import app
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused
from ojak.evaluate.answers import VIOLATION, ask, question_of, summary
from ojak.formats import template_turns
from ojak.records import Conversation, Document, Message, Preference
from ojak.rules.lengths import Limit, limit_of

WORDS = st.lists(st.sampled_from(["one", "two's", "3", "four-five", "\n", "날개"]), max_size=12).map(" ".join)
CONFIGS = st.builds(
    LiftConfig,
    unit=st.sampled_from(["words", "characters"]),
    wording=st.sampled_from(["paper", "varied"]),
    slack=st.sampled_from([0.0, 0.25, 2.0]),
    both_fit=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 50),
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def says(text: str) -> Message:
    return Message(role="assistant", content=text)


def pair(better: str, worse: str, name: str = "p") -> Preference:
    return Preference(
        name, [user("Why?")], [says(better)], [says(worse)], scores={"chosen": 2, "rejected": 1}
    )


def by_hand(text: str, unit: str) -> int:
    """The length, counted in another way."""
    if unit == "characters":
        return len(re.sub(r"^\s+|\s+$", "", text))
    return len(re.findall(r"[a-z]+'s|[a-z]+|\d|날개", text))


def test_a_row_takes_one_limit_alone() -> None:
    made = lifted(pair("one two", "one two three four"), LiftConfig())
    assert isinstance(made, Preference) and lifted(made, LiftConfig()) == "has_a_limit"


def test_what_was_lifted_is_not_lifted_again(tmp_path: Path) -> None:
    publish(tmp_path / "in", kind="rows", records=[pair("one two", "one two three four")], config={})
    once = lift_data(tmp_path / "in", tmp_path / "once", LiftConfig(originals="all")).path
    with pytest.raises(InputRefused, match="was made by `ojak lift`"):
        lift_data(once, tmp_path / "twice")


@settings(max_examples=150, deadline=None)
@given(better=WORDS, worse=WORDS, how=CONFIGS)
def test_a_limit_decides_a_preference_or_fits_both(better: str, worse: str, how: LiftConfig) -> None:
    made = lifted(pair(better, worse), how)
    sizes = {text: by_hand(text, how.unit) for text in (better, worse)}
    if isinstance(made, str):
        assert made == ("same_length" if all(sizes.values()) else "empty_answer")
        assert made == "empty_answer" or sizes[better] == sizes[worse]
        return
    limit, facts = limit_of(made.meta), made.meta["lift"]
    assert isinstance(made, Preference) and limit is not None and limit.unit == how.unit
    chosen, rejected = (sizes[turns[0]["content"]] for turns in (made.chosen, made.rejected))
    assert (facts["chosen"], facts["rejected"]) == (chosen, rejected)
    assert chosen <= limit.most  # who breaks the limit never wins
    if facts["case"] == "both_fit":
        assert rejected <= limit.most and made.chosen[0]["content"] == better
    else:
        assert rejected > limit.most
        assert (facts["case"] == "flipped") == (sizes[better] > sizes[worse]) == (made.scores == {})
    assert re.search(rf"\b{limit.most} {how.unit[:-1]}s?\b", made.prompt[-1]["content"])
    assert "Why?" in made.prompt[-1]["content"]
    assert lifted(pair(better, worse), how) == made


@settings(max_examples=60, deadline=None)
@given(answer=WORDS, how=CONFIGS)
def test_a_conversation_keeps_its_limit(answer: str, how: LiftConfig) -> None:
    row = Conversation(
        "c", [user("First?"), says("x"), user("Add it.\n2, 3"), says(answer)], meta={"alpaca_input": "2, 3"}
    )
    made = lifted(row, how)
    length = by_hand(answer, how.unit)
    if not length:
        assert made == "empty_answer"
        return
    assert isinstance(made, Conversation)
    limit = limit_of(made.meta)
    assert limit is not None and length <= limit.most <= length * (1 + how.slack)
    assert made.messages[:2] == row.messages[:2] and made.messages[3] == row.messages[3]
    assert template_turns(made)[2]["input"] == "2, 3"  # what a template sets apart is still at the end


def test_all_limits_between_the_lengths_come_up() -> None:
    rows = [pair("one two three four five", "one two", f"p{i}") for i in range(200)]
    limits = [
        made.meta["lift"]["limit"]
        for row in rows
        if not isinstance(made := lifted(row, LiftConfig(both_fit=0)), str)
    ]
    assert sorted(set(limits)) == [2, 3, 4] and min(limits.count(n) for n in (2, 3, 4)) > 40
    cases = [lifted(row, LiftConfig(both_fit=0.25)).meta["lift"]["case"] for row in rows]  # type: ignore[union-attr]
    assert 30 < cases.count("both_fit") < 70


def rows() -> dict[str, list[Conversation]]:
    made = [Conversation(f"c{i}", [user(f"Say {i}"), says("ok " * i)]) for i in range(8)]
    return {"train": made[2:], "test": made[:2]}


def test_the_folder_holds_what_it_says(folder: Path) -> None:
    publish(folder / "in", kind="split", splits=rows(), config={})
    made = verify(lift_data(folder / "in", folder / "out").path)
    assert made.splits == {
        "train": 12,
        "test": 1,
    }  # originals beside limits to train on, limits alone to test
    assert (made.counts["rejected"], made.stats["limited"]) == ({"empty_answer": 1}, 7)
    assert [record.id for record in made.records("train")][:2] == ["c2", "c2-lift"]
    again = lift_data(folder / "in", folder / "again", LiftConfig(originals="all"))
    assert again.splits == {"train": 12, "test": 3} and not again.counts["rejected"]
    publish(folder / "texts", kind="corpus", records=[Document("d", "text")], config={})
    with pytest.raises(InputRefused, match="documents"):
        lift_data(folder / "texts", folder / "none")


def test_the_command(folder: Path) -> None:
    row = {"prompt": [user("q")], "chosen": [says("a long answer")], "rejected": [says("short")]}
    Path("d.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(row | {"chosen": [says("brief")]}) + "\n", "utf-8"
    )
    command = ["lift", "d.jsonl", "--both-fit", "0", "--json", "--out"]
    done = CliRunner().invoke(app, [*command, "out", "--originals", "none"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cases"] == {"train": {"flipped": 1, "same_length": 1}}
    assert CliRunner().invoke(app, [*command, "out"]).exit_code == 2  # it is there
    Path("d.jsonl").write_text(json.dumps(row | {"chosen": [says("brief")]}) + "\n", "utf-8")
    assert CliRunner().invoke(app, [*command, "other"]).exit_code == 3


# ------------------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("meta", [{}, {"lift": 3}, {"lift": {"limit": True, "unit": "words"}},
                                  {"lift": {"limit": 0, "unit": "words"}}, {"lift": {"limit": 3, "unit": "tokens"}},
                                  {"lift": {"limit": 3, "unit": ["words"]}}])  # fmt: skip
def test_what_is_no_limit_is_none(meta: dict[str, Any]) -> None:
    assert limit_of(meta) is None


def test_evaluation_counts_answers_over_their_limit() -> None:
    texts = ["one two three", "one two three", "one two three", "1"]
    limits = [
        {"limit": 3, "unit": "words"},
        {"limit": 2, "unit": "words"},
        {"limit": 12, "unit": "characters"},
        None,
    ]
    kept = [
        Conversation(f"c{i}", [user(f"q{i}")], meta={"lift": limit} if limit else {})
        for i, limit in enumerate(limits)
    ]
    engine = ScriptedEngine(lambda request: texts[int(str(request.prompt).split("user\nq")[1][0])])
    answers, skipped = ask(engine, filter(None, map(question_of, kept)), max_tokens=20)
    assert [each.scores.get(VIOLATION) for each in answers] == [0.0, 1.0, 1.0, None]
    found = summary(answers, skipped)
    assert found["length_violations"][0] == pytest.approx(2 / 3)
    assert found["length_ratio"]["mean"] == pytest.approx((1 + 1.5 + 13 / 12) / 3, abs=1e-5)
    assert limit_of(answers[1].question.conversation("").meta) == Limit(2, "words")
    assert "length_violations" not in summary(answers[3:], {})
