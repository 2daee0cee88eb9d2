"""The grammar of rewards, and what each rule says of an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.errors import UsageError
from ojak.train.rewards import RULES, Range, parse_range, parse_reward

TEXT = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda text: text.strip() == text and " + " not in f" {text} " and "+" not in text)
ARGUMENTS = {
    "RANGE": st.one_of(
        st.integers(0, 99).map(str),
        st.integers(0, 99).map(lambda n: f"-{n}"),
        st.integers(0, 99).map(lambda n: f"{n}-"),
        st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    ),
    "TEXT": TEXT,
    "LANGUAGE": st.sampled_from(["en", "de", "ko"]),
    "": st.just(""),
}


@st.composite
def terms(draw: st.DrawFn) -> tuple[float, str]:
    """A term's weight, and the term as it may be written."""
    rule = draw(st.sampled_from(sorted(RULES)))
    argument = draw(ARGUMENTS[RULES[rule].takes])
    weight = draw(st.none() | st.integers(-40, 40).map(lambda n: n / 8))
    written = f"{rule}={argument}" if argument else rule
    return (
        (1.0, written)
        if weight is None
        else (weight, f"{weight:g}{draw(st.sampled_from(['*', ' * ']))}{written}")
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(terms(), min_size=1, max_size=4), st.text(max_size=80), st.booleans())
def test_what_is_written_is_read_and_bounded(
    written: list[tuple[float, str]], answer: str, stopped: bool
) -> None:
    reward = parse_reward("rules:" + " + ".join(text for _, text in written))
    weights = [weight for weight, _ in written]
    assert [term.weight for term in reward.terms] == weights
    value = reward(answer, stopped)
    low, high = sum(w for w in weights if w < 0), sum(w for w in weights if w > 0)
    assert low - 1e-9 <= value <= high + 1e-9
    again = parse_reward(str(reward))
    assert str(again) == str(reward) and again(answer, stopped) == value
    assert value == pytest.approx(sum(parse_reward(f"rules:{t}")(answer, stopped) for _, t in written))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 200))
def test_a_range_is_full_inside_and_falls_outside(a: int, b: int, count: int) -> None:
    allowed = parse_range(f"{min(a, b)}-{max(a, b)}")
    value = allowed.value(count)
    assert (value == 1) == (allowed.least <= count <= max(a, b))
    nearer = count - 1 if count > max(a, b) else count + 1
    assert 0 <= value <= allowed.value(nearer) or min(a, b) <= count <= max(a, b)
    assert allowed.value(0) == (0 if allowed.least else 1)
    assert allowed.value(2 * max(1, a, b)) == 0


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("words=3-5", "one two three", "one"),
        ("words=2", "one two", "one two three"),
        ("characters=-4", "four", "five more"),
        ("sentences=2", "One. Two!", "One."),
        ("lines=1", "one\n\n", "one\ntwo"),
        ("paragraphs=2", "a\n\nb", "a\nb"),
        ("bullets=2-", "- a\n- b", "- a"),
        (
            "language=de",
            "Das ist ein ganz gewöhnlicher deutscher Satz.",
            "This is quite an ordinary sentence.",
        ),
        ("json", '```json\n{"a": 1}\n```', "[1]"),
        ("sound", "2 + 2 = 4", "2 + 2 = 5"),
        ("no-repetition", "a b c d e f", "a b c d a b c d a b c d"),
        ("no-boilerplate", "Rain falls.", "As an AI language model, I cannot see rain."),
        ("no-refusal", "Here it is.", "I'm sorry, but I can't help with that."),
        ("no-commas", "a b", "a, b"),
        ("lower-case", "abc 1", "Abc"),
        ("upper-case", "ABC 1", "Abc"),
        ("has=river", "The River runs.", "Rivers run."),
        ("avoids=river", "Rivers run.", "The river runs."),
        ("starts=Yes", " Yes, it is", "No"),
        ("ends=That is all.", "So. That is all. ", "That is all. So."),
        ("accepted", "Water boils at 100 degrees at sea level.", ""),
    ],
)
def test_each_rule(rule: str, good: str, bad: str) -> None:
    reward = parse_reward(f"rules:{rule}")
    assert reward(good, True) > 0.99 > reward(bad, True) + 1e-6
    assert reward(bad, True) >= 0


def test_stop_and_weights() -> None:
    reward = parse_reward("rules:words=2-2 + 0.5*stop + -2*has=x")
    assert reward("a b", True) == 1.5
    assert reward("a b", False) == 1.0
    assert reward("a x", True) == -0.5
    assert Range(4, None).value(1) == 0.25 and Range(0, 10).value(15) == 0.5 and Range(0, 0).value(1) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("words=3", "no reward"),
        ("rules:", "no rule"),
        ("rules:word=3", "did you mean 'words'"),
        ("rules:words", "words=RANGE"),
        ("rules:stop=1", "cannot be a rule"),
        ("rules:words=a", "no range"),
        ("rules:words=-", "no range"),
        ("rules:words=5-2", "2-5"),
        ("rules:language=english", "ISO 639-1"),
        ("rules:language=zz", "ISO 639-1"),
        ("rules:x*stop", "no rule"),
        ("rules:stop + ", "no rule"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reward(text)
    assert said in f"{caught.value.what} {caught.value.fix}"
