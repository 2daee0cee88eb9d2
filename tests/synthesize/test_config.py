"""Settings of a Magpie run: refused before a model is loaded, and split into what shapes a row and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ojak.errors import UsageError
from ojak.synthesize.config import MagpieConfig


def make(**more: Any) -> MagpieConfig:
    return MagpieConfig(**{"model": "scripted", "out": Path("d"), "rows": 8, **more})


def test_defaults_are_those_of_the_command_line() -> None:
    config = make()
    assert (config.max_instruction_tokens, config.max_response_tokens) == (256, 512)
    assert (config.seed, config.resume, config.system_text) == (0, "if_possible", None)
    assert config.response_sampling.temperature == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"max_response_tokens": 0},
        {"limit_tokens": 0},
        {"limit_minutes": 0},
        {"limit_minutes": float("nan")},
        {"resume": "perhaps"},
        {"colour": "red"},
        {"seed": 2**63},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} cannot be|there is no setting 'colour'"):
        make(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"grid": "1:2"},
            "grid cannot be '1:2': the grid's pair 1:2 is out of range; a temperature is at least 0",
        ),
        (
            {"system": "@cooking"},
            "system cannot be '@cooking': the domain '@cooking' is not known; use one of @math",
        ),
        ({"language": "xx"}, "language cannot be 'xx': the language 'xx' is not known; use one of de,"),
        (
            {"response_temperature": -1},
            "response_temperature cannot be -1: Input should be greater than or equal to 0",
        ),
        ({"response_temperature": 100}, "response_temperature cannot be 100: Input should be less than 100"),
        ({"response_top_p": 0}, "response_top_p cannot be 0: Input should be greater than 0"),
        ({"response_repetition_penalty": float("nan")}, "response_repetition_penalty cannot be nan"),
        ({"first_temperature": -1}, "first_temperature cannot be -1"),
        ({"ban_first": ["a", 3]}, "ban_first[1] cannot be 3"),
        ({"out": ""}, "out cannot be '': an empty path"),
        ({"model": ""}, "model cannot be ''"),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_loaded(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(**wrong)
    assert str(caught.value).startswith(said)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="rows is missing"):
        MagpieConfig(model="scripted", out=Path("d"))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_system_turn_is_none(empty: str) -> None:
    assert make(system=empty) == make()
    assert make(system=empty, language="de").system_text == make(language="de").system_text


def test_ranges_are_those_of_sampling() -> None:
    make(response_temperature=99.9, response_top_p=1, response_repetition_penalty=99.9, first_temperature=0)


def test_what_shapes_no_row_is_no_part_of_the_run_key() -> None:
    base = make().run_key({"engine": "e"})
    same = make(
        out=Path("other"),
        rows=9,
        limit_tokens=5,
        limit_minutes=1,
        resume="never",
        max_instruction_tokens=9,
        max_response_tokens=9,
        accept_license=("gemma",),
    )
    assert same.run_key({"engine": "e"}) == base
    assert make().run_key({"engine": "f"}) != base


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"grid": "plain"},
        {"system": "@math"},
        {"language": "de"},
        {"response_temperature": 0.5},
        {"response_top_p": 0.5},
        {"response_repetition_penalty": 1.1},
        {"first_temperature": 1.2},
        {"ban_first": ("#",)},
    ],
)
def test_what_shapes_a_row_is_part_of_the_run_key(other: dict[str, Any]) -> None:
    assert make(**other).run_key({}) != make().run_key({})
