"""Small fakes: a tagger, an embedder, and an engine whose probabilities are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ojak.artifact import Artifact, publish
from ojak.curate.config import CurateConfig
from ojak.curate.run import curate_data
from ojak.engines.scripted import ScriptedEngine
from ojak.records import Conversation, Message, record_id

JUDGE = {"engine": "scripted", "model": "scripted", "model_sha256": "0" * 64, "dtype": "none"}
ANSWER = "It depends on the weather, and on where you stand when the wind turns."


def row(number: int, instruction: str = "", response: str = ANSWER, **more: Any) -> Conversation:
    asked = instruction or f"What should one know about subject number {number} before the exam?"
    turns = [Message(role="user", content=asked), Message(role="assistant", content=response)]
    return Conversation(record_id("test", number), turns, "test", more.pop("meta", {}), **more)


def tagged(
    number: int, *, by: Mapping[str, Any] | None = JUDGE, response: str = ANSWER, **tags: Any
) -> Conversation:
    return row(number, response=response, tags=tags, meta={"judge": dict(by)} if by else {})


def source(tmp_path: Path, rows: Iterable[Conversation], name: str = "in") -> Artifact:
    return publish(tmp_path / name, kind="magpie", records=rows, config={})


def recipe_file(tmp_path: Path, rules: str, more: str = "", name: str = "mine") -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"version: 1\nname: {name}\nrules: {rules}\n{more}\n", "utf-8")
    return str(path)


def curate(
    tmp_path: Path,
    rows: Iterable[Conversation],
    rules: str,
    more: str = "",
    out: str = "out",
    **settings: Any,
) -> Artifact:
    """Curate `rows` by a recipe given as YAML in one line."""
    engine, base = settings.pop("with_engine", None), settings.pop("with_base", None)
    made = source(tmp_path, rows, f"in-{out}")
    config = CurateConfig(recipe=recipe_file(tmp_path, rules, more, name=f"r-{out}"), **settings)
    return curate_data(made, tmp_path / out, config, engine=engine, base_engine=base)


def kept(artifact: Artifact) -> list[int]:
    return [int(record.id.rpartition("-")[2]) for record in artifact.records()]


def reasons(artifact: Artifact) -> dict[int, str]:
    return {int(record.id.rpartition("-")[2]): record.reason for record in artifact.rejected()}


@dataclass
class Tagger:
    """Tags by a function of the instruction, and remembers what it was asked."""

    engine: Any
    fields: Sequence[str] = ()
    guard: Any = None
    asked = 0

    def tag(self, conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, dict[str, Any]]]:
        for conversation in conversations:
            Tagger.asked += 1
            tags = {name: LABELS[name](conversation.messages[0]["content"]) for name in self.fields}
            yield replace(conversation, tags={**conversation.tags, **tags}), tags


LABELS: dict[str, Callable[[str], str]] = {
    "difficulty": lambda text: "hard" if "prove" in text.lower() else "easy",
    "input_quality": lambda text: "good" if len(text) > 40 else "poor",
    "task_category": lambda text: "Math" if "number" in text else "Others",
    "language": lambda text: "de" if "nicht" in text else "en",
    "safety": lambda _text: "safe",
}


def use_judge(monkeypatch: pytest.MonkeyPatch, *, usable: bool | None) -> None:
    """The fake tagger, its judge calibrated (usable or not) or, with None, never calibrated."""
    import ojak.judge

    Tagger.asked = 0
    calibration = (
        None
        if usable is None
        else SimpleNamespace(
            usable=usable, may_filter=lambda _name: usable, to_dict=lambda: {"usable": usable}
        )
    )
    monkeypatch.setattr(ojak.judge, "Tagger", Tagger)
    monkeypatch.setattr(ojak.judge, "load_calibration", lambda _identity: calibration)


class Embedder:
    """Letters counted: equal texts have equal vectors."""

    name, sha256 = "letters", "0" * 64

    @classmethod
    def open(cls, name: str = "all-minilm-l6-v2") -> Embedder:
        return cls()

    def encode(self, texts: Sequence[str]) -> Any:
        counted = np.zeros((len(texts), 256), dtype=np.float32)
        for place, text in enumerate(texts):
            for byte in text.encode():
                counted[place, byte] += 1
        return counted / np.maximum(np.linalg.norm(counted, axis=1, keepdims=True), 1e-9)


def use_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    from ojak.similarity import embedding

    monkeypatch.setattr(embedding, "Embedder", Embedder)


class Blind(ScriptedEngine):
    """An engine that cannot read probabilities."""

    capabilities = replace(ScriptedEngine.capabilities, scores=False)
