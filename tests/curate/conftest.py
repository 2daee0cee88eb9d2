"""Parts of ojak that these tests replace anyway: where they are not there yet, empty modules take their place."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from ojak.similarity import DuplicateIndex


def near_duplicates(texts: Any, **settings: Any) -> Any:
    index, first = DuplicateIndex(settings["threshold"]), []
    for place, text in enumerate(texts):
        found = index.add(place, text)
        first.append(found.of_row if found else place)
    return SimpleNamespace(first=np.asarray(first))


class Contamination:
    def __init__(self, texts: Any, n: int = 13) -> None:
        self.n = n
        self.grams = {gram for text in texts for gram in self.of(text)}

    def of(self, text: str) -> list[str]:
        words = text.lower().split()
        return [" ".join(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]

    def find(self, text: str) -> str | None:
        return next((gram for gram in self.of(text) if gram in self.grams), None)


def find_personal_data(text: str) -> list[Any]:
    return [SimpleNamespace(kind="email", start=0, end=0)] if "@" in text else []


def provide(name: str, **members: Any) -> None:
    try:
        import_module(name)
    except ImportError:
        module = ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        setattr(import_module(parent), own, module)


TAGS = ("difficulty", "input_quality", "task_category", "safety", "language")
provide("ojak.similarity.minhash", near_duplicates=near_duplicates)
provide("ojak.similarity.embedding", Embedder=None, neighbors=None, clusters=None, repeat_counts=None)
provide("ojak.rules.privacy", find_personal_data=find_personal_data)
provide("ojak.rules.contamination", Contamination=Contamination)
provide("ojak.judge", Tagger=None, Judge=None, load_calibration=None, TAG_FIELDS=TAGS)
