"""Tags for a stream of conversations: difficulty, input quality, task category, safety, language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from ojak.engines.base import Engine
from ojak.errors import UsageError
from ojak.judge.ask import Answer, Asker
from ojak.judge.labels import TAG_FIELDS
from ojak.judge.language import language
from ojak.judge.prompts import QUESTIONS, Row
from ojak.judge.safety import by_guard, by_rules
from ojak.judge.scores import row_of
from ojak.records import Conversation

BLOCK = 256
ASKED = ("difficulty", "input_quality", "task_category")
REASONS = {"Intent": "intent", "Knowledge": "knowledge", "Reason": "input_quality_reason"}
SUSPECT = re.compile(
    r"\b(?:ignore|disregard|forget)\b[^.\n]{0,40}\b(?:instructions?|rules|above|previous|prompt)\b"
    r"|\b(?:rate|label|grade|score|mark|classify)\s+(?:this|it|me|my)\b[^.\n]{0,60}\b(?:as|with|a|an)?\s*"
    r"(?:excellent|very good|very hard|very easy|5|100|safe)\b"
    r"|^[ \t]*(?:quality|difficulty|grade|mark|better|category)\s*:\s*(?:excellent|very|good|[1-5AB]\b)",
    re.IGNORECASE | re.MULTILINE,
)


class Tagger:
    """Tags conversations by a model (and language and safety without one).

    fields: some of TAG_FIELDS. engine: may be None where no field asks a model. guard: a guard model for `safety`;
    without one, rules. reason_tokens: for each free-text field, None for the default. `counts` has, for each field that
    was asked, how many labels were scored, parsed, repaired and unparsed.

    Raises UsageError for an unknown field, or for an engine that lacks what tagging needs.
    """

    def __init__(
        self,
        engine: Engine | None,
        fields: Sequence[str] = TAG_FIELDS,
        *,
        guard: Engine | None = None,
        seed: int = 0,
        reason_tokens: int | None = None,
    ) -> None:
        unknown = sorted(set(fields) - set(TAG_FIELDS))
        asked = [name for name in ASKED if name in fields]
        if unknown:
            raise UsageError(f"{unknown[0]!r} is no tag", fix=f"use some of: {', '.join(TAG_FIELDS)}")
        if asked and engine is None:
            raise UsageError(f"the tag {asked[0]!r} needs a model", fix="name one with --model")
        self.fields, self.asked, self.guard = tuple(fields), asked, guard
        self.asker = Asker(engine, seed, reason_tokens) if engine is not None and asked else None
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in asked}

    def tag(self, conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, dict[str, Any]]]:
        """(the conversation with its tags, the tags alone), in order; the stream is read in blocks."""
        stream = iter(conversations)
        while block := list(islice(stream, BLOCK)):
            for conversation, tags in zip(block, self._tags(block), strict=True):
                yield replace(conversation, tags={**conversation.tags, **tags}), tags

    def _tags(self, block: Sequence[Conversation]) -> list[dict[str, Any]]:
        rows = [row_of(conversation) for conversation in block]
        tags: list[dict[str, Any]] = [{} for _ in rows]
        for name in self.asked:
            assert self.asker is not None
            for each, answer in zip(tags, self.asker.ask(QUESTIONS[name], rows), strict=True):
                each |= self._read(name, answer)
        if "safety" in self.fields:
            verdicts = by_guard(self.guard, rows) if self.guard else map(by_rules, rows)
            for each, verdict in zip(tags, verdicts, strict=True):
                each |= verdict
        for each, row in zip(tags, rows, strict=True):
            if "language" in self.fields:
                each["language"] = language(row.instruction)
            if self.asked and is_suspect(row):
                each["injection"] = "suspect"
        return tags

    def _read(self, name: str, answer: Answer) -> dict[str, str]:
        self.counts[name][answer.how] += 1
        return {name: answer.label} | {REASONS[key]: value for key, value in answer.fields.items()}

    def stats(self) -> dict[str, Any]:
        """For the record: how labels were found, and how fast."""
        spent = self.asker.spent.to_dict() if self.asker else {}
        return {"labels": {name: dict(found) for name, found in self.counts.items()}, **spent}


def is_suspect(row: Row) -> bool:
    """Whether a text speaks to its judge. Reported, never a reason to believe or to drop it."""
    return any(SUSPECT.search(text[:20_000]) for text in (row.instruction, row.response))
