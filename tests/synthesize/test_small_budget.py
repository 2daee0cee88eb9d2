"""A token budget below what all slots would draw at once finishes some rows, and each run goes further."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ojak.artifact import verify
from ojak.model.request import Completion, Request
from ojak.synthesize.personas import PersonasConfig, synthesize_personas
from scripted_runs import Recorder, data, run

ROWS, SLOTS = 24, 16
CAPS = {"max_instruction_tokens": 15, "max_response_tokens": 15}  # a row takes 30 tokens at most


class Stepping(Recorder):
    """Draws a token for each slot at each step, as engines do; `most`: requests in flight at once."""

    most = 0

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        flight: list[tuple[Iterator[int], Completion]] = []
        more = True
        while more or flight:
            while more and len(flight) < SLOTS:
                request = next(requests, StopIteration)
                more = request is not StopIteration
                if not isinstance(request, Request):
                    break
                flight.append(self._begun(request))
            self.most = max(self.most, len(flight))
            yield from self._step(flight)

    def _begun(self, request: Request) -> tuple[Iterator[int], Completion]:
        before = self.drawn_tokens
        completion = self._complete(request)
        self.drawn_tokens = before
        return iter(completion.token_ids[1:]), completion

    def _step(self, flight: list[tuple[Iterator[int], Completion]]) -> Iterator[Completion]:
        for slot in list(flight):
            self.drawn_tokens += 1
            if next(slot[0], None) is None:
                flight.remove(slot)
                yield slot[1]


@pytest.mark.parametrize("budget", [40, 70, 200])
def test_each_run_finishes_rows_until_all_are_there(tmp_path: Path, budget: int) -> None:
    whole = run(tmp_path / "whole", ROWS, engine=Stepping(), **CAPS)
    finished = [0]
    while True:
        engine = Stepping()
        artifact = run(tmp_path / "d", ROWS, engine=engine, limit_tokens=budget, **CAPS)
        finished.append(verify(tmp_path / "d").counts["rows"])
        assert finished[-1] > finished[-2], "it went further"
        assert engine.most <= max(1, budget // 30)
        if not artifact.stats["stopped"]:
            break
        assert engine.drawn_tokens >= budget
    assert len(finished) > 2
    assert data(artifact) == data(whole)


@pytest.mark.parametrize("more", [{}, {"limit_tokens": 100_000}])
def test_without_a_small_budget_all_slots_work(tmp_path: Path, more: dict[str, Any]) -> None:
    engine = Stepping()
    run(tmp_path, ROWS, engine=engine, **CAPS, **more)
    assert engine.most == SLOTS


def test_a_budget_below_one_row_takes_one_at_a_time(tmp_path: Path) -> None:
    """An instruction that is there needs not be drawn again: the next run has its whole budget for the answer."""
    runs = (run(tmp_path, 4, engine=Stepping(), limit_tokens=16, **CAPS) for _ in range(2 * ROWS))
    last = next(artifact for artifact in runs if not artifact.stats["stopped"])
    assert last.counts["rows"] == 4


def test_personas_too(tmp_path: Path) -> None:
    texts = (f"Text {n}, about the sea and its tides.".ljust(1500, ".") for n in range(20))
    (tmp_path / "t.txt").write_text("\n\n".join(texts))

    def people(request: Request) -> str:
        return f"Persona: a sailor of ship {request.tag[0]} who watches the tides"

    engine = Stepping(people)
    settings: dict[str, Any] = {"source": tmp_path / "t.txt", "rounds": 0, "max_tokens": 20}
    config = PersonasConfig(model="scripted", out=tmp_path / "d", limit_tokens=45, **settings)
    artifact = synthesize_personas(config, engine=engine)
    assert artifact.stats["stopped"] == "limit_tokens"
    assert artifact.counts["rows"] >= 2
    assert engine.most == 2
