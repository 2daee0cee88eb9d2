"""Preference pairs: what is chosen, what stands against it, and the reason for each instruction that gives none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_ins
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import ReadingEngine, WritingEngine, material

from ojak._progress import Progress
from ojak.artifact import Artifact, publish, verify
from ojak.chat import encode_prompt
from ojak.curate import pairs
from ojak.curate.answers import Asked, asked_of
from ojak.curate.pairs import PairsConfig, make_pairs, pair, summary
from ojak.engines.base import Scored
from ojak.engines.native import NativeEngine
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.judge.kept import Calibration, judge_code, keep_calibration
from ojak.judge.prompts import Question, Row
from ojak.records import Conversation, Message, Preference
from scripted_runs import data, run

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


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


@pytest.mark.parametrize("answers", [[[{"text": 3}]], [["x"]], ["x"], [[], [], []], 3])
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


# -- a judge ------------------------------------------------------------------------------------------------------------


def by_length(_question: Question, row: Row) -> float:
    return min(1.0, len(row.response) / 10)


def calibrated(usable: bool) -> None:
    """Keeps what a calibration of the scripted engine would have found."""
    known: dict[str, Any] = {"code": judge_code(), "source": "bundled", "rows": 60, "seed": 0}
    auroc = (0.9, 0.8, 0.95) if usable else (0.5, 0.4, 0.6)
    identity = ScriptedEngine().identity
    keep_calibration(
        Calibration(identity=identity, **known, auroc={"shuffled": auroc}, overall=auroc, usable=usable)
    )


JUDGED = PairsConfig(by="judge_score")


@pytest.mark.usefixtures("folder")
def test_a_judge_that_passed_its_calibration_decides(tmp_path: Path) -> None:
    calibrated(usable=True)
    publish(tmp_path / "in", kind="magpie", records=[row("a", "12", "123456", "1234", "1")], config={})
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", JUDGED, engine=ReadingEngine(by_length))
    (found,) = preferences(artifact).values()
    assert (found.chosen[0]["content"], found.rejected[0]["content"]) == ("123456", "1")
    grades = found.meta["answer_scores"]
    assert sorted(grades, key=grades.__getitem__) == ["3", "0", "2", "1"]
    assert all(0 <= grade <= 100 for grade in grades.values())
    assert artifact.stats["calibrations"][0]["usable"] is True
    assert "0.9" in (tmp_path / "out/README.md").read_text("utf-8")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("usable", "why"), [(None, "has not been calibrated"), (False, "did not pass its calibration")]
)
def test_a_judge_that_did_not_is_refused_unless_told(tmp_path: Path, usable: bool | None, why: str) -> None:
    if usable is not None:
        calibrated(usable)
    publish(tmp_path / "in", kind="magpie", records=[row("a", "12", "123456")], config={})
    engine = ReadingEngine(by_length)
    with pytest.raises(UsageError, match="may not decide") as caught:
        make_pairs(tmp_path / "in", tmp_path / "out", JUDGED, engine=engine)
    assert why in caught.value.why
    assert not (tmp_path / "out").exists()
    trusted = JUDGED.model_copy(update={"trust_anyway": True})
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", trusted, engine=engine)
    assert artifact.counts["accepted"] == 1
    assert artifact.manifest["config"]["trust_anyway"] is True


def test_a_judge_sees_all_that_was_said_and_not_the_system_turn(tmp_path: Path) -> None:
    seen: list[Row] = []

    def note(_question: Question, shown: Row) -> float:
        seen.append(shown)
        return by_length(_question, shown)

    record = row("a", "One.", "Twoo.")
    record.messages[:0] = [{"role": "system", "content": "S"}]
    record.messages.extend([{"role": "user", "content": "More?"}, {"role": "assistant", "content": "x"}])
    record.meta["answers"].append([{"text": text, "reason": None} for text in ("x", "yyy")])
    publish(tmp_path / "in", kind="magpie", records=[record], config={})
    config = PairsConfig(by="judge_score", trust_anyway=True)
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", config, engine=ReadingEngine(note))
    assert list(preferences(artifact)) == ["a", "a-turn-2"]
    asked = list(dict.fromkeys(found.instruction for found in seen))
    assert asked == ["Ask a?", "Ask a?\n\nOne.\n\nMore?"]


def test_an_answer_that_a_judge_cannot_grade_has_no_score(tmp_path: Path) -> None:
    """A server cannot read labels' probabilities: it writes them, and not always one."""
    grades = {"good one": "good", "bad one": "bad"}

    def answer(request: Any) -> str:
        text = material(str(request.prompt))[-1].partition(": ")[2]
        return f" so so\nGrade: {grades[text]}" if text in grades else " I would rather not say"

    publish(tmp_path / "in", kind="magpie", records=[row("a", "bad one", "hm", "good one")], config={})
    config = PairsConfig(by="judge_score", trust_anyway=True)
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", config, engine=WritingEngine(answer))
    (found,) = preferences(artifact).values()
    assert found.chosen[0]["content"] == "good one"
    assert found.rejected[0]["content"] == "bad one"
    assert (found.meta["answer_scores"]["1"], found.meta["answers"]) == (None, 2)
    with pytest.raises(UsageError, match="no answer has a score 'judge_score'") as caught:
        make_pairs(tmp_path / "in", tmp_path / "none", config, engine=WritingEngine(lambda _request: " hm"))
    assert "the engine could read none" in caught.value.why


# -- a model ------------------------------------------------------------------------------------------------------------


def small() -> NativeEngine:
    model = tiny.model("llama", scale=0.15, max_position_embeddings=8192)
    model.chat_template = TEMPLATE
    return NativeEngine(model)


def mean(engine: NativeEngine, before: str, after: str) -> float:
    """The mean of log p of each token of `after`, by one plain forward pass."""
    model = engine.model
    prompt, rest = encode_prompt(model.tokenizer, before), model.tokenizer.encode(after)
    with torch.inference_mode():
        logs = model.decoder(torch.tensor([[*prompt, *rest]]))[0].double().log_softmax(-1)
    found = [float(logs[len(prompt) - 1 + place, token]) for place, token in enumerate(rest)]
    return sum(found) / len(found)


@pytest.mark.parametrize("by", ["likelihood", "instruction_gain"])
def test_scores_are_those_of_a_plain_forward_pass(tmp_path: Path, by: str) -> None:
    engine, texts = small(), ("One.", "Two, and more.", "Three")
    publish(tmp_path / "in", kind="magpie", records=[row("a", *texts)], config={})
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", PairsConfig(by=by), engine=engine)
    (found,) = preferences(artifact).values()
    around = engine.chat_prefix()
    for sample, text in enumerate(texts):
        expected = mean(engine, f"{around.pre_query}Ask a?{around.post_query}", text)
        if by == "instruction_gain":
            expected -= mean(engine, f"{around.pre_query}{around.post_query}", text)
        assert found.meta["answer_scores"][str(sample)] == pytest.approx(expected, abs=1e-4)


def test_a_real_judge_on_a_real_engine(tmp_path: Path) -> None:
    config = PairsConfig(by="judge_score", trust_anyway=True)
    artifact = made_with(tmp_path, [row("a", "One.", "Two, and more.", "Three")], config, small())
    grades = [found.meta["answer_scores"] for found in (*artifact.records(), *artifact.rejected())]
    assert [sorted(found) for found in grades] == [["0", "1", "2"]]
    assert all(0 < grade < 100 for grade in grades[0].values())


def made_with(tmp_path: Path, rows: list[Conversation], config: PairsConfig, engine: Any) -> Artifact:
    publish(tmp_path / "in", kind="magpie", records=rows, config={})
    return make_pairs(tmp_path / "in", tmp_path / "out", config, engine=engine)


# -- what a stop leaves -------------------------------------------------------------------------------------------------


class Stops(NativeEngine):
    """Is interrupted in the middle of the third time that it is shown texts."""

    shown = 0

    def score(self, texts: Any) -> Any:
        self.shown += 1
        for number, text in enumerate(super().score(texts)):
            if self.shown == 3 and number == 1:
                raise KeyboardInterrupt
            yield text


def many(count: int) -> list[Conversation]:
    return [row(f"r{n}", *(f"{'so ' * (1 + n * k % 7)}{n} {k}" for k in range(3))) for n in range(count)]


def test_a_resumed_run_has_the_very_numbers_of_one_without_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "BATCH", 2)
    config = PairsConfig(by="likelihood")
    whole = made_with(tmp_path, many(9), config, small())
    with pytest.raises(KeyboardInterrupt):
        make_pairs(tmp_path / "in", tmp_path / "stopped", config, engine=Stops(small().model))
    assert not (tmp_path / "stopped/manifest.json").exists()
    said: list[str] = []
    states: list[tuple[int, int]] = []

    class Listener:
        def update(self, state: Progress) -> None:
            states.append((state.rows_done, state.rows_total))

    engine = Stops(small().model)
    engine.shown = 3
    later = config.model_copy(update={"margin": 0.0, "rejected": "quantile", "quantile": 0.0})
    artifact = make_pairs(
        tmp_path / "in", tmp_path / "stopped", later, engine=engine, notify=said.append, progress=Listener()
    )
    assert said == ["4 rows were annotated before; going on after them"]
    assert engine.shown == 3 + 3  # five rows were left: three shards
    assert states == [(6, 9), (8, 9), (9, 9)]
    assert data(artifact) == data(whole)
    assert not list((tmp_path / "stopped").glob(".pairs-*"))


def test_scores_of_another_engine_or_score_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "BATCH", 1)
    publish(tmp_path / "in", kind="magpie", records=many(4), config={})
    likelihood = PairsConfig(by="likelihood")
    others = {"score": (PairsConfig(), small()), "engine": (likelihood, ScriptedEngine())}
    for name, (config, engine) in others.items():
        with pytest.raises(KeyboardInterrupt):
            make_pairs(tmp_path / "in", tmp_path / name, likelihood, engine=Stops(small().model))
        assert len(list((tmp_path / name).glob(".pairs-*/*.json"))) == 2
        said: list[str] = []
        make_pairs(tmp_path / "in", tmp_path / name, config, engine=engine, notify=said.append)
        assert said == []
        assert not list((tmp_path / name).glob(".pairs-*"))


def test_nothing_is_overwritten_nor_asked_for_it(tmp_path: Path) -> None:
    made_with(tmp_path, many(2), PairsConfig(by="likelihood"), ScriptedEngine())
    engine = Reader()
    with pytest.raises(TargetExists):
        make_pairs(tmp_path / "in", tmp_path / "out", engine=engine)
    with pytest.raises(TargetExists):
        make_pairs(tmp_path / "in", tmp_path / "in", PairsConfig(by="response_chars"))
    assert engine.shown == []
    verify(tmp_path / "in")


STREAM = """
import json, resource, sys
from pathlib import Path
from ojak.artifact import publish
from ojak.curate import pairs
from ojak.engines.scripted import ScriptedEngine
from ojak.records import Conversation, Message

folder = Path(sys.argv[1])

def rows():
    for number in range(12_000):
        turns = [Message(role="user", content=f"Why {number}? " + "x" * 10_000), Message(role="assistant", content="y")]
        answers = [{"text": f"{number} {k} " + "y" * 30, "reason": None} for k in range(2)]
        yield Conversation(f"r-{number}", turns, "magpie", {"answers": [answers]})

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

pairs.BATCH = 1024
publish(folder / "in", kind="magpie", records=rows(), config={})
before = peak()
made = [
    pairs.make_pairs(folder / "in", folder / by, pairs.PairsConfig(by=by), engine=ScriptedEngine())
    for by in ("response_chars", "likelihood")
]
print(json.dumps({"counts": [each.counts["rejected"] for each in made], "grown": peak() - before}))
"""


@pytest.mark.slow
def test_rows_that_give_no_pair_stream(tmp_path: Path) -> None:
    """Memory follows the size of a block: 12,000 rows of 10,000 characters take 120 MB as Python objects."""
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [sum(counts.values()) for counts in found["counts"]] == [12_000, 12_000]
    assert found["grown"] < 80e6


# -- the whole ----------------------------------------------------------------------------------------------------------


def test_an_engine_that_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pairs cannot run on the engine 'scripted'"):
        made_with(tmp_path, many(2), PairsConfig(), stand_ins.Blind())
    assert not (tmp_path / "out").exists()


def test_rows_that_give_no_pair_say_what_was_scored(tmp_path: Path) -> None:
    artifact = made(tmp_path, [row("a", "One.", "Two.", scores=[0.5, 0.5])], by="grade")
    (found,) = artifact.rejected()
    assert (found.reason, found.meta["answer_scores"]) == ("tie", {"0": 0.5, "1": 0.5})
    assert (found.meta["row"], found.meta["turn"], found.meta["by"]) == ("a", 1, "grade")


def test_a_score_that_the_rows_bring_is_replaced_by_the_engine_s(tmp_path: Path) -> None:
    record = row("a", "Ask a? indeed", "the longest", "nothing of it")
    for answer, score in zip(record.meta["answers"][0], (-99.0, 99.0, 98.0), strict=True):
        answer["scores"] = {"likelihood": score}
    artifact = made_with(tmp_path, [record], PairsConfig(by="likelihood"), Reader())
    (found,) = preferences(artifact).values()
    assert found.chosen[0]["content"] == "Ask a? indeed"
    assert found.meta["answer_scores"]["1"] is None  # the engine refuses it


def test_an_engine_that_is_given_does_not_change_a_score_of_the_rows(tmp_path: Path) -> None:
    rows = [row("a", "One.", "Two.", scores=[0.1, 0.9])]
    artifact = made_with(tmp_path, rows, PairsConfig(by="grade"), ScriptedEngine())
    assert preferences(artifact)["a"].scores["chosen"] == 0.9


def test_neither_address_nor_path_is_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"")
    config = PairsConfig(
        by="likelihood", model=str(tmp_path / "weights.gguf"), url="http://me:canary@127.0.0.1:1/v1"
    )
    assert config.url == "http://127.0.0.1:1"
    made_with(tmp_path, many(2), config, ScriptedEngine())
    told = (tmp_path / "out/manifest.json").read_text("utf-8")
    assert "weights.gguf" in told
    assert "canary" not in told
    assert "127.0.0.1" not in told
    assert f"{tmp_path}/weights" not in told


def test_the_summary_adds_up(tmp_path: Path) -> None:
    rows = [row("a", "One.", "Two.", scores=[0.5, 0.5]), row("b", "One.", "Two.", scores=[0.5, 0.6])]
    facts = summary(made(tmp_path, rows, by="grade"))
    assert facts == {
        "rows": 2, "accepted": 1, "rejected": {"tie": 1}, "failed": 0, "by": "grade", "out": str(tmp_path / "out"),
    }  # fmt: skip


def test_from_magpie_to_pairs_without_a_word_in_between(tmp_path: Path) -> None:
    rows = run(tmp_path / "in", 12, responses=4, turns=2)
    artifact = make_pairs(tmp_path / "in", tmp_path / "out", PairsConfig(by="likelihood"))
    assert artifact.counts["rows"] >= rows.counts["accepted"]
    assert artifact.stats["engine"]["engine"] == "scripted"
    for record in preferences(artifact).values():
        assert record.prompt[-1]["role"] == "user"
        assert record.chosen != record.rejected


@pytest.mark.parametrize(
    "wrong", [{"margin": -1}, {"quantile": 2}, {"length_ratio": 0.5}, {"rejected": "best"}, {"engine": "x"}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} cannot be"):
        PairsConfig(**wrong)


def test_a_wrong_address_is_not_repeated() -> None:
    with pytest.raises(UsageError, match=r"^url is refused") as caught:
        PairsConfig(url="ftp://me:canary@host")
    assert "canary" not in str(caught.value)
