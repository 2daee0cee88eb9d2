"""A curation that is stopped amid a shard asks its model for nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import Stops

from ojak.artifact import Artifact
from ojak.curate.config import CurateConfig
from ojak.curate.run import curate_data
from ojak.engines import remembering
from ojak.engines.scripted import ScriptedEngine
from ojak.records import to_row

ROWS = 20
RECIPE = """
version: 1
name: judged
rules:
  - min_tag: {tag: difficulty, value: easy}
  - min_score: {score: instruction_gain, above: -100}
"""


class Stopping(Stops):
    """Ends with Ctrl-C after so many answers and windows; `done` counts them."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most = most


def curated(place: Path, out: str, engine: ScriptedEngine) -> Artifact:
    config = CurateConfig(recipe=str(place / "r.yaml"), trust_anyway=True)
    return curate_data(place / "rows.json", place / out, config, engine=engine)


def test_nothing_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "WINDOW", 16)
    rows = [{"instruction": f"Say {i} words", "input": "", "output": f"words {i} " * 3} for i in range(ROWS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "r.yaml").write_text(RECIPE)
    whole_engine, done = Stopping(), 0
    whole = curated(tmp_path, "whole", whole_engine)
    for most in (7, 15, 2):
        engine = Stopping(most)
        with pytest.raises(KeyboardInterrupt):
            curated(tmp_path, "out", engine)
        done += engine.done
    last = Stopping()
    artifact = curated(tmp_path, "out", last)
    assert done + last.done == whole_engine.done
    assert [to_row(record) for record in artifact.records()] == [to_row(record) for record in whole.records()]
    assert artifact.counts == whole.counts
    assert not list((tmp_path / "out").glob(".curate-*"))
