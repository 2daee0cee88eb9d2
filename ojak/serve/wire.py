"""Answers as bytes: JSON, and streams of events. (Bodies are read by `guard.read_json`.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
DONE = b"data: [DONE]\n\n"


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON. Text in it is data: the type is stated, and browsers are told not to guess another."""
    return Response(orjson.dumps(body), status, {**HEADERS, **(headers or {})}, "application/json")


def sse(body: Any) -> bytes:
    """One server-sent event. JSON has no raw line ends, so no text can forge another event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"
