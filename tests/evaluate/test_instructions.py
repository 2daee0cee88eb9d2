"""The built-in instructions: each kind has answers that meet it and answers that do not."""

from __future__ import annotations

import numpy as np
import pytest

from ojak.evaluate.instructions import KINDS, Demand, _loosened, follows, instructions, summary

# kind -> (details as they are found in the demand's text are put in), an answer that meets it, one that does not
GOOD_AND_BAD = {
    "include_word": (lambda t: f"There was a {quoted(t)} here.", lambda t: f"There was a{quoted(t)}x."),
    "avoid_word": (lambda t: "Bees fly home.", lambda t: f"Bees, {quoted(t).upper()} fly."),
    "at_most_words": (lambda t: "word " * number(t), lambda t: "word " * (number(t) + 1)),
    "at_least_words": (lambda t: "word " * number(t), lambda t: "word " * (number(t) - 1)),
    "sentences": (lambda t: "It is 3.5 m. " * number(t), lambda t: "It is so. " * (number(t) + 1)),
    "bullets": (lambda t: "- a b\n" * number(t), lambda t: "- a b\n" * (number(t) - 1)),
    "paragraphs": (
        lambda t: "\n\n".join(["Some text."] * number(t)),
        lambda t: "\n".join(["Some text."] * number(t)),
    ),
    "starts_with": (lambda t: f"{quoted(t)} comes first.", lambda t: f"The {quoted(t)} comes first."),
    "ends_with": (lambda t: f"Well. {quoted(t)}", lambda t: f"{quoted(t)} Well."),
    "lower_case": (lambda t: "all of it, 3 times.", lambda t: "Not all of it."),
    "upper_case": (lambda t: "ALL OF IT, 3 TIMES.", lambda t: "ALMOST ALL OF iT"),
    "no_commas": (lambda t: "One and two.", lambda t: "One, two."),
    "json": (lambda t: '```json\n{"answer": "a"}\n```', lambda t: 'Sure! {"answer": "a"}'),
    "quoted": (lambda t: '"All of it."', lambda t: '"Half" of it.'),
    "title": (lambda t: "<<A title>>\nText.", lambda t: "A title\n<<late>>"),
    "postscript": (lambda t: "Text.\nP.S. More.", lambda t: "Text, p.s. less."),
}


def quoted(text: str) -> str:
    return text.split('"')[1]


def number(text: str) -> int:
    return next(int(word) for word in text.split() if word.isdigit())


@pytest.mark.parametrize("place", range(len(KINDS)))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_kind_tells_a_good_answer_from_a_bad_one(place: int, seed: int) -> None:
    demand = KINDS[place](np.random.default_rng(seed))
    good, bad = GOOD_AND_BAD[demand.kind]
    assert follows(demand, good(demand.text)), (demand, good(demand.text))
    assert not follows(demand, bad(demand.text)), (demand, bad(demand.text))
    assert not follows(demand, " \n")


def test_all_kinds_have_examples() -> None:
    assert {draw(np.random.default_rng(0)).kind for draw in KINDS} == GOOD_AND_BAD.keys()


def test_the_loose_way_forgives_a_preface_an_end_and_asterisks() -> None:
    demand = Demand("quoted", "", lambda t: t == '"Yes."')
    for answer in ('Sure:\n"Yes."', '"Yes."\nAnything else?', 'Sure:\n"Yes."\nBye', '*"Yes."*'):
        assert follows(demand, answer, loose=True)
        assert not follows(demand, answer)
    assert not follows(demand, "No.", loose=True)
    assert list(_loosened("")) == [""] * 8


def test_the_seed_draws_them_and_fewer_are_the_first_of_more() -> None:
    few, many, other = instructions(20), instructions(50), instructions(20, seed=1)
    texts = [each.messages[0]["content"] for each in many]
    assert [each.messages[0]["content"] for each in few] == texts[:20]
    assert [each.messages[0]["content"] for each in other] != texts[:20]
    assert len({each.id for each in many}) == 50
    assert instructions(2, seed=-1)


def test_shares_are_counted_over_what_was_answered() -> None:
    asked = instructions(32)
    none = summary(asked, {})
    assert none["rows"] == 0
    answers = {each.id: GOOD_AND_BAD[each.demand.kind][0](each.demand.text) for each in asked[:16]}
    found = summary(asked, answers | {asked[16].id: ""})
    assert found["rows"] == 17
    assert found["strict"][0] == pytest.approx(16 / 17)
    assert found["by_kind"][asked[16].demand.kind][0] == 0.5
