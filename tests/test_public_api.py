"""The public names, all of them. (What importing them loads: test_import.py.)"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ojak

PUBLIC = [
    "Artifact",
    "AugmentConfig",
    "ChatPrefix",
    "Completion",
    "Contamination",
    "Conversation",
    "CorpusConfig",
    "CurateConfig",
    "DistilCacheConfig",
    "DistilConfig",
    "Document",
    "Embedder",
    "EvaluateConfig",
    "LiftConfig",
    "MagpieConfig",
    "MergeConfig",
    "MergeResult",
    "MixConfig",
    "Model",
    "OjakError",
    "PairsConfig",
    "PersonasConfig",
    "PreferConfig",
    "Preference",
    "Rejected",
    "SplitConfig",
    "TrainConfig",
    "TrainResult",
    "WindowConfig",
    "__version__",
    "augment_data",
    "cache_teacher",
    "chat_prefix",
    "curate_data",
    "evaluate_model",
    "explain_row",
    "export",
    "export_model",
    "find_personal_data",
    "find_secrets",
    "generate",
    "lift_data",
    "load",
    "load_model",
    "make_corpus",
    "merge_models",
    "near_duplicates",
    "make_mix",
    "make_pairs",
    "plan_push",
    "publish",
    "push",
    "read",
    "shrink_model",
    "split",
    "sweep_windows",
    "synthesize_magpie",
    "synthesize_personas",
    "train_model",
    "train_tokenizer",
    "verify",
    "write_comparison",
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


def test_a_folder_does_not_take_the_place_of_a_function() -> None:
    """The import system sets `ojak/export/` as an attribute of `ojak`, where the function of that name is."""
    program = (
        "import ojak; ojak.push; import ojak.export.push; assert ojak.export.__module__ == 'ojak.formats'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sythesize'"):
        getattr(ojak, "sythesize")  # noqa: B009


def test_the_version_is_that_of_the_project() -> None:
    text = (Path(ojak.__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    assert f'version = "{ojak.__version__}"' in text
