"""One way from settings to an engine, for every stage and verb that asks a model something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from ojak._settings import wrong_value
from ojak.engines.base import Engine
from ojak.engines.endpoint_url import parse_address
from ojak.errors import UsageError


def _read_url(url: str | None) -> str | None:
    with wrong_value(shown=False):  # it may hold a password
        return parse_address(url).url if url else None


# What settings hold: the name of an engine, and an endpoint's address without a name and a password in it.
EngineName = Literal["native", "endpoint", "ray", "scripted"]
EngineUrl = Annotated[str | None, AfterValidator(_read_url)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Which engine, and what it runs: a known name, a file or a folder; for an endpoint the name that it serves.

    `model` "scripted" is the scripted engine, whatever `engine` says. `url` is the address of an endpoint, `tokenizer`
    where its template and tokenizer come from (None: the model's name, then the server), `key_env` the environment
    variable with its key (None: OJAK_ENDPOINT_KEY).

    Engine "ray" runs the same in `workers` processes: the model itself, or the endpoint if there is a `url`.
    `ray_address` is that of a cluster, None for one on this machine; `folder` is where workers keep what they finish.
    """

    model: str
    engine: EngineName = "native"
    url: str | None = None
    tokenizer: str | None = None
    key_env: str | None = None
    accept_license: tuple[str, ...] = ()
    workers: int | None = None
    ray_address: str | None = None
    folder: Path | None = None


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
    if spec.engine == "ray":
        return _ray(spec, system, turns, chat, notify)
    if spec.workers or spec.ray_address:
        raise UsageError(
            "workers and ray_address are settings of the engine ray", fix="add engine ray, or leave them out"
        )
    if spec.model == "scripted" or spec.engine == "scripted":
        from ojak.engines.scripted import ScriptedEngine

        return ScriptedEngine()
    if spec.engine == "endpoint":
        return _endpoint(spec, system, turns, chat, notify)
    if spec.engine != "native":
        raise UsageError(f"there is no engine {spec.engine!r}", fix="use native, endpoint, ray or scripted")
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


def _from_anywhere(name: str) -> str:
    """A name as it is, a path so that it holds in a worker's current folder, too."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _ray(
    spec: EngineSpec, system: str | None, turns: int, chat: bool, notify: Callable[[str], None] | None
) -> Engine:
    from ojak.engines.ray_cluster import import_ray
    from ojak.engines.ray_engine import RayEngine

    import_ray()  # said before anything is fetched
    inner = replace(
        spec, engine="endpoint" if spec.url else "native", workers=None, ray_address=None, folder=None
    )
    runs_model = inner.engine == "native" and inner.model != "scripted"
    if runs_model:
        from ojak.model.hub import find

        find(spec.model, accept_license=spec.accept_license, notify=notify)
        inner = replace(inner, model=_from_anywhere(spec.model))
    if spec.tokenizer:
        inner = replace(inner, tokenizer=_from_anywhere(spec.tokenizer))
    return RayEngine(
        partial(open_engine, inner, system=system, turns=turns, chat=chat),
        workers=spec.workers,
        address=spec.ray_address,
        folder=spec.folder,
        wants_gpu=runs_model,
    )
