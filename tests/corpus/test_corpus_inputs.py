"""Which files are read: folders in the order of names, links turned away, nothing left out silently."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ojak.artifact import refuse_inside
from ojak.corpus.inputs import files, format_of, survey
from ojak.errors import InputRefused, UsageError


def listed(*paths: Path) -> list[tuple[str, str]]:
    return [(file.name, file.reason or file.format) for file in files(paths)]


def test_a_folder_is_walked_by_name(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("b/2.txt", "b/1.md", "a.PDF", "c/d/e.jsonl.gz", "z.png", ".git/config", "b/.hidden.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x", "utf-8")
    assert listed(root) == [
        ("in/a.PDF", "pdf"),
        ("in/b/1.md", "markdown"),
        ("in/b/2.txt", "text"),
        ("in/c/d/e.jsonl.gz", "jsonl"),
        ("in/z.png", "format_unknown"),
    ]
    assert [file.number for file in files([root])] == [0, 1, 2, 3, 4]


def test_two_paths_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name, "utf-8")
    assert [name for name, _ in listed(tmp_path / "a/x.txt", tmp_path / "b/x.txt")] == ["x.txt", "x.txt~2"]


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "below").mkdir(parents=True)
    (root / "below/up").symlink_to(root)
    (root / "one").symlink_to(root / "two")
    (root / "two").symlink_to(root / "one")
    (root / "out.txt").symlink_to("/etc/hostname")
    assert listed(root) == [
        ("in/below/up", "link"),
        ("in/one", "link"),
        ("in/out.txt", "link"),
        ("in/two", "link"),
    ]
    assert listed(root / "one") == [("one", "unreadable")]
    (tmp_path / "named").symlink_to(root)
    assert len(listed(tmp_path / "named")) == 4, "a link that is named is followed"


def test_what_is_no_file(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    os.mkfifo(root / "pipe.txt")
    (root / os.fsdecode(b"bad\xff.txt")).write_bytes(b"x")
    assert listed(root) == [("in/bad\\udcff.txt", "text"), ("in/pipe.txt", "not_a_file")]


def test_folders_deeper_than_calls(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert [reason for _, reason in listed(tmp_path)] in ([], ["unreadable"])
    finally:
        os.system(f"rm -rf {tmp_path}/d")


def test_the_survey_sees_content_and_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.txt").write_text("one", "utf-8")
    first = survey([root])
    assert (first.files, first.size_bytes) == (1, 3)
    assert survey([root]).digests == first.digests
    (root / "a.txt").write_text("two", "utf-8")
    second = survey([root])
    (root / "a.txt").rename(root / "b.txt")
    assert len({first.digests, second.digests, survey([root]).digests}) == 3


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        list(files([tmp_path / "no"]))
    with pytest.raises(InputRefused, match="no files"):
        survey([tmp_path])


def test_the_result_may_not_lie_among_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is read"):
        refuse_inside(tmp_path / "deep/out", [tmp_path])
    refuse_inside(tmp_path / "out", [tmp_path / "in"])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.txt", "text"),
        ("A.HTM", "html"),
        ("a.warc.gz", "warc"),
        ("a.tar.gz", ""),
        ("txt", ""),
        (".txt", ""),
    ],
)
def test_formats_by_name(name: str, found: str) -> None:
    assert format_of(name) == found
