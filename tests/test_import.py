"""What is loaded, and what is not: looking at ojak, and the verbs that touch no model, must not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ojak.artifact import publish
from ojak.records import Document

RECIPE = """
version: 1
name: small
stages:
  magpie: {model: scripted, rows: 4}
  split: {}
  report: {}
"""


def loaded_by(program: str, cwd: Path) -> set[str]:
    """The names at the top of `sys.modules` after `program` ran in a new process, which must end well."""
    listing = "\nfinally:\n    print(*{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    wrapped = "import sys\ntry:\n" + "\n".join(f"    {line}" for line in program.strip().splitlines())
    done = subprocess.run(
        [sys.executable, "-c", wrapped + listing], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.strip().splitlines()[-1].split())


def command(*arguments: str) -> str:
    return f"sys.argv = ['ojak', *{arguments!r}]\nfrom ojak.cli import main\nmain()"


def test_import_is_bare(tmp_path: Path) -> None:
    loaded = loaded_by("import ojak\nojak.__version__\ndir(ojak)", tmp_path)
    assert "ojak" in loaded
    assert loaded.isdisjoint({"torch", "pyarrow", "pydantic", "yaml", "rich", "typer", "jinja2", "numpy"})


def test_names_load_only_what_they_need(tmp_path: Path) -> None:
    loaded = loaded_by(
        "import ojak\nojak.Conversation, ojak.Artifact, ojak.MagpieConfig, ojak.SplitConfig", tmp_path
    )
    assert "pydantic" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        (),
        ("synthesize", "magpie", "--help"),
        ("train", "finetune", "--help"),
        ("chat", "--help"),
        ("export", "--help"),
        ("tokenizer", "train", "--help"),
        ("models", "list"),
        ("models", "info", "gemma-3-270m"),
        ("verify", "data"),
        ("show", "data", "--json"),
        ("run", "small.yaml", "--dry-run"),
    ],
    ids=lambda arguments: " ".join(arguments) or "bare",
)
def test_no_torch(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    publish(tmp_path / "data", kind="test", records=[Document("1", "x")], config={})
    (tmp_path / "small.yaml").write_text(RECIPE, "utf-8")
    assert "torch" not in loaded_by(command(*arguments), tmp_path)
