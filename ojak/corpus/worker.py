"""The process that makes text of documents and decides about it: extraction, language, filters, each within limits.

A request is a line of JSON, `{"items": [{"kind", "bytes"}]}`, and the bytes of all items; for each item one line comes
back, as soon as it is decided: `{"text", "title", "language", "reason", "detail"}`. An item that breaks a limit of
time or memory ends the process in front of its line, so whoever waits knows which one it was.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

import orjson

from ojak import _child as child
from ojak.corpus.extract import Extracted, Unreadable, check_libraries, extract
from ojak.corpus.filters import Filters
from ojak.errors import OjakError


def serve(settings: Mapping[str, Any]) -> None:
    """The process: answers until whoever asks is gone."""
    source, sink = child.streams()
    os.chdir("/")
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # spaCy's thinc would load it: 200 MB for nothing
    try:
        filters = Filters(settings["profile"], tuple(settings["languages"]), settings["most_characters"])
        check_libraries()
    except (OjakError, ImportError) as error:
        child.put(sink, {"refused": error.what if isinstance(error, OjakError) else str(error)})
        return
    child.limit_memory(settings["memory_bytes"])
    child.put(sink, {"ready": True})
    while line := source.readline():
        _answer(line, source, sink, filters, settings["cpu_s"])


def _answer(line: bytes, source: IO[bytes], sink: IO[bytes], filters: Filters, cpu_s: float) -> None:
    items = orjson.loads(line)["items"]
    payload = memoryview(source.read(sum(item["bytes"] for item in items)))
    begin = 0
    for item in items:
        end = begin + item["bytes"]
        child.limit_time(cpu_s)
        try:
            reply = decided(item["kind"], bytes(payload[begin:end]), filters)
        except MemoryError:
            raise SystemExit(child.OUT_OF_MEMORY) from None
        child.limit_time(0)
        child.put(sink, reply)
        begin = end
    gc.collect()


def decided(kind: str, data: bytes, filters: Filters) -> dict[str, Any]:
    """What becomes of one document."""
    try:
        found = extract(kind, data)
    except Unreadable as error:
        return {"text": "", "title": "", "language": "", "reason": error.reason, "detail": str(error)}
    return decision(found, filters)


def decision(found: Extracted, filters: Filters) -> dict[str, Any]:
    """What the filters say of a text."""
    verdict = filters.decide(found.text)
    return {
        "text": verdict.text,
        "title": found.title,
        "language": verdict.language,
        "reason": verdict.reason,
        "detail": verdict.detail,
    }
