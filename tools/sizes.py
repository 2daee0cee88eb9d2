"""How big the code is: lines for each folder, lengths of functions, and ceilings that `make check` holds it to.

    python -m tools.sizes

A function's length runs from its `def` to its last line, docstring included; decorators do not count. A code line is
one that holds more than blanks, a comment or a docstring.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ojak"
MOST_LINES_A_FILE = 500
MOST_LINES_A_FUNCTION = 80
MOST_LINES_MEDIAN = 10
MOST_LINES_P90 = 35
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method, where it stands, and how many lines it takes."""

    where: str
    name: str
    lines: int


@dataclass(frozen=True, slots=True)
class File:
    """A source file: its path below the root, all its lines, its lines of code, its functions."""

    path: str
    lines: int
    code_lines: int
    functions: tuple[Function, ...]


def measure(path: Path, root: Path = ROOT) -> File:
    """The sizes of one Python file."""
    text = path.read_text("utf-8")
    name = path.relative_to(root).as_posix()
    tree = ast.parse(text, name)
    return File(name, len(text.splitlines()), len(_code_lines(text, tree)), tuple(_functions(tree, name)))


def measure_all(folder: Path = PACKAGE, root: Path = ROOT) -> list[File]:
    """The sizes of every Python file below `folder`, in order of their paths."""
    return [measure(path, root) for path in sorted(folder.rglob("*.py"))]


def violations(files: Sequence[File]) -> list[str]:
    """What is above a ceiling, a line of text each."""
    found = [
        f"{file.path}: {file.lines} lines, at most {MOST_LINES_A_FILE}"
        for file in files
        if file.lines > MOST_LINES_A_FILE
    ]
    functions = [function for file in files for function in file.functions]
    found += [
        f"{each.where}: {each.name} has {each.lines} lines, at most {MOST_LINES_A_FUNCTION}"
        for each in functions
        if each.lines > MOST_LINES_A_FUNCTION
    ]
    median, p90 = quantiles(functions)
    if median > MOST_LINES_MEDIAN:
        found.append(f"the median function has {median} lines, at most {MOST_LINES_MEDIAN}")
    if p90 > MOST_LINES_P90:
        found.append(f"nine functions of ten have up to {p90} lines, at most {MOST_LINES_P90}")
    return found


def quantiles(functions: Sequence[Function]) -> tuple[int, int]:
    """(median, 90th percentile) of the functions' lengths; zeros if there are none."""
    lengths = sorted(function.lines for function in functions)
    if not lengths:
        return 0, 0
    return int(statistics.median_low(lengths)), lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]


def table(files: Sequence[File]) -> str:
    """One line for each folder, and the sum, as text with aligned columns."""
    folders: dict[str, list[File]] = defaultdict(list)
    for file in files:
        folders[file.path.rpartition("/")[0]].append(file)
    head = ("folder", "files", "lines", "code", "longest file", "median fn", "p90 fn", "longest function")
    rows = [head, *(_row(name, group) for name, group in folders.items()), _row("all", list(files))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _row(name: str, files: list[File]) -> tuple[str, ...]:
    functions = [function for file in files for function in file.functions]
    longest = max(functions, key=lambda each: each.lines, default=Function("", "-", 0))
    biggest = max(files, key=lambda each: each.lines)
    median, p90 = quantiles(functions)
    return (
        name,
        str(len(files)),
        str(sum(file.lines for file in files)),
        str(sum(file.code_lines for file in files)),
        f"{biggest.lines} {Path(biggest.path).name}",
        str(median),
        str(p90),
        f"{longest.lines} {longest.name}",
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if cell.isdigit() else cell.ljust(width)
        for cell, width in zip(row, widths, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _functions(tree: ast.AST, path: str) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            yield Function(f"{path}:{node.lineno}", node.name, node.end_lineno - node.lineno + 1)


def _code_lines(text: str, tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def main() -> int:
    files = measure_all()
    print(table(files))
    found = violations(files)
    for line in found:
        print(f"too long: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
