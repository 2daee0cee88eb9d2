"""kill -9 while answers are scored for pairs: no score that was written is asked for again, and the pairs are the same."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
from magpie_processes import running

from ojak._tables import read_parquet
from ojak.artifact import Artifact, publish, verify
from ojak.records import Conversation, Message
from scripted_runs import data

ROWS, ANSWERS, KILLS = 100, 4, 14


def source(path: Path) -> Artifact:
    """Rows whose answers differ in how many words of the question they have; each text says whose it is."""
    rows = []
    for row in range(ROWS):
        question = "Name tides trees trams and towns"
        texts = [
            f"{row} {sample} " + " ".join(question.split()[: (row + sample) % 5]) for sample in range(ANSWERS)
        ]
        answers = [{"text": text, "reason": None} for text in texts]
        turns: list[Message] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": texts[0]},
        ]
        rows.append(Conversation(f"r-{row}", turns, "magpie", {"answers": [answers]}))
    return publish(path, kind="magpie", records=rows, config={})


def scored(log: Path, after: int = 0) -> list[int]:
    """The row of each answer that the engine was shown, in order."""
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    return [int(json.loads(line).split()[0]) for line in lines[after:]]


def finished(out: Path) -> set[int]:
    """The rows of the shards that are whole."""
    notes = out.glob(".pairs-*/shard-*.json")
    records = (record for note in notes for record in read_parquet(note.with_suffix(".parquet"), own=True))
    return {int(record.id.removeprefix("r-")) for record in records}


@pytest.mark.timeout(120)
def test_kills_while_scoring_change_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    made, out, log = source(tmp_path / "in"), tmp_path / "killed", tmp_path / "log"
    draw, killed, progress = random.Random(3), 0, []
    with running() as runs:
        assert runs.run(tmp_path / "whole", ROWS, pairs=str(made.path)) == 0
        for _ in range(KILLS):
            before, known = len(scored(log)), finished(out)
            moment = (draw.randrange(0, 40), draw.uniform(0, 0.004))
            status = runs.run(out, ROWS, log=str(log), pause_s=0.001, kill_after=moment, pairs=str(made.path))
            assert status == -signal.SIGKILL, "it ended before it was killed"
            killed += 1
            assert known.isdisjoint(scored(log, before))
            assert known <= finished(out)
            # What was lost: no more than the five rows that were in flight.
            assert len(set(scored(log, before)) - finished(out)) <= 5
            progress.append(len(known))
            assert not (out / "manifest.json").exists()
        before, known = len(scored(log)), finished(out)
        assert runs.run(out, ROWS, log=str(log), pairs=str(made.path)) == 0
    assert known.isdisjoint(scored(log, before))
    assert killed == KILLS
    assert len(set(progress)) > 4, "the kills came at the same moment"
    assert data(verify(out)) == data(verify(tmp_path / "whole"))
    assert verify(out).counts["accepted"] > 0
    assert {item.name for item in out.iterdir()} <= {
        ".lock",
        "data",
        "rejected",
        "README.md",
        "manifest.json",
    }
