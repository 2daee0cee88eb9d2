"""Rows of files in splits: exact sizes, in order or drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ojak.artifact import Artifact, verify
from ojak.curate.gather import RowsConfig, gather, split_sizes
from ojak.errors import InputRefused, UsageError
from ojak.records import Conversation


def alpaca(folder: Path, count: int = 40, name: str = "rows.json") -> str:
    path = folder / name
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(count)]
    path.write_text(json.dumps(rows), "utf-8")
    return str(path)


def said(artifact: Artifact, split: str) -> list[int]:
    rows = [row for row in artifact.records(split) if isinstance(row, Conversation)]
    return [int(row.messages[0]["content"].split()[1].strip(".")) for row in rows]


def test_without_a_seed_rows_keep_the_order_of_the_file(tmp_path: Path) -> None:
    config = RowsConfig(data=(alpaca(tmp_path),), test=0.1, validation=0.05, seed=None)
    made = gather(tmp_path / "out", config)
    assert verify(made.path).kind == "rows"
    assert said(made, "train") == list(range(34))
    assert said(made, "test") == [34, 35, 36, 37]
    assert said(made, "validation") == [38, 39]
    assert str(tmp_path) not in (made.path / "manifest.json").read_text("utf-8")


def test_with_a_seed_rows_are_drawn_and_every_row_is_in_one_split(tmp_path: Path) -> None:
    config = RowsConfig(data=(alpaca(tmp_path),), test=6, validation=4, seed=1)
    made = gather(tmp_path / "a", config)
    parts = [said(made, name) for name in made.splits]
    assert [len(part) for part in parts] == [30, 6, 4]
    assert sorted(row for part in parts for row in part) == list(range(40))
    assert all(part == sorted(part) for part in parts)
    other = gather(tmp_path / "b", config.model_copy(update={"seed": 2}))
    assert said(other, "test") != parts[1]
    assert said(gather(tmp_path / "c", config), "test") == parts[1]


def test_a_test_row_stays_one_when_validation_is_asked_for(tmp_path: Path) -> None:
    data = (alpaca(tmp_path),)
    alone = gather(tmp_path / "a", RowsConfig(data=data, test=6))
    both = gather(tmp_path / "b", RowsConfig(data=data, test=6, validation=8))
    assert alone.splits == {"train": 34, "test": 6}
    assert said(alone, "test") == said(both, "test")


def test_a_limit_takes_rows_evenly_over_all_files(tmp_path: Path) -> None:
    data = (alpaca(tmp_path), alpaca(tmp_path, 20, "more.json"))
    made = gather(tmp_path / "out", RowsConfig(data=data, test=0, limit=6, seed=None))
    assert said(made, "train") == [0, 10, 20, 30, 0, 10]


@pytest.mark.parametrize(
    ("test", "validation", "sizes"),
    [(0.1, 0.05, (935, 110, 55)), (0, 0, (1100, 0, 0)), (1099, 0, (1, 1099, 0)), (0.0001, 0, (1099, 1, 0))],
)
def test_sizes(test: float, validation: float, sizes: tuple[int, int, int]) -> None:
    assert split_sizes(1100, test, validation) == sizes


@pytest.mark.parametrize(("test", "validation"), [(1100, 0), (0.5, 0.5), (1.5, 0), (0, 2000)])
def test_sizes_that_cannot_be(test: float, validation: float) -> None:
    with pytest.raises(UsageError):
        split_sizes(1100, test, validation)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing at"):
        RowsConfig(data=(str(tmp_path / "none.json"),))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", "utf-8")
    with pytest.raises(InputRefused, match="holds no rows"):
        gather(tmp_path / "a", RowsConfig(data=(str(empty),)))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "Of bees."}\n', "utf-8")
    with pytest.raises(InputRefused, match="several kinds"):
        gather(tmp_path / "b", RowsConfig(data=(str(texts), alpaca(tmp_path))))
    with pytest.raises(InputRefused, match="have the id"):
        gather(tmp_path / "c", RowsConfig(data=(alpaca(tmp_path), alpaca(tmp_path))))
    assert not (tmp_path / "c/manifest.json").exists()


def test_a_changed_file_is_a_changed_setting(tmp_path: Path) -> None:
    config = RowsConfig(data=(alpaca(tmp_path),))
    before = config.model_dump()
    alpaca(tmp_path, 41)
    assert config.model_dump() != before
