"""Pairs by rules, made of one text after another: here, or in a process of its own that `rules_crew.py` keeps.

A request is a line of JSON, `{"items": [{"id", "bytes"}]}`, and the texts of all items in UTF-8; for each item one line
comes back: `{"pairs": [...], "discarded": [[reason, text], ...]}`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import orjson

from ojak import _child as child
from ojak.augment.pairs import Pair
from ojak.augment.parsed import Discarded
from ojak.augment.rounds import Work, check_works
from ojak.augment.rule_tasks import make_pairs
from ojak.augment.verify import VerifyConfig
from ojak.records import Document


def make(work: Work, *, seed: int, most: int, thresholds: VerifyConfig | None) -> None:
    """Gives a document its pairs; with thresholds, those that pass the check by rules."""
    work.take(make_pairs(work.document, seed=seed, most=most))
    work.pieces = 1
    if thresholds is not None:
        check_works(None, [work], thresholds)


def reply(work: Work) -> dict[str, Any]:
    """What was made, as it is sent."""
    return {
        "pairs": [pair.to_json() for pair in work.pairs],
        "discarded": [[each.reason, each.text] for each in work.discarded],
    }


def take(work: Work, sent: Mapping[str, Any]) -> None:
    """The inverse of `reply`."""
    work.pairs = [Pair.from_json(pair) for pair in sent["pairs"]]
    work.discarded = [Discarded(reason, text) for reason, text in sent["discarded"]]
    work.pieces = 1


def serve(settings: Mapping[str, Any]) -> None:
    """The process: answers until whoever asks is gone."""
    source, sink = child.streams()
    os.chdir("/")
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # nothing here needs it
    thresholds = settings["thresholds"]
    checked = None if thresholds is None else VerifyConfig(**thresholds)
    child.limit_memory(settings["memory_bytes"])
    child.put(sink, {"ready": True})
    while line := source.readline():
        items = orjson.loads(line)["items"]
        # All of it first: who sends reads no reply before everything is sent, and both sides would wait for the other.
        texts = [source.read(item["bytes"]).decode() for item in items]
        for item, text in zip(items, texts, strict=True):
            work = Work(Document(item["id"], text), "", 0)
            try:
                make(work, seed=settings["seed"], most=settings["most"], thresholds=checked)
            except MemoryError:
                raise SystemExit(child.OUT_OF_MEMORY) from None
            child.put(sink, reply(work))
