"""The code stays within its ceilings, and the measure of it is right."""

from __future__ import annotations

from pathlib import Path

from tools import sizes

SOURCE = '''"""A module
of two lines."""

# a comment
import os


def one() -> str:
    """Documented."""
    return """two
lines"""


class Thing:
    "What it is."

    @property
    def two(self) -> int:

        return 2
'''


def write(tmp_path: Path, name: str, text: str) -> sizes.File:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return sizes.measure(path, tmp_path)


def test_the_project_is_within_its_ceilings() -> None:
    assert sizes.violations(sizes.measure_all()) == []


def test_lines_code_and_functions_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path, "pkg/a.py", SOURCE)
    assert (file.path, file.lines) == ("pkg/a.py", 20)
    assert file.code_lines == 8  # import, def, return (two lines), class, decorator, def, return
    assert [(f.name, f.where, f.lines) for f in file.functions] == [
        ("one", "pkg/a.py:8", 4),
        ("two", "pkg/a.py:18", 3),
    ]


def test_what_is_too_long_is_named(tmp_path: Path) -> None:
    body = "\n".join("    x = 1" for _ in range(sizes.MOST_LINES_A_FUNCTION))
    long_function = write(tmp_path, "f.py", f"def f() -> None:\n{body}\n")
    long_file = write(tmp_path, "g.py", "x = 1\n" * (sizes.MOST_LINES_A_FILE + 1))
    fine = write(tmp_path, "h.py", "x = 1\n" * sizes.MOST_LINES_A_FILE)
    found = sizes.violations([long_function, long_file, fine])
    assert [line.split(":")[0] for line in found] == [
        "g.py",
        "f.py",
        "the median function has 81 lines, at most 10",
        "nine functions of ten have up to 81 lines, at most 35",
    ]


def test_quantiles_of_functions() -> None:
    functions = [sizes.Function("", "", lines) for lines in range(1, 11)]
    assert sizes.quantiles(functions) == (5, 10)
    assert sizes.quantiles([]) == (0, 0)


def test_the_table_has_a_line_for_each_folder(tmp_path: Path) -> None:
    files = [write(tmp_path, "pkg/a.py", SOURCE), write(tmp_path, "pkg/sub/b.py", "x = 1\n")]
    lines = sizes.table(files).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["pkg", "1", "20", "8"],
        ["pkg/sub", "1", "1", "1"],
        ["all", "2", "21", "9"],
    ]
