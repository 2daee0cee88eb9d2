"""Looks at responses that need no model: loops, phrases of a program, code, JSON and sums that do not hold."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.rules.responses import boilerplate, format_problems, repetition, wrong_sums


def test_repetition_is_one_minus_distinct_4() -> None:
    assert repetition("one two three four five six seven") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("go on and on " * 50) == pytest.approx(1 - 4 / 197)
    assert repetition("") == repetition("three words only") == 0


def naive(text: str) -> float:
    found = text.split()
    grams = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


@given(st.lists(st.sampled_from(["red", "green", "blue"]), max_size=60))
def test_repetition_against_a_plain_count(words: list[str]) -> None:
    assert repetition(" ".join(words)) == pytest.approx(naive(" ".join(words)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("As an AI language model, I cannot taste.", True),
        ("Rivers flow. As a large language model I do not swim.", True),
        ("I don\u2019t have personal opinions on that.", True),
        ("I was trained by Meta.", True),
        ("My knowledge cutoff is 2021.", True),
        ("An AI is a program that learns.", False),
        ("Let me know if you find the key, she said.", True),
        ("As an engineer, I would use steel.", False),
        ("She said: as an aide, I travel.", False),
        ("", False),
    ],
)
def test_boilerplate(text: str, found: bool) -> None:
    assert (boilerplate(text) is not None) is found


PYTHON = "Here:\n```python\n{}\n```\nDone."


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (PYTHON.format("def f(x):\n    return x + 1"), []),
        (PYTHON.format("def f(x)\n    return x"), ["python"]),
        (PYTHON.format("    x = 1\n    print(x)"), []),
        (PYTHON.format(">>> 1 +\n"), []),
        (PYTHON.format("%matplotlib inline"), []),
        (PYTHON.format("!pip install x"), []),
        (PYTHON.format("print 'old'"), ["python"]),
        (PYTHON.format("x = '\\d'"), []),
        (PYTHON.format("x = \x00"), ["python"]),
        ("```\nnot code at all (\n```", []),
        ("```js\nlet x = ;\n```", []),
        ("```json\n{\"a\": [1, 2]}\n```", []),
        ("```json\n{a: 1}\n```", ["json"]),
        ("```json\n\n```", []),
        ("~~~python\nx =\n~~~", ["python"]),
        ("````python\nx = '''\n```\n'''\n````", []),
        ("1. First:\n   ```python\n   x = 1\n   ```", []),
        ("```python\nx = 1", ["fence"]),
        ("Use ```inline``` marks.", []),
        ("So 3 + 4 = 8.", ["arithmetic"]),
        ("`3 + 4 = 8` is wrong", []),
        ("```\n3 + 4 = 8\n```", []),
        (PYTHON.format("x =") + "\n2 + 2 = 5", ["python", "arithmetic"]),
    ],
)  # fmt: skip
def test_formats(text: str, problems: list[str]) -> None:
    assert [problem.partition(":")[0] for problem in format_problems(text)] == problems


@pytest.mark.parametrize(
    "text",
    [
        "2 + 2 = 4", "3 * 4 + 1 = 13", "1 + 2 * 3 = 7", "10 / 4 = 2.5", "10 / 3 = 3.33", "10 / 3 = 3.34", "2 / 3 = 0.67",
        "1,000 + 2,500 = 3,500", "$5 + $3.50 = $8.50", "3 - 5 = -2", "3 − 5 = −2", "7 × 6 = 42", "84 ÷ 2 = 42",
        "1 / 0 = 7", "0.1 + 0.2 = 0.3", "2x + 3 + 4 = 9", "(2 + 3) * 4 = 20", "2 * (3 + 4) = 14", "2^3 + 1 = 9",
        "7 / 2 = 3 remainder 1", "7 / 2 = 3 R 1", "1/2 + 1/3 = 5/6", "1 + 1 = 2 + 0", "x + 3 = 4", "f(2) + 2 = 9",
        "17 % 5 + 1 = 3", "50 + 20 = 70%", "3 + 4 = 7x", "3 + 4 == 8", "2 + 2 = four", "1 + 1 = 2²", "5 + 5 = 10^1", "v1.2 + 3 = 9",
        "30° + 60° = 90°", "9 + 5 = 14:00", "- 3 + 4 = 7", "1. 3 + 4 = 7", "12 + 30 = 42.", "12 + 30 = 42, so", "7 / 2 = 4", "7 / 2 = 3", "10 / 4 = 2",
        "1 + 2 = 3 = 4 - 1", "a_1 + 2 = 7", "1e3 + 1 = 5", "2 ** 3 = 8", "8 = 3 + 4",
    ],
)  # fmt: skip
def test_sums_that_hold_or_are_left_alone(text: str) -> None:
    assert wrong_sums(text) == []


@pytest.mark.parametrize(
    "text",
    ["2 + 2 = 5", "so 3 * 4 = 11, then", "1,000 + 2,500 = 3,400", "$5 + $3 = $9", "3 - 5 = 2", "7 × 6 = 41",
     "- 3 + 4 = 8", "10 / 3 = 3.43", "2+2=5", "2 + 2 = 5."],
)  # fmt: skip
def test_sums_that_do_not_hold(text: str) -> None:
    assert len(wrong_sums(text)) == 1


@settings(max_examples=200)
@given(st.lists(st.integers(0, 99), min_size=2, max_size=6), st.data())
def test_sums_against_python(numbers: list[int], data: st.DataObject) -> None:
    operators = [data.draw(st.sampled_from("+-*")) for _ in numbers[1:]]
    text = str(numbers[0]) + "".join(f" {o} {n}" for o, n in zip(operators, numbers[1:], strict=True))
    value = eval(text)  # noqa: S307  (of numbers and operators made above)
    assert wrong_sums(f"We get {text} = {value}.") == []
    assert len(wrong_sums(f"We get {text} = {value + 1}.")) == 1


@pytest.mark.parametrize(
    "code",
    ["(" * 9000, "-" * 19_000 + "1", "(\n" + "-\n" * 9000 + "1)", "not " * 4900 + "1", "[" * 55 + "]" * 55, "a" + ".b" * 9000, "lambda:" * 2800 + "1",
     "x = " + "1+" * 9000 + "1", "if 1:\n    x\n" + "elif 1:\n    x\n" * 1000, "x = " + "f(" * 50 + ")" * 50, "await " * 3000, "f'" + "{" * 300,
     "x" + "[0]" * 6000, "x" + "()" * 9000, "1 if 1 else " * 1600 + "1", "class A:\n " * 1000],
    ids=lambda code: code[:12],
)  # fmt: skip
def test_hostile_code_is_neither_run_nor_slow(code: str) -> None:
    begin = time.perf_counter()
    format_problems(PYTHON.format(code))
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    "text",
    ["1+" * 40_000, "1 " * 50_000, "9" * 100_000, "```" * 30_000, "```\n" * 20_000, "as an " * 20_000, "a " * 50_000,
     "```json\n" + "[" * 90_000, "`" * 100_000, "1,111" * 20_000, "~~~ \n" * 15_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_long_texts_take_linear_time(text: str) -> None:
    begin = time.perf_counter()
    format_problems(text)
    repetition(text)
    boilerplate(text)
    assert time.perf_counter() - begin < 2


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="`~python json\n{}[]()1+2=3. \\'\"", max_size=200))
def test_any_text_is_looked_at(text: str) -> None:
    assert all(isinstance(problem, str) for problem in format_problems(text))
