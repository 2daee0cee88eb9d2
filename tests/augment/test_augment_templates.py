"""Texts and pairs as documents for pre-training: nothing is lost or changed, and every draw stands by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.augment.draws import Draws
from ojak.augment.pairs import Pair
from ojak.augment.parsed import THOUGHT
from ojak.augment.templates import ENGLISH, MANY, MODES, Shot, banks, read_bank, render, render_group
from ojak.errors import UsageError
from ojak.records import Document

BANK = read_bank()
TEXT = Document("d", "Ann {question} ran.\n\n  To Rome {text}.")
PAIRS = [Pair("Who {answer}?", "Ann"), Pair("Where to?", "Rome"), Pair("How?", "On foot")]
CHOICE = Pair("Where to?", "Rome", ("Oslo", "Rome", "Bern"))


def streams(count: int) -> list[Draws]:
    return [Draws(0, "test", number) for number in range(count)]


@pytest.mark.parametrize("mode", sorted(MODES))
def test_text_questions_and_answers_stand_in_it_unchanged(mode: str) -> None:
    for random in streams(40):
        from ojak.augment.templates import Shot

        written = MODES[mode](random, BANK)(Shot(TEXT.text, tuple(PAIRS)))
        assert written.count(TEXT.text) == 1
        rest = written.replace(TEXT.text, "")
        for pair in PAIRS:
            assert rest.count(pair.question) == 1 and pair.answer in rest
        assert written.strip() == written


def test_every_mode_is_drawn_with_its_share() -> None:
    seen = Counter(random.weighted("mode", MANY) for random in streams(4000))
    for mode, share in MANY.items():
        assert abs(seen[mode] / 40 - share) < 4 * (share * (100 - share) / 4000) ** 0.5
    assert set(seen) == set(MODES)


def test_one_pair_is_classic_or_a_dialog() -> None:
    """Modes that need several questions are not drawn: the numbered ones would show a 1."""
    texts = [render(Document("d", "Text."), PAIRS[1:2], random) for random in streams(300)]
    assert not any("1." in text or "1)" in text or "A1" in text for text in texts)


def test_a_text_without_pairs_stays_as_it_is() -> None:
    for random in streams(20):
        first, second = render_group([(TEXT, []), (Document("e", "Other."), PAIRS)], random)
        assert first == TEXT.text
        assert "Other." in second


def test_texts_of_a_group_are_written_alike() -> None:
    pairs = [Pair("q1", "a1"), Pair("q2", "a2")]
    for random in streams(60):
        first, second = render_group([(Document("x", "TEXT"), pairs), (Document("y", "TEXT"), pairs)], random)
        assert first == second
    assert len({render(Document("x", "TEXT"), pairs, random) for random in streams(60)}) > 40


def test_options_are_shuffled_and_named_by_the_answer() -> None:
    places, labels = Counter[int](), Counter[bool]()
    for number in range(300):
        text = render(Document(f"d{number}", "Text."), [CHOICE], Draws(1))
        at = sorted((text.index(option), option) for option in CHOICE.options)
        places[[option for _, option in at].index("Rome")] += 1
        labels[text.rstrip('"').endswith("Rome")] += 1
    assert min(places[place] for place in range(3)) > 60
    assert labels[False] > 20, "no answer was a label"


def test_reasoning_keeps_its_steps_and_names_the_option() -> None:
    pair = Pair(f"Where to?\n{THOUGHT}", "She left Oslo.\nTherefore, the answer is Rome", CHOICE.options)
    for number in range(60):
        text = render(Document(f"d{number}", "Text."), [pair], Draws(2))
        assert "She left Oslo.\nTherefore, the answer is " in text
        assert text.index(THOUGHT) > max(text.index(option) for option in ("Bern", "Rome"))


def test_many_options_have_no_letters() -> None:
    options = tuple(f"option {number} of many" for number in range(40))
    for number in range(40):
        text = render(Document(f"d{number}", "Text."), [Pair("Which?", options[7], options)], Draws(3))
        assert all(option in text for option in options)


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=5, unique=True), st.integers())
def test_draws_depend_on_their_names_alone(names: list[str], seed: int) -> None:
    random = Draws(seed, "x")
    forwards = {name: random.bits(name) for name in names}
    backwards = {name: Draws(seed, "x").bits(name) for name in reversed(names)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(names)


def test_draws_of_lists_of_equal_length_are_not_correlated() -> None:
    """The published code made a new generator with the same seed for each draw."""
    both = Counter((random.pick("one", range(4)), random.pick("two", range(4))) for random in streams(3200))
    assert min(both.values()) > 120 and len(both) == 16


@settings(max_examples=50)
@given(st.text(max_size=60), st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=4))
def test_any_text_may_be_filled_in(text: str, pairs: list[tuple[str, str]]) -> None:
    made = [Pair(question, answer) for question, answer in pairs]
    written = render(Document("d", text), made, Draws(4))
    assert text in written
    assert all(pair.question in written and pair.answer in written for pair in made)


def test_a_group_is_written_in_the_language_of_its_first_text() -> None:
    """By a bank of that language, if there is one; every bank has all modes and fills all places."""
    texts = {
        "de": "Der alte Leuchtturm steht seit vielen Jahren am Hafen und zeigt den Schiffen nachts den Weg.",
        "ko": "오래된 등대는 항구에 서서 밤마다 배들에게 길을 알려 주고 있습니다.",
        "en": "The old lighthouse stands at the harbour and shows the ships their way at night.",
    }
    made = [Pair(f"{n}?", "x", ("x", "y")) for n in range(3)]
    for code, text in texts.items():
        for seed in range(6):
            shots = [(Document("a", text), made), (Document("b", "Other words are here."), made)]
            assert render_group(shots, Draws(seed)) == render_group(shots, Draws(seed), banks()[code])
    assert len(banks()) == len({bank.model_dump_json() for bank in banks().values()}) >= 7
    for bank in banks().values():
        for mode in MODES:
            written = MODES[mode](Draws(1), bank)(
                Shot("TEXT", tuple(Pair(p.question, p.answer) for p in made))
            )
            assert all(part in written for part in ("TEXT", "0?", "1?", "2?")) and "{" not in written


def test_a_bank_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "de.yaml"
    path.write_text(ENGLISH.read_text("utf-8").replace("Question:", "Frage:"), "utf-8")
    assert any("Frage:" in each for each in read_bank(path).questions)
    path = tmp_path / "bad.yaml"
    path.write_text("lead_ins: []\nfoo: 1\n", "utf-8")
    with pytest.raises(UsageError, match="foo"):
        read_bank(path)
    with pytest.raises(UsageError, match="is not there"):
        read_bank(tmp_path / "none.yaml")
