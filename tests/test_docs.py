"""The documentation says what the program does: commands run, code runs, tables and trees are the real ones."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import ojak
from ojak import errors
from ojak.cli.app import app
from tools import docs

ROOT = docs.ROOT
READMES = [ROOT / "README.md", ROOT / "README.ko.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODES = re.compile(r"^\| ([\d, ]+) \| \S.* \|$", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text("utf-8")) if language in languages]


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command line in the docs, without its comment."""
    for page in docs.pages():
        for line in "".join(blocks(page, "bash")).splitlines():
            if words := shlex.split(line, comments=True):
                yield page.name, words


COMMANDS = [(page, words) for page, words in shell_lines() if words[0] == "ojak"]
PYTHON = [(page, body) for page in docs.pages() for body in blocks(page, "python")]


def parse(words: list[str]) -> Any:
    """Parses a command line down to its leaf, without running it; typer's errors pass."""
    command: Any = get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        if rest[0] not in command.commands and hasattr(command, "default"):
            rest = [command.default, *rest]
        command, rest = command.commands[rest[0]], rest[1:]
    return command.make_context(words[0], list(rest))


def test_generated_parts_are_fresh() -> None:
    assert docs.stale() == [], "run `make docs`"


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_tree_names_the_files_that_a_reader_comes_for(page: Path) -> None:
    (tree,) = (body for body in blocks(page, "") if body.startswith("ojak/\n"))
    names = [line.split()[0] for line in tree.splitlines()]
    for folder, *files in (("model/", "decoder.py", "generate.py"), ("synthesize/", "magpie.py")):
        begin = names.index(folder) + 1
        assert names[begin : begin + len(files)] == files


def test_stale_parts_are_seen() -> None:
    page = (ROOT / "docs/index.md").read_text("utf-8")
    assert docs.refreshed(page.replace("| `magpie` |", "| `magpies` |")) == page
    with pytest.raises(KeyError):
        docs.refreshed("<!-- generated: nonsense -->\n<!-- end -->")


def test_there_are_commands_to_check() -> None:
    pages = [page for page, _ in COMMANDS]
    assert pages.count("README.md") >= 8
    assert pages.count("README.md") == pages.count("README.ko.md")


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(w[1:5]) for _, w in COMMANDS])
def test_a_command_parses(page: str, words: list[str]) -> None:
    assert parse(words).params is not None


def test_a_wrong_command_does_not_parse() -> None:
    with pytest.raises(Exception, match="--lines"):
        parse(["ojak", "show", "d", "--lines", "3"])
    with pytest.raises(KeyError):
        parse(["ojak", "shows", "d"])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = "\n".join(page.read_text("utf-8") for page in docs.pages())
    named = set(re.findall(r"^make (\w+)$|`make (\w+)`", text, re.MULTILINE))
    assert {one or other for one, other in named} <= targets


@pytest.mark.parametrize(("page", "body"), PYTHON, ids=[page.name for page, _ in PYTHON])
def test_python_uses_public_names(page: Path, body: str) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(body))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "ojak"
    }
    assert used
    assert used <= set(ojak.__all__)


@pytest.mark.real
def test_the_readme_s_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (body,) = blocks(ROOT / "README.md", "python")
    quick = body.replace('MagpieConfig(model="smollm2-135m-instruct"', 'MagpieConfig(model="scripted"')
    assert quick != body
    exec(compile(quick, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "<|im_start|>user" in said
    assert "'rows': 32" in said


def test_links_lead_somewhere() -> None:
    for page in docs.pages():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_linked() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in names if f"({name})" in index} == names


def test_both_readmes_have_one_structure() -> None:
    english, korean = (page.read_text("utf-8") for page in READMES)
    heads = [re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE) for text in (english, korean)]
    assert heads[0] == heads[1]
    assert FENCE.findall(english) == FENCE.findall(korean)
    links = [re.findall(r"\]\(([^)]+)\)", text) for text in (english, korean)]
    assert links[0] == links[1]


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_exit_codes_are_those_of_the_errors(page: Path) -> None:
    kinds = [errors.OjakError, *subclasses(errors.OjakError)]
    codes = {kind.exit_code for kind in kinds if isinstance(kind.exit_code, int)}
    table = {int(code) for cell in CODES.findall(page.read_text("utf-8")) for code in cell.split(",")}
    assert table == codes | {0, errors.Stopped(2).exit_code, errors.Stopped(15).exit_code}


def subclasses(kind: type) -> Iterator[Any]:
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)
