"""The public names, all of them; and that looking at ojak loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ojak

PUBLIC = [
    "Artifact",
    "ChatPrefix",
    "Completion",
    "Conversation",
    "Document",
    "MagpieConfig",
    "Model",
    "OjakError",
    "Preference",
    "Rejected",
    "SplitConfig",
    "__version__",
    "chat_prefix",
    "export",
    "generate",
    "load",
    "load_model",
    "publish",
    "read",
    "split",
    "synthesize_magpie",
    "verify",
    "write_report",
]
HEAVY = ("torch", "transformers", "pyarrow", "numpy", "datasets", "huggingface_hub", "jinja2")


def modules_after(program: str) -> set[str]:
    """The heavy modules that a new process has loaded after `program`."""
    listing = f"\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program + listing], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_the_list_is_exact() -> None:
    assert sorted(ojak.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(ojak, name)
    assert name in dir(ojak)
    assert name == "__version__" or (value.__doc__ or "").strip()


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(ojak.__file__).read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {a.name for node in guarded.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert imported == set(PUBLIC) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sythesize'"):
        getattr(ojak, "sythesize")  # noqa: B009


def test_the_version_is_that_of_the_project() -> None:
    text = (Path(ojak.__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    assert f'version = "{ojak.__version__}"' in text


def test_import_loads_nothing_heavy() -> None:
    assert modules_after("import ojak") == set()


@pytest.mark.parametrize("arguments", [["--help"], [], ["synthesize", "magpie", "--help"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["ojak", *{arguments!r}]
from ojak.cli import main
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
"""
    assert modules_after(program).isdisjoint({"torch", "transformers", "pyarrow", "datasets"})
