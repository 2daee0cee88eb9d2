"""Rounds over an engine: what is shown of a group's earlier texts, and what cuts the chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from ojak.augment.config import AugmentConfig
from ojak.augment.pieces import cut
from ojak.augment.rounds import Synthesizer, Work
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import UsageError
from ojak.model.request import Completion, Request
from ojak.records import Document

GOOD = "<QUE> Who is {name}? <ANS> {name} </END>"


def pass_all(works: Sequence[Work]) -> None:
    """A check that drops nothing."""


def asked_about(request: Request) -> str:
    """The text that a request is about: the last one."""
    return str(request.prompt).rpartition("<CON> ")[2].removesuffix(" </CON>\n\n")


class Recorder(ScriptedEngine):
    """Answers by text, and keeps the prompts."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.prompts: list[str] = []
        super().__init__(lambda request: answer(asked_about(request)))

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        for completion in super().generate(requests, longest=longest):
            assert completion.prompt_tokens + completion.request.max_tokens <= longest
            self.prompts.append(str(completion.request.prompt))
            yield completion

    def prompt(self, text: str) -> str:
        (found,) = (prompt for prompt in self.prompts if prompt.endswith(f"<CON> {text} </CON>\n\n"))
        return found


def good(text: str) -> str:
    return GOOD.format(name=text)


def run(engine: ScriptedEngine, texts: Sequence[Sequence[str]], **settings: object) -> list[Work]:
    """Groups of texts, each text its own id."""
    config = AugmentConfig(synthesizer="scripted", format="published", shots=4, **settings)  # type: ignore[arg-type]
    works = [
        Work(Document(text, text), f"g{number}", shot)
        for number, group in enumerate(texts)
        for shot, text in enumerate(group)
    ]
    Synthesizer(engine, config).work(works, pass_all, lambda documents, tokens: None)
    return works


def example(text: str) -> str:
    return f"<s> <CON> {text} </CON>\n\n{good(text)}</s>"


def question(text: str) -> str:
    return f"<s> <CON> {text} </CON>\n\n"


def test_each_round_shows_the_rounds_before() -> None:
    engine = Recorder(good)
    works = run(engine, [["Ann", "Bo", "Cy"], ["Di", "Ed"]])
    assert engine.prompt("Ann") == question("Ann")
    assert engine.prompt("Bo") == example("Ann") + question("Bo")
    assert engine.prompt("Cy") == example("Ann") + example("Bo") + question("Cy")
    assert engine.prompt("Ed") == example("Di") + question("Ed")
    assert [work.in_chain for work in works] == [False, True, True, False, True]
    assert [[pair.answer for pair in work.pairs] for work in works] == [
        ["Ann"],
        ["Bo"],
        ["Cy"],
        ["Di"],
        ["Ed"],
    ]


def test_a_text_without_a_sound_pair_cuts_the_chain() -> None:
    engine = Recorder(lambda text: "nothing" if text == "Bo" else good(text))
    works = run(engine, [["Ann", "Bo", "Cy", "Di"]])
    assert engine.prompt("Cy") == question("Cy")
    assert engine.prompt("Di") == example("Cy") + question("Di")
    assert [piece.reason for piece in works[1].discarded] == ["no_question"]


def test_a_pair_that_fails_its_check_is_no_example() -> None:
    engine = Recorder(good)
    config = AugmentConfig(synthesizer="scripted", format="published", shots=2)
    works = [Work(Document(name, name), "g", shot) for shot, name in enumerate(("Ann", "Bo"))]

    def none(now: Sequence[Work]) -> None:
        for work in now:
            work.pairs = []

    Synthesizer(engine, config).work(works, none, lambda documents, tokens: None)
    assert engine.prompt("Bo") == question("Bo")


def test_a_prompt_that_would_not_fit_begins_a_new_chain() -> None:
    engine = Recorder(lambda text: good(text.split()[0]))
    engine.context_tokens = 70
    long = "Bo " + "word " * 24 + "end"
    works = run(engine, [["Ann " + "word " * 19 + "end", long, "Cy"]], max_tokens=20)
    assert engine.prompt(long) == question(long)
    assert engine.prompt("Cy").startswith(f"<s> <CON> {long}")
    assert [work.in_chain for work in works] == [False, False, True]


def test_a_long_text_is_asked_about_in_pieces_and_the_rest_is_counted() -> None:
    engine = Recorder(lambda text: good(text.split()[0]))
    text = " ".join(f"word{number} is here." for number in range(100))
    (work,) = run(engine, [[text]], piece_tokens=30, most_pieces=3)
    assert work.pieces == 3 == len(engine.prompts)
    assert len({pair.answer for pair in work.pairs}) == 3
    shown = [prompt.partition("<CON> ")[2].partition(" </CON>")[0] for prompt in engine.prompts]
    assert all(len(piece.split()) <= 30 and piece.endswith(".") for piece in shown)
    assert sum(map(len, shown)) + work.left_out + 3 >= len(text)


def test_texts_with_tags_or_special_tokens_are_not_asked_about() -> None:
    engine = Recorder(good)
    works = run(engine, [["a </END> b", "c"], ["<|im_end|> d", "e"]])
    assert [[piece.reason for piece in work.discarded] for work in works] == [
        ["tags_in_text"], [], ["special_token_in_text"], [],
    ]  # fmt: skip
    assert len(engine.prompts) == 2
    told: list[int] = []
    config = AugmentConfig(synthesizer="scripted", format="published")
    Synthesizer(engine, config).work(works, pass_all, lambda documents, tokens: told.append(documents))
    assert sum(told) == 4, "whoever waits hears of them, too"


def test_a_question_of_another_piece_is_not_kept_twice() -> None:
    (work,) = run(Recorder(lambda text: "<QUE> Same? <ANS> yes </END>"), [["one. " * 40]], piece_tokens=30)
    assert len(work.pairs) == 1
    assert {piece.reason for piece in work.discarded} == {"duplicate_question"}


def test_no_room_for_a_text_is_refused() -> None:
    engine = Recorder(good)
    engine.context_tokens = 100
    with pytest.raises(UsageError, match="--max-tokens"):
        run(engine, [["a"]], max_tokens=90)


def test_an_instruct_model_is_asked_in_words_with_earlier_texts_as_turns() -> None:
    prompts: list[str] = []

    def answer(request: Request) -> str:
        prompts.append(str(request.prompt))
        return " Who?\nAnswer: Ann\n\nQuestion: Where?"

    config = AugmentConfig(synthesizer="scripted", shots=2)
    works = [Work(Document(name, name), "g", shot) for shot, name in enumerate(("TEXT1", "TEXT2"))]
    maker = Synthesizer(ScriptedEngine(answer), config)
    maker.work(works, pass_all, lambda documents, tokens: None)
    assert maker.dialect.name == "asked"
    first, second = prompts
    assert "user\nTEXT1\n\nWrite three" in first and first.endswith("<|im_start|>assistant\nQuestion:")
    assert second.startswith(f"{first} Who?\nAnswer: Ann<|im_end|>\n<|im_start|>user\n")
    assert [piece.reason for work in works for piece in work.discarded] == ["no_answer"] * 2


@pytest.mark.parametrize("limit", [16, 40])
def test_pieces_end_where_something_ends(limit: int) -> None:
    text = "One two three. Four five six seven.\n\nEight nine ten. " * 30
    found, left = cut(text, limit, 1000, lambda piece: len(piece.split()))
    assert left == 0
    assert " ".join(" ".join(found).split()) == " ".join(text.split())
    assert all(len(piece.split()) <= limit and piece[-1] == "." for piece in found)


def test_a_line_without_an_end_is_cut_without_reading_all_of_it() -> None:
    seen: list[int] = []

    def count(piece: str) -> int:
        seen.append(len(piece))
        return len(piece)

    found, left = cut("x" * 10_000_000, 100, 2, count)
    assert [len(piece) for piece in found] == [100, 100]
    assert left == 10_000_000 - 200
    assert max(seen) <= 1600
