"""Requests that are not served: an HTTP status and OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ojak.serve.wire import json_response

INVALID = "invalid_request_error"


class Refusal(Exception):
    """What a client is told instead of an answer. `kind` and `code` are OpenAI's words, `param` the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """The client's request cannot be meant: 400."""
    return Refusal(400, message, param=param, code=code)


def stopping() -> Refusal:
    """The server is about to end: another one may be there soon."""
    return Refusal(503, "the server is stopping", kind="server_error", headers={"Retry-After": "5"})


def broken(message: str) -> Refusal:
    """Something of ours failed; nothing of it is told but a sentence."""
    return Refusal(500, message, kind="server_error")
