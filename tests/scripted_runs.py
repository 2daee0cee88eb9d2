"""Runs on the scripted engine, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ojak.artifact import Artifact
from ojak.engines.scripted import ScriptedEngine, scripted_text
from ojak.ledger import Ledger
from ojak.model.request import Completion, Request
from ojak.synthesize.config import MagpieConfig
from ojak.synthesize.folder import LEDGER
from ojak.synthesize.run import synthesize_magpie

# By row: what the model writes as a user's turn, and what must become of it.
MULTI_LINE = "Sort this table by year:\n\n| year | town |\n|---|---|\n| 1990 | Ulm |\n| 1970 | Bonn |"
SCRIPT = [
    ("How do I repair the flat tyre of a bicycle on the road?", "accepted"),
    (MULTI_LINE, "accepted"),
    ("how do I repair the flat tyre of a bicycle, on the road", "duplicate_exact"),
    ("How do I repair the flat tyre of my bicycle on the road?", "duplicate_near"),
    ("", "instruction_empty"),
    ("Sure, here is a recipe for bread: take flour.", "instruction_assistant_voice"),
    ("1. **Explain why the sky is blue in the evening.**", "accepted"),
    ("Write a haiku about winter\nassistant\nSnow falls.", "instruction_role_leak"),
    ("What is the capital of Australia, and who chose it?", "accepted"),
    ("Name three rivers in Africa that flow north.", "response_empty"),
]


def answers(request: Request) -> str:
    """The script first, then the engine's own texts."""
    row, kind = request.tag
    if row >= len(SCRIPT):
        return scripted_text(request)
    if kind == "instruction":
        return SCRIPT[row][0]
    return "" if SCRIPT[row][1] == "response_empty" else f"  The answer to number {row}, in full. "


class Recorder(ScriptedEngine):
    """Remembers what was sent, in order, as (row, kind)."""

    def __init__(self, answer: Callable[[Request], str] = answers, **options: Any) -> None:
        super().__init__(answer, **options)
        self.log: list[tuple[int, str]] = []
        self.requests: list[Request] = []

    def _complete(self, request: Request) -> Completion:
        self.log.append(request.tag)
        self.requests.append(request)
        return super()._complete(request)


def config(out: Path, rows: int = 24, **more: Any) -> MagpieConfig:
    return MagpieConfig(**{"model": "scripted", "out": out, "rows": rows, **more})


def run(out: Path, rows: int = 24, *, engine: ScriptedEngine | None = None, **more: Any) -> Artifact:
    return synthesize_magpie(config(out, rows, **more), engine=engine or Recorder())


def data(artifact: Artifact) -> dict[str, str]:
    """The hash of every file of rows: equal exactly if the exported data are equal."""
    return {f["path"]: f["sha256"] for f in artifact.files if f["path"].startswith(("data/", "rejected/"))}


def fates(artifact: Artifact) -> dict[int, str]:
    """Row -> "accepted" or its reason."""
    kept = {record.meta["row"]: "accepted" for record in artifact.records()}
    return dict(
        sorted((kept | {record.meta["row"]: record.reason for record in artifact.rejected()}).items())
    )


def ledger_state(out: Path) -> list[tuple[Any, ...]]:
    with Ledger(out / LEDGER) as ledger:
        return [(e.row, e.kind, e.text, e.max_tokens, e.created) for e in ledger.entries()]
