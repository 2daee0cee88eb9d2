"""Embeddings without a model, for tests: a direction for each word, a text is the sum of its words."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


def vector(text: str, width: int = 24) -> Any:
    found = np.full(width, 1e-3)
    for word in text.casefold().split():
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        found += np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(size=width)
    return (found / np.linalg.norm(found)).astype(np.float32)


class Embedder:
    name = "a-fake-model"

    @classmethod
    def open(cls, name: str = "x") -> Embedder:
        return cls()

    def encode(self, texts: Sequence[str]) -> Any:
        return np.array([vector(text) for text in texts])


def neighbors(matrix: Any) -> Any:
    cosines = matrix @ matrix.T
    np.fill_diagonal(cosines, -2)
    return SimpleNamespace(
        distance=(1 - cosines.max(axis=1)).astype(np.float32), index=cosines.argmax(axis=1)
    )


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("ojak.similarity.embedding")
    module.Embedder, module.neighbors = Embedder, neighbors  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ojak.similarity.embedding", module)
