"""Requests and their completions as ledgers keep them: what names a request, and all that a completion says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ojak.ledger import Entry, request_key
from ojak.model.request import Completion, Request

_IN_COLUMNS = ("request", "text", "finish_reason", "prompt_tokens")
_IN_PAYLOAD = tuple(item.name for item in fields(Completion) if item.name not in _IN_COLUMNS)
_TUPLES = ("token_ids", "logprobs")


def key_of(request: Request, identity: Mapping[str, Any], **more: object) -> str:
    """Names a request by everything that shapes its completion; its length may grow (`Ledger.get`).

    identity: that of the engine. more: what else tells requests apart, such as the number of a sample.
    """
    if request.logprobs:
        more["logprobs"] = True
    return request_key(
        prompt=request.prompt,
        sampling=request.sampling.to_dict(),
        seed=request.seed,
        stop_ids=request.stop_ids,
        stop_strings=request.stop_strings,
        **more,
        **identity,
    )


def entry_of(key: str, completion: Completion, number: int) -> Entry:
    """A completion, whole; `number` is its place in the order in which it was asked."""
    payload = {name: getattr(completion, name) for name in _IN_PAYLOAD}
    return Entry(
        key=key,
        row=number,
        kind="request",
        state="ok",
        max_tokens=completion.request.max_tokens,
        finish_reason=completion.finish_reason,
        text=completion.text,
        token_count=completion.token_count,
        prompt_tokens=completion.prompt_tokens,
        payload=payload,
    )


def completion_of(entry: Entry, request: Request) -> Completion:
    """The completion that `entry_of` kept."""
    kept = {name: entry.payload[name] for name in _IN_PAYLOAD if name in entry.payload}
    kept |= {name: tuple(kept[name]) for name in _TUPLES if kept.get(name) is not None}
    return Completion(
        request=request,
        text=entry.text,
        finish_reason=entry.finish_reason or "",
        prompt_tokens=entry.prompt_tokens,
        **kept,
    )
