"""Settings of a Magpie run: refused before a model is loaded, and split into what shapes a row and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
    with pytest.raises(ValidationError):
        make(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grid": "1:2"},
        {"system": "@cooking"},
        {"language": "xx"},
        {"response_temperature": -1},
        {"response_top_p": 0},
        {"first_temperature": -1},
    ],
)
def test_settings_without_sense_are_refused_before_anything_is_loaded(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(**wrong)


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
