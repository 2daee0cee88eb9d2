"""A tiny run of several turns on real weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from ojak.artifact import verify
from ojak.records import Conversation
from ojak.synthesize.config import MagpieConfig
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import data

SETTINGS = {
    "model": "smollm2-135m-instruct",
    "rows": 4,
    "turns": 2,
    "responses": 2,
    "grid": "0.7:1.0",
    "max_instruction_tokens": 40,
    "max_response_tokens": 60,
}


@pytest.mark.real
@pytest.mark.timeout(240)
def test_four_rows_of_two_turns(tmp_path: Path) -> None:
    whole = synthesize_magpie(MagpieConfig(**{**SETTINGS, "out": tmp_path / "whole"}))
    counts = whole.counts
    assert counts["rows"] == 4 == counts["accepted"] + sum(counts["rejected"].values())
    for record in whole.records():
        assert isinstance(record, Conversation)
        roles = [turn["role"] for turn in record.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) == 4 or record.tags["turn_end"] == record.meta["turn_end"]["reason"]
        assert all(len(answers) == 2 for answers in record.meta["answers"])
    assert set(whole.stats["turns"]) <= {"1", "2"}
    for budget in (60, 100_000):  # stopped amid the rows, and gone on with
        stopped = MagpieConfig(**{**SETTINGS, "out": tmp_path / "d", "limit_tokens": budget})
        synthesize_magpie(stopped)
    assert data(verify(tmp_path / "d")) == data(whole)
