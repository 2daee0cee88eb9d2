"""Preference pairs: what is chosen, what stands against it, and the reason for each instruction that gives none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.artifact import Artifact, publish, verify
from ojak.curate.pairs import Asked, PairsConfig, asked_of, make_pairs, pair
from ojak.engines.base import Scored
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, UsageError
from ojak.records import Conversation, Message, Preference
from scripted_runs import run


def row(name: str, *texts: str, scores: list[float] | None = None, **more: Any) -> Conversation:
    """A row with these answers, each with a score `grade` if there are any."""
    answers = [
        {"text": text, "reason": None, "tokens": len(text.split())}
        | ({"scores": {"grade": scores[n]}} if scores else {})
        for n, text in enumerate(texts)
    ]
    turns: list[Message] = [
        {"role": "user", "content": f"Ask {name}?"},
        {"role": "assistant", "content": texts[0]},
    ]
    return Conversation(name, turns, "magpie", {"answers": [answers], **more})


def made(tmp_path: Path, rows: list[Conversation], **config: Any) -> Artifact:
    publish(tmp_path / "in", kind="magpie", records=rows, config={})
    return make_pairs(tmp_path / "in", tmp_path / "out", PairsConfig(**config))


def preferences(artifact: Artifact) -> dict[str, Preference]:
    return {record.id: record for record in artifact.records() if isinstance(record, Preference)}


# -- one instruction ----------------------------------------------------------------------------------------------------


def asked(*texts: str) -> Asked:
    (found,) = asked_of(row("a", *texts))
    return found


def test_the_best_stands_against_the_worst() -> None:
    found = pair(asked("one", "two", "three", "four"), [0.1, 0.9, -0.3, 0.2], PairsConfig())
    assert isinstance(found, Preference)
    assert found.prompt == [{"role": "user", "content": "Ask a?"}]
    assert found.chosen == [{"role": "assistant", "content": "two"}]
    assert found.rejected == [{"role": "assistant", "content": "three"}]
    assert found.scores == {"chosen": 0.9, "rejected": -0.3, "margin": pytest.approx(1.2)}
    assert (found.meta["chosen_sample"], found.meta["rejected_sample"], found.meta["answers"]) == (1, 2, 4)


@pytest.mark.parametrize(("quantile", "text"), [(0, "e"), (0.25, "f"), (0.5, "d"), (1, "b")])
def test_a_quantile_of_the_others(quantile: float, text: str) -> None:
    config = PairsConfig(rejected="quantile", quantile=quantile)
    found = pair(asked("a", "b", "c", "d", "e", "f"), [6, 5, 4, 3, 1, 2], config)
    assert isinstance(found, Preference)
    assert found.rejected[0]["content"] == text


@pytest.mark.parametrize(
    ("texts", "scores", "config", "reason"),
    [
        (["one"], [1.0], {}, "one_answer"),
        (["One, two.", "one two"], [1.0, 0.0], {}, "one_answer"),
        (["one", "two"], [1.0, 1.0], {}, "tie"),
        (["one", "two"], [1.0, None], {}, "no_score"),
        (["one", "two"], [1.0, 0.6], {"margin": 0.5}, "margin"),
        (["a" * 10, "b" * 21], [1.0, 0.0], {"length_ratio": 2}, "length_ratio"),
        (["a" * 21, "b" * 10], [1.0, 0.0], {"length_ratio": 2}, "length_ratio"),
    ],
)
def test_what_makes_no_pair_has_a_reason(
    texts: list[str], scores: list[float | None], config: dict[str, Any], reason: str
) -> None:
    found = asked(*texts)
    assert pair(found, scores[: len(found.answers)], PairsConfig(**config)) == reason


def test_the_cap_on_lengths_looks_for_another_one() -> None:
    found = pair(asked("aaaa", "b" * 9, "cccccc"), [1.0, 0.0, 0.5], PairsConfig(length_ratio=2))
    assert isinstance(found, Preference)
    assert found.rejected[0]["content"] == "cccccc"


def test_margin_and_cap_are_met_at_the_border() -> None:
    assert isinstance(
        pair(asked("aa", "bbbb"), [1.0, 0.5], PairsConfig(margin=0.5, length_ratio=2)), Preference
    )


SCORES = st.lists(st.floats(-9, 9) | st.none(), min_size=1, max_size=8)


@settings(max_examples=200)
@given(
    scores=SCORES,
    margin=st.floats(0, 3),
    quantile=st.floats(0, 1),
    rejected=st.sampled_from(["worst", "quantile"]),
    ratio=st.none() | st.floats(1, 4),
)
def test_every_pair_keeps_its_promises(
    scores: list[float | None], margin: float, quantile: float, rejected: Any, ratio: float | None
) -> None:
    texts = [f"{chr(97 + n)}" * (1 + n * n) for n in range(len(scores))]
    config = PairsConfig(margin=margin, quantile=quantile, rejected=rejected, length_ratio=ratio)
    found = pair(asked(*texts), scores, config)
    known = [score for score in scores if score is not None]
    if isinstance(found, str):
        assert found != "tie" or len(known) >= 2
        return
    best, worse = found.scores["chosen"], found.scores["rejected"]
    assert best == max(known)
    assert best > worse
    assert best - worse >= margin
    lengths = sorted(len(side[0]["content"]) for side in (found.chosen, found.rejected))
    assert ratio is None or lengths[1] <= ratio * lengths[0]
    assert scores[found.meta["chosen_sample"]] == best
    if rejected == "worst" and ratio is None:
        assert worse == min(known)


# -- a folder -----------------------------------------------------------------------------------------------------------


def test_pairs_of_a_folder_by_a_score_of_the_answers(tmp_path: Path) -> None:
    rows = [
        row("a", "Short one.", "A longer one.", scores=[0.2, 0.8]),
        row("b", "Same.", "same", scores=[0.2, 0.8]),
        row("c", "One.", "Two.", scores=[0.5, 0.5]),
        row("d", "Alone."),
    ]
    artifact = made(tmp_path, rows, by="grade")
    assert artifact.kind == "pairs"
    assert artifact.counts == {
        "rows": 4,
        "accepted": 1,
        "rejected": {"one_answer": 2, "tie": 1},
        "failed": 0,
    }
    (found,) = preferences(artifact).values()
    assert (found.id, found.chosen[0]["content"], found.source) == ("a", "A longer one.", "magpie")
    verify(tmp_path / "out")


def test_answers_that_rules_rejected_take_no_part(tmp_path: Path) -> None:
    bad = row("a", "One.", "Two.", "Three.", scores=[0.1, 0.9, 0.5])
    bad.meta["answers"][0][1]["reason"] = "response_cut"
    (found,) = preferences(made(tmp_path, [bad], by="grade")).values()
    assert (found.chosen[0]["content"], found.rejected[0]["content"]) == ("Three.", "One.")


@pytest.mark.parametrize(("by", "best"), [("response_chars", "eeeeeeeee"), ("response_tokens", "a b c d")])
def test_pairs_by_length(tmp_path: Path, by: str, best: str) -> None:
    (found,) = preferences(made(tmp_path, [row("a", "a b c d", "eeeeeeeee")], by=by)).values()
    assert found.chosen[0]["content"] == best


def test_each_turn_of_a_conversation_has_its_own_pair(tmp_path: Path) -> None:
    record = row("a", "One.", "Two.", scores=[0.1, 0.9])
    record.meta["answers"].append(
        [{"text": t, "reason": None, "scores": {"grade": s}} for t, s in (("x", 2), ("y", 1))]
    )
    record.messages[:0] = [{"role": "system", "content": "S"}]
    record.messages.extend([{"role": "user", "content": "More?"}, {"role": "assistant", "content": "x"}])
    found = preferences(made(tmp_path, [record], by="grade"))
    assert list(found) == ["a", "a-turn-2"]
    assert [turn["role"] for turn in found["a"].prompt] == ["system", "user"]
    assert found["a-turn-2"].prompt == record.messages[:-1]
    assert (found["a-turn-2"].meta["row"], found["a-turn-2"].meta["turn"]) == ("a", 2)


def test_rows_with_one_answer_are_refused_before_any_work(tmp_path: Path) -> None:
    plain = Conversation("a", [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    with pytest.raises(InputRefused, match="one answer to each instruction"):
        made(tmp_path, [plain])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answers", [[[{"text": 3}]], [["x"]], ["x"], [[], [], []]])
def test_answers_of_another_form_are_refused(tmp_path: Path, answers: Any) -> None:
    record = row("a", "One.")
    record.meta["answers"] = answers
    with pytest.raises(InputRefused, match="row 'a'"):
        made(tmp_path, [record], by="grade")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_score_that_nobody_gives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no answer has a score 'nonsense'"):
        made(tmp_path, [row("a", "One.", "Two.")], by="nonsense")
    assert not (tmp_path / "out" / "manifest.json").exists()


# -- an engine's scores -------------------------------------------------------------------------------------------------


class Reader(ScriptedEngine):
    """Refuses long texts, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Scored] = []

    def score(self, texts: Any) -> Any:
        for text in texts:
            self.shown.append(text)
            if "longest" in text.continuation:
                raise UsageError("too long")
            yield from super().score([text])


def test_gain_is_what_the_instruction_adds(tmp_path: Path) -> None:
    """The engine gives -1 to a word that the prompt has, -3 to others: the gain is 2 for each word of the question."""
    record = row("a", "Ask a? indeed", "nothing of it", "Ask one more thing")
    publish(tmp_path / "in", kind="magpie", records=[record], config={})
    engine = Reader()
    artifact = make_pairs(tmp_path / "in", tmp_path / "gain", engine=engine)
    (found,) = preferences(artifact).values()
    # "a?" ends with the user's turn in the prompt, so that only "Ask" might be known: it opens that turn.
    prompts = [str(text.prompt) for text in engine.shown]
    assert prompts[:3] == ["<|im_start|>user\nAsk a?<|im_end|>\n<|im_start|>assistant\n"] * 3
    assert prompts[3:] == ["<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"] * 3
    gains = {"Ask a? indeed": 2 / 3, "nothing of it": 0.0, "Ask one more thing": 2 / 4}
    assert found.scores["chosen"] == pytest.approx(max(gains.values()))
    assert found.scores["rejected"] == pytest.approx(0.0)
    likely = preferences(
        make_pairs(tmp_path / "in", tmp_path / "l", PairsConfig(by="likelihood"), engine=engine)
    )
    assert likely["a"].scores["chosen"] == pytest.approx(-3 + 2 / 3)


def test_a_text_that_the_engine_refuses_has_no_score(tmp_path: Path) -> None:
    rows = [row("a", "Ask a? indeed", "the longest", "nothing"), row("b", "Ask b?", "the longest")]
    publish(tmp_path / "in", kind="magpie", records=rows, config={})
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", engine=Reader())
    assert artifact.counts["rejected"] == {"no_score": 1}
    assert list(preferences(artifact)) == ["a"]


class Calibration:
    def __init__(self, usable: bool) -> None:
        self.usable = usable


class LengthJudge:
    """Grades by length, and none at all to what it cannot read."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def judge(self, conversations: Any) -> Any:
        for each in conversations:
            asked, answer = (turn["content"] for turn in each.messages)
            assert asked.startswith("Ask")
            yield each, None if "unreadable" in answer else float(len(answer))


def judged(monkeypatch: pytest.MonkeyPatch, calibration: Calibration | None) -> None:
    """A judge package in the place of the real one."""
    fake = SimpleNamespace(Judge=LengthJudge, load_calibration=lambda identity: calibration)
    monkeypatch.setitem(sys.modules, "ojak.judge", fake)  # type: ignore[arg-type]


def test_a_judge_that_passed_its_calibration_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, Calibration(usable=True))
    publish(tmp_path / "in", kind="magpie", records=[row("a", "12", "1234", "unreadable", "1")], config={})
    artifact = make_pairs(
        tmp_path / "in", tmp_path / "out", PairsConfig(by="judge_score"), engine=ScriptedEngine()
    )
    (found,) = preferences(artifact).values()
    assert (found.chosen[0]["content"], found.rejected[0]["content"]) == ("1234", "1")
    assert found.meta["answers"] == 3


@pytest.mark.parametrize(
    ("calibration", "why"), [(None, "never calibrated"), (Calibration(usable=False), "did not pass")]
)
def test_a_judge_that_did_not_is_refused_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: Calibration | None, why: str
) -> None:
    judged(monkeypatch, calibration)
    publish(tmp_path / "in", kind="magpie", records=[row("a", "12", "1234")], config={})
    engine, config = ScriptedEngine(), PairsConfig(by="judge_score")
    with pytest.raises(UsageError, match="may not decide") as caught:
        make_pairs(tmp_path / "in", tmp_path / "out", config, engine=engine)
    assert why in caught.value.why
    assert not (tmp_path / "out").exists()
    trusted = config.model_copy(update={"trust_anyway": True})
    assert make_pairs(tmp_path / "in", tmp_path / "out", trusted, engine=engine).counts["accepted"] == 1


def test_from_magpie_to_pairs_without_a_word_in_between(tmp_path: Path) -> None:
    rows = run(tmp_path / "in", 12, responses=4, turns=2)
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", PairsConfig(by="likelihood"))
    assert artifact.counts["rows"] >= rows.counts["accepted"]
    assert artifact.stats["engine"]["engine"] == "scripted"
    for record in preferences(artifact).values():
        assert record.prompt[-1]["role"] == "user"
        assert record.chosen != record.rejected


@pytest.mark.parametrize(
    "wrong", [{"margin": -1}, {"quantile": 2}, {"length_ratio": 0.5}, {"rejected": "best"}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} cannot be"):
        PairsConfig(**wrong)
