"""The split: exact sizes, nothing lost, the same everywhere, and steady while the data grow."""

from __future__ import annotations

import random
from itertools import compress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ojak.artifact import Artifact, publish
from ojak.curate.split import SplitConfig, choose, size_of_test, split
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.records import Conversation, Message, record_id

IDS = [record_id("run", row) for row in range(100)]


def chosen(ids: list[str], number: int, seed: int) -> frozenset[str]:
    return frozenset(compress(ids, choose(ids, number, seed)))


def conversations(number: int) -> list[Conversation]:
    turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    return [Conversation(IDS[row], turns, "run", {"row": row, "x": [1, None]}) for row in range(number)]


def source(tmp_path: Path, number: int = 30) -> Artifact:
    return publish(tmp_path / "magpie", kind="magpie", records=conversations(number), config={})


def test_every_row_lands_once_in_order_and_unchanged(tmp_path: Path) -> None:
    artifact = split(source(tmp_path), tmp_path / "split", SplitConfig(test=0.2, seed=3)).verify()
    train, test = (list(artifact.records(name)) for name in ("train", "test"))
    assert (artifact.kind, artifact.splits) == ("split", {"train": 24, "test": 6})
    assert sorted([*train, *test], key=lambda record: record.id) == conversations(30)
    assert [record.id for record in train] == sorted(record.id for record in train)
    assert [record.id for record in test] == sorted(record.id for record in test)


def test_the_manifest_names_the_input(tmp_path: Path) -> None:
    made = source(tmp_path)
    artifact = split(made.path, tmp_path / "split", SplitConfig(seed=9))
    assert artifact.manifest["inputs"] == [{"path": "../magpie", "manifest_sha256": made.manifest_sha256}]
    assert artifact.manifest["config"] == {"test": 0.1, "seed": 9}
    assert artifact.counts == {"rows": 30, "accepted": 30, "rejected": {}, "failed": 0}


def test_known_choice() -> None:
    """Pinned: the same ids must fall into the test split on every machine and in every version."""
    assert chosen(IDS[:8], 2, 0) == frozenset(["acba25512100-0000004", "acba25512100-0000007"])
    assert chosen(IDS[:8], 2, 1) == frozenset(["acba25512100-0000000", "acba25512100-0000001"])


@given(st.integers(0, 100), st.integers(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(number: int, seed: int, shuffler: random.Random) -> None:
    shuffled = list(IDS)
    shuffler.shuffle(shuffled)
    found = chosen(shuffled, number, seed)
    assert found == chosen(IDS, number, seed)
    assert len(found) == number


def test_growth_moves_few_rows() -> None:
    before, after = chosen(IDS[:90], 9, 0), chosen(IDS, 10, 0)
    assert len(before & after) >= 7


def test_seeds_differ() -> None:
    assert len({chosen(IDS, 10, seed) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("rows", "test", "expected"),
    [(10, 0.1, 1), (2, 0.01, 1), (15, 0.1, 2), (14, 0.1, 1), (1000, 0.333, 333), (10, 9, 9), (10, 1, 1)],
)
def test_sizes(rows: int, test: float, expected: int) -> None:
    assert size_of_test(rows, test) == expected


@pytest.mark.parametrize(("rows", "test"), [(2, 0.9), (10, 10), (10, 2.5), (3, 100)])
def test_sizes_that_cannot_be(rows: int, test: float) -> None:
    with pytest.raises(UsageError, match="cannot be taken"):
        size_of_test(rows, test)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_rows(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputRefused, match=f"{number} rows cannot be split"):
        split(source(tmp_path, number), tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_an_existing_target_stays(tmp_path: Path) -> None:
    made = split(source(tmp_path), tmp_path / "split")
    with pytest.raises(TargetExists):
        split(tmp_path / "magpie", tmp_path / "split", SplitConfig(seed=1))
    assert Artifact.open(tmp_path / "split") == made


@pytest.mark.parametrize("values", [{"test": 0}, {"test": -1}, {"test": float("inf")}, {"tset": 0.1}])
def test_settings_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"cannot be|there is no setting"):
        SplitConfig(**values)  # pyright: ignore[reportArgumentType]
