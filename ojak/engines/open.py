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

    `model` "scripted" is the scripted engine, whatever `engine` says. `url` is the address of an endpoint, `tokenizer`
    where its template and tokenizer come from (None: the model's name, then the server), `key_env` the environment
    variable with its key (None: OJAK_ENDPOINT_KEY).
    """

    model: str
    engine: EngineName = "native"
    url: str | None = None
    tokenizer: str | None = None
    key_env: str | None = None
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

    Raises InputRefused, before any weights are read, for a model without one; UsageError for settings that another
    engine takes; EngineUnavailable for an endpoint that does not answer.
    """
    if spec.model == "scripted" or spec.engine == "scripted":
        from ojak.engines.scripted import ScriptedEngine

        return ScriptedEngine()
    if spec.engine == "endpoint":
        return _endpoint(spec, system, turns, chat, notify)
    if spec.engine != "native":
        raise UsageError(f"there is no engine {spec.engine!r} here", fix="use native, endpoint or scripted")
    if spec.url or spec.tokenizer or spec.key_env:
        raise UsageError(
            "url, tokenizer and key_env are settings of an endpoint",
            why="the native engine runs the model's own files",
            fix="add engine endpoint, or leave them out",
        )
    return _native(spec, system, turns, chat, notify)


def _native(
    spec: EngineSpec, system: str | None, turns: int, chat: bool, notify: Callable[[str], None] | None
) -> Engine:
    from ojak.chat import chat_prefix
    from ojak.engines.native import NativeEngine
    from ojak.model.load import from_source, read_source

    source = read_source(spec.model, accept_license=spec.accept_license, notify=notify)
    if chat:
        chat_prefix(source.chat_template, source.tokenizer, system=system, turns=turns)
    return NativeEngine(from_source(source))


def _endpoint(
    spec: EngineSpec, system: str | None, turns: int, chat: bool, notify: Callable[[str], None] | None
) -> Engine:
    from ojak.engines.endpoint import EndpointEngine

    if not spec.url:
        raise UsageError("an endpoint needs its address", fix="give --url http://HOST:PORT")
    engine = EndpointEngine.open(
        spec.model,
        spec.url,
        tokenizer=spec.tokenizer,
        key_variable=spec.key_env,
        accept_license=spec.accept_license,
        notify=notify,
    )
    if chat:
        engine.chat_prefix(system, turns=turns)
    return engine
