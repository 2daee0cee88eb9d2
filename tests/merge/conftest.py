"""Lets the tests of this folder import the tiny models and the full disk, and gives them three models of one family."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "model"), str(HERE.parent / "faults")]

import merging  # noqa: E402


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, and `a`, `b`, `c` that come from it; in float32."""
    return merging.make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of models are not kept among those of the user."""
    monkeypatch.setenv("OJAK_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("OJAK_OFFLINE", "1")
