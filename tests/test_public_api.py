"""The public names, all of them. (What importing them loads: test_import.py.)"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ojak

PUBLIC = [
    "Artifact",
    "ChatPrefix",
    "Completion",
    "Contamination",
    "Conversation",
    "CurateConfig",
    "Document",
    "Embedder",
    "MagpieConfig",
    "Model",
    "OjakError",
    "PairsConfig",
    "PersonasConfig",
    "Preference",
    "Rejected",
    "SplitConfig",
    "__version__",
    "chat_prefix",
    "curate_data",
    "explain_row",
    "export",
    "find_personal_data",
    "find_secrets",
    "generate",
    "load",
    "load_model",
    "near_duplicates",
    "make_pairs",
    "publish",
    "read",
    "split",
    "synthesize_magpie",
    "synthesize_personas",
    "verify",
    "write_report",
]


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
