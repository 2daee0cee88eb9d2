"""What stays in memory of a row is a few numbers: twice the rows must not take twice the texts, or ids, in memory.

Ids and texts are long here, so that a list of them would stand out; `tracemalloc` sees Python's objects and numpy's arrays.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import stand_ins
from stand_ins import recipe_file

from ojak import _tables
from ojak.artifact import Artifact, publish
from ojak.curate import columns, run, shards
from ojak.curate.config import CurateConfig
from ojak.curate.pairs import PairsConfig, make_pairs
from ojak.curate.run import curate_data
from ojak.curate.split import SplitConfig, split
from ojak.errors import InputRefused
from ojak.records import Conversation, Message
from ojak.similarity import minhash

SMALL, LARGE = 256, 1024
ID_CHARACTERS, TEXT_CHARACTERS = 600, 1500
MOST_BYTES = 300  # that a row more may take
RULES = """[{length: {of: response, min: 5}}, {max_score: {score: repetition, at_most: 0.9}}, {no_refusal: },
  {no_personal_data: }, {no_duplicates: {kind: exact}}, {no_duplicates: {kind: near}}]"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows: what is held of one block is not what is measured."""
    monkeypatch.setattr(_tables, "ROWS_PER_GROUP", 32)
    monkeypatch.setattr(_tables, "READ_BATCH_ROWS", 32)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 32)
    monkeypatch.setattr(run, "BUCKET_ROWS", 32)
    monkeypatch.setattr(minhash, "_PAIR_GRAMS", 1 << 13)
    monkeypatch.setattr(minhash, "_BLOCK_CHARACTERS", 1 << 13)


def rows(count: int) -> Iterator[Conversation]:
    """Every third row is a copy of the one before it, every fifth a near copy of the first rows."""
    for number in range(count):
        subject = number - 1 if number % 3 == 2 else number
        words = " ".join(f"word{(subject * 7919 + i * 104729) % 99991}" for i in range(TEXT_CHARACTERS // 10))
        turns = [
            Message(role="user", content=words),
            Message(role="assistant", content=f"answer {number} {words}"),
        ]
        answers = [{"text": f"{words} {i} {'x' * i}"} for i in range(2)] if number % 2 else [{"text": words}]
        yield Conversation(f"{number:06d}-{'i' * ID_CHARACTERS}", turns, "test", {"answers": [answers]})


def slope(tmp_path: Path, work: Callable[[Artifact, Path], object]) -> float:
    """Bytes that a row more takes at the peak."""
    peaks = []
    for count in (SMALL, SMALL, LARGE):  # the first time imports what it needs
        made = publish(tmp_path / f"in{len(peaks)}", kind="magpie", records=rows(count), config={})
        tracemalloc.start()
        work(made, tmp_path / f"out{len(peaks)}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[2] - peaks[1]) / (LARGE - SMALL)


def test_curation(tmp_path: Path) -> None:
    config = CurateConfig(
        recipe=recipe_file(tmp_path, RULES, "pick: {by: longest, number: 3, of: 4, shuffle: 1}")
    )
    assert slope(tmp_path, lambda made, out: curate_data(made, out, config)) < MOST_BYTES
    rejected = list(Artifact.open(tmp_path / "out2").rejected())
    copies = [row for row in rejected if row.reason == "no_duplicates_exact"]
    assert len(copies) == LARGE // 3
    for copy in copies:
        first = copy.meta["curate"]["values"]["no_duplicates_exact"]
        assert int(first["id"][:6]) == first["row"] == int(copy.id[:6]) - 1


def test_split(tmp_path: Path) -> None:
    config = SplitConfig(test=0.5)
    assert slope(tmp_path, lambda made, out: split(made, out, config)) < MOST_BYTES


def test_pairs(tmp_path: Path) -> None:
    config = PairsConfig(by="response_chars")
    assert slope(tmp_path, lambda made, out: make_pairs(made, out, config)) < MOST_BYTES
    assert Artifact.open(tmp_path / "out2").counts["rejected"] == {"one_answer": LARGE // 2}


def test_ids_that_agree_in_their_digest_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ojak import artifact

    monkeypatch.setattr(artifact, "_digest", lambda name: name[:1].encode() * 8)
    made = publish(tmp_path / "a", kind="magpie", records=rows(20), config={})
    assert sum(made.splits.values()) == 20
    with pytest.raises(InputRefused, match="two records have the id '000003"):
        publish(tmp_path / "b", kind="magpie", records=[*rows(20), *list(rows(4))[3:]], config={})
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").glob("*"))


def test_earlier_neighbours_beyond_the_exact_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows go, and name the same earlier row, whether all pairs are compared or an index is asked."""
    pytest.importorskip("faiss")
    from ojak.similarity import embedding

    monkeypatch.setattr(embedding, "Embedder", stand_ins.Embedder)
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("abcdefghijklmnop"), size=24)) for _ in range(150)]
    asked = [letters[i % 100] + ("q" if i >= 100 else "") for i in range(150)]
    made = [stand_ins.row(i, text) for i, text in enumerate(asked)]
    rule = "[{no_earlier_neighbor: {within: 0.05}}]"
    found = []
    for limit in (100_000, 10):
        monkeypatch.setattr(columns, "EXACT_UP_TO", limit)
        artifact = stand_ins.curate(tmp_path, made, rule, out=f"o{limit}")
        named = {
            row.id: row.meta["curate"]["values"]["no_earlier_neighbor"]["row"] for row in artifact.rejected()
        }
        found.append((stand_ins.reasons(artifact), named))
    assert found[0] == found[1]
    assert len(found[0][0]) >= 50
