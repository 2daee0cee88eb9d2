"""One way from settings to an engine, for every stage and verb that asks a model something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ojak.engines.base import Engine
from ojak.errors import UsageError

EngineName = Literal["native", "endpoint", "ray", "scripted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Which engine, and what it runs: a known name, a file or a folder; for an endpoint the name that it serves.

    `model` "scripted" is the scripted engine, whatever `engine` says. `url` is the address of an endpoint.
    """

    model: str
    engine: EngineName = "native"
    url: str | None = None
    accept_license: tuple[str, ...] = ()


def open_engine(
    spec: EngineSpec,
    *,
    system: str | None = None,
    turns: int = 1,
    chat: bool = True,
    notify: Callable[[str], None] | None = None,
) -> Engine:
    """The engine that `spec` names. `chat`: it must have a usable chat template (with this system turn, if any, and
    for conversations of so many turns of a user).

    Raises InputRefused, before any weights are read, for a model without one.
    """
    if spec.model == "scripted" or spec.engine == "scripted":
        from ojak.engines.scripted import ScriptedEngine

        return ScriptedEngine()
    if spec.engine != "native":
        raise UsageError(f"there is no engine {spec.engine!r} here", fix="use native or scripted")
    from ojak.chat import chat_prefix
    from ojak.engines.native import NativeEngine
    from ojak.model.load import from_source, read_source

    source = read_source(spec.model, accept_license=spec.accept_license, notify=notify)
    if chat:
        chat_prefix(source.chat_template, source.tokenizer, system=system, turns=turns)
    return NativeEngine(from_source(source))
