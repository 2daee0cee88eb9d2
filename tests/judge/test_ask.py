"""Labels read from probabilities against brute force; labels read from text, mended once, or kept as unparsed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from reading import ReadingEngine, WritingEngine, material

from ojak.chat import encode_prompt
from ojak.engines.base import Capabilities
from ojak.engines.native import NativeEngine
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import UsageError
from ojak.judge.ask import Answer, Asker, shortened
from ojak.judge.labels import LABELS, TASK_CATEGORY, read_label
from ojak.judge.likelihood import likelihoods
from ojak.judge.prompts import CATEGORY_QUESTION, QUALITY_QUESTION, QUESTIONS, SCORE_QUESTION, Row
from ojak.judge.scores import Judge
from ojak.model.request import Request

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
ROWS = [
    Row("What is two and two?", "Four."),
    Row("Name a tree.", "Oak, and a word more."),
    Row("Why?", "x" * 40),
]


def small(family: str = "llama", **options: Any) -> NativeEngine:
    model = tiny.model(family, scale=0.15, max_position_embeddings=8192, **options)
    model.chat_template = TEMPLATE
    return NativeEngine(model)


def total(engine: NativeEngine, before: str, after: str) -> float:
    """log p(after | before) by one plain forward pass."""
    model = engine.model
    prompt, rest = encode_prompt(model.tokenizer, before), model.tokenizer.encode(after)
    with torch.inference_mode():
        logs = model.decoder(torch.tensor([[*prompt, *rest]]))[0].double().log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(rest))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("name", ["task_category", "score"])
def test_a_label_has_the_probability_that_brute_force_gives(family: str, name: str) -> None:
    engine, question = small(family), QUESTIONS[name]
    asker = Asker(engine, reason_tokens=0)
    answers = asker.ask(question, ROWS)
    for row, answer in zip(ROWS, answers, strict=True):
        (prompt,) = asker._prompts(_bare(question), [row])
        sums = torch.tensor(
            [total(engine, f"{prompt}{question.label}:", f" {label}") for label in question.labels]
        )
        expected = sums.softmax(-1).tolist()
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-3)
        assert answer.label == question.labels[expected.index(max(expected))]
        assert answer.how == "scored"
        last = len(expected) - 1
        assert answer.level == pytest.approx(sum(p * i / last for i, p in enumerate(expected)), abs=1e-3)


def _bare(question: Any) -> Any:
    from ojak.judge.ask import _shaped

    return _shaped(question, 0)


def test_the_label_follows_what_was_written_before_it() -> None:
    """The reason is the engine's own text, on one line, and stands before the label that is scored."""
    prompts: list[str] = []

    class Watched(ReadingEngine):
        def score(self, texts):  # noqa: ANN001, ANN202
            def passed():  # noqa: ANN202
                for text in texts:
                    prompts.append(str(text.prompt))
                    yield text

            return super().score(passed())

    engine = Watched(lambda _question, _row: 1.0)
    engine._answer = lambda _request: " clear enough\nQuality: very poor"
    (answer,) = Asker(engine).ask(QUALITY_QUESTION, [Row("Tell me a joke.")])
    assert answer.fields == {"Reason": "clear enough"}
    assert answer.label == "excellent"
    assert all(prompt.endswith("\nReason: clear enough\nQuality:") for prompt in prompts)
    assert len(prompts) == 5


def asked(*answers: str) -> Answer:
    return Asker(WritingEngine(iter(answers))).ask(QUALITY_QUESTION, [Row("Tell me a joke.")])[0]


def test_a_written_label_is_parsed() -> None:
    answer = asked(" it is clear\nQuality: **Good**.")
    assert (answer.label, answer.how) == ("good", "parsed")
    assert answer.fields == {"Reason": "it is clear"}
    assert answer.level == 0.75


def test_an_unknown_label_is_mended_once() -> None:
    answer = asked(" it is clear\nQuality: splendid", " Excellent")
    assert (answer.label, answer.how) == ("excellent", "repaired")
    assert answer.fields == {"Reason": "it is clear"}


def test_what_is_no_label_twice_is_unparsed() -> None:
    answer = asked(" hm", " I would say that it is good")
    assert (answer.label, answer.how, answer.level) == ("unparsed", "unparsed", None)
    judge = Judge(WritingEngine(lambda _request: " hm"))
    assert list(judge.scores([Row("a", "b")])) == [None]


def test_answers_come_in_the_order_of_the_rows() -> None:
    def echo(request: Request) -> str:
        number = int(material(str(request.prompt))[0].rsplit(" ", 1)[-1])
        return f" {TASK_CATEGORY[number]}"

    engine = WritingEngine(echo, slots=5, shuffle_seed=3)
    answers = Asker(engine).ask(CATEGORY_QUESTION, [Row(f"task {i}") for i in range(12)])
    assert [answer.label for answer in answers] == list(TASK_CATEGORY)


@pytest.mark.parametrize("name", LABELS)
def test_no_label_is_the_beginning_of_another(name: str) -> None:
    """Otherwise the probability of the shorter one would hold that of the longer one, too."""
    labels = LABELS[name]
    assert not [(a, b) for a in labels for b in labels if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" Others", "Others"),
        ("Other", "Others"),
        ('"Coding and debugging".', "Coding & Debugging"),
        ("Math (arithmetic)", "Math"),
        ("**Planning** - it asks for a plan", "Planning"),
        ("Math or Reasoning", None),
        ("It is not Math", None),
        ("", None),
        ("\x00\ud800", None),
    ],
)
def test_reading_a_label(text: str, label: str | None) -> None:
    assert read_label(text, TASK_CATEGORY) == label


def test_the_help_of_an_instruction_is_a_difference_of_likelihoods() -> None:
    engine = small()
    around = engine.chat_prefix()
    for row, found in zip(ROWS, likelihoods(engine, ROWS), strict=True):
        given = total(engine, f"{around.pre_query}{row.instruction}{around.post_query}", row.response)
        alone = total(engine, f"{around.pre_query}{around.post_query}", row.response)
        assert found.tokens == len(row.response)
        assert found.given == pytest.approx(given, abs=1e-2)
        assert found.gain == pytest.approx((given - alone) / found.tokens, abs=1e-3)


def test_long_texts_lose_their_middle() -> None:
    engine = ScriptedEngine()
    text = " ".join(f"w{i}" for i in range(5000))
    found = shortened(engine, text, 100)
    assert engine.count_tokens(found) <= 100
    assert found.startswith("w0 w1 ")
    assert found.endswith(" w4999")
    assert shortened(engine, "short", 100) == "short"
    assert len(shortened(engine, "é" * 2_000_000, 100)) < 2000


def test_an_engine_that_takes_only_chats_is_refused() -> None:
    class Chat(ScriptedEngine):
        capabilities = Capabilities()

    with pytest.raises(UsageError, match="raw_prompt"):
        Asker(Chat())


def test_the_spent_tokens_and_seconds_are_counted() -> None:
    asker = Asker(ScriptedEngine())
    asker.ask(SCORE_QUESTION, ROWS)
    asker.ask(SCORE_QUESTION, ROWS)
    spent = asker.spent.to_dict()
    assert spent["rows"] == 6
    assert spent["prompt_tokens"] > 6 * 100
    assert spent["tokens_per_s"] == pytest.approx(spent["prompt_tokens"] / spent["seconds"])
