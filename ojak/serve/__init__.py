"""The native engine behind OpenAI's HTTP interface, for clients on this machine alone."""

from __future__ import annotations

import importlib.util

from ojak.errors import UsageError

HOST = "127.0.0.1"


def check_host(host: str) -> None:
    """Raises UsageError for any address but this machine's own."""
    if host not in (HOST, "localhost"):
        raise UsageError(
            f"ojak serves on {HOST} only, not on {host!r}",
            why="whoever reaches the port can use the model, and HTTP hides nothing on the way",
            fix="from another machine, use a tunnel with the same port: ssh -L 8000:127.0.0.1:8000 HOST",
        )


def check_web() -> None:
    """Raises UsageError if the packages of the extra `web` are missing."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "a server needs the extra `web`",
            why=f"not installed: {', '.join(missing)}",
            fix="pip install 'ojak[web]'",
        )
