"""From a model's name to a server that is ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ojak.engines.native import NativeEngine
from ojak.engines.open import EngineSpec, open_engine
from ojak.errors import UsageError
from ojak.serve.guard import KEY_VARIABLE, checked_key
from ojak.serve.served import Served
from ojak.serve.server import Service, bind


def open_service(
    model: str,
    *,
    port: int,
    max_concurrent: int,
    accept_license: tuple[str, ...] = (),
    notify: Callable[[str], None],
) -> Service:
    """Takes the port, loads the model and readies the engine; `serve_until_stopped` of the result begins.

    The key is read from OJAK_SERVE_KEY. Raises UsageError for a port or key that cannot be used, and what loading a
    model raises.
    """
    key = checked_key(os.environ.get(KEY_VARIABLE))
    bound = bind(port)  # first: it costs nothing to find that it is taken
    try:
        engine = open_engine(
            EngineSpec(model=model, accept_license=accept_license), chat=False, notify=notify
        )
        if not isinstance(engine, NativeEngine):
            raise UsageError(
                f"{model!r} cannot be served", why="only a model that runs here has tokens to stream"
            )
        engine.slots = max_concurrent
        return Service(Served(engine), bound, key=key, notify=notify)
    except BaseException:
        bound.close()
        raise


def facts(service: Service) -> dict[str, Any]:
    """What a program that started the server wants to know once it is ready."""
    served = service.served
    return {
        "ready": True,
        "url": service.url,
        "port": service.port,
        "pid": os.getpid(),
        "model": served.name,
        "chat": served.prefix is not None,
        "max_concurrent": served.engine.slots,
        "max_model_len": served.room,
        "key_required": service.key is not None,
    }
