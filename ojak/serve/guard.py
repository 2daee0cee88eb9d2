"""Who may ask, and how: checked for every route, before any of them sees a request.

The server listens on 127.0.0.1, but that does not keep out a web page in a browser on the same machine: a page may
send requests there (CSRF), and may give its own name this address (DNS rebinding). So the Host must be ours, a request
that comes from another page is refused, bodies are JSON (a page cannot send that unasked), and no header allows any
other origin to read an answer.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ojak.errors import UsageError
from ojak.serve.refusal import Refusal, bad

KEY_VARIABLE = "OJAK_SERVE_KEY"
MOST_HEADER_BYTES = 16 << 10
MOST_BODY_BYTES = 1 << 20
MOST_DEPTH = 32
BODY_SECONDS = 10.0
NAMES = ("127.0.0.1", "localhost")


def checked_key(value: str | None) -> str | None:
    """The bearer token that clients must show; None if none was set. Raises UsageError for one that cannot be sent."""
    if value is None:
        return None
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise UsageError(
            f"{KEY_VARIABLE} cannot be used",
            why="it is empty, or holds spaces or characters that a header cannot carry",
            fix=f"set it to letters and digits, or unset {KEY_VARIABLE} to serve without a key",
        )
    return value


class Guard:
    """An ASGI application around another one, on the given port. `key`: a bearer token that every request must have."""

    def __init__(self, app: ASGIApp, port: int, key: str | None = None) -> None:
        self.app, self.key = app, key
        self.hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            self.check(scope)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Raises Refusal for a request that must not be served."""
        if head_bytes(scope) > MOST_HEADER_BYTES:  # the parser's own limit is for heads that come in pieces
            raise Refusal(431, f"a head may have {MOST_HEADER_BYTES:,} bytes at most")
        hosts = values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            raise Refusal(421, "this server answers to its own address only", code="wrong_host")
        foreign = any(origin not in self.origins for origin in values(scope, b"origin"))
        sites = values(scope, b"sec-fetch-site")
        if foreign or any(site not in ("same-origin", "none") for site in sites):
            raise Refusal(403, "requests from web pages are not served", code="foreign_origin")
        self.check_key(values(scope, b"authorization"))
        if scope["method"] == "POST":
            check_media(scope)

    def check_key(self, given: list[str]) -> None:
        if self.key is None:
            return
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        same = hmac.compare_digest(token.strip().encode(), self.key.encode())
        if scheme.lower() != "bearer" or not same:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "a valid API key is needed", code="invalid_api_key", headers=headers)


def head_bytes(scope: Scope) -> int:
    """The size of a request's target and headers."""
    target = len(scope["raw_path"]) + len(scope["query_string"])
    return target + sum(len(name) + len(value) for name, value in scope["headers"])


def values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header; a browser sends each of those looked at here once."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def check_media(scope: Scope) -> None:
    """Bodies are plain JSON of a limited size."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in values(scope, b"content-type")]
    encodings = [encoding.strip().lower() for encoding in values(scope, b"content-encoding")]
    if kinds != ["application/json"] or any(encoding != "identity" for encoding in encodings):
        raise Refusal(415, "a body must be application/json, and not compressed")
    for length in values(scope, b"content-length"):
        if not length.isdecimal() or len(length) > 12 or int(length) > MOST_BODY_BYTES:
            raise too_large()


def too_large() -> Refusal:
    return Refusal(413, f"a body may have {MOST_BODY_BYTES:,} bytes at most", code="body_too_large")


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body. Raises Refusal: too large, too slow, too deep, no object."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BODY_BYTES:
                    raise too_large()
    except TimeoutError as error:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from error
    try:
        value = orjson.loads(bytes(body))
    except ValueError as error:
        raise bad("the body is not valid JSON") from error
    if not isinstance(value, dict):
        raise bad("the body must be a JSON object")
    if depth_exceeds(value, MOST_DEPTH):
        raise bad(f"the body is nested more than {MOST_DEPTH} levels deep")
    return value


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether lists and objects in `value` are nested deeper than `most`; level by level, without recursion."""
    level = [value]
    for _ in range(most):
        level = [below for each in level for below in children(each)]
        if not level:
            return False
    return True


def children(value: Any) -> Iterator[Any]:
    """The lists and objects directly within a value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (each for each in inside if isinstance(each, dict | list))
