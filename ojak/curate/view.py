"""A row on its way through curation: what rules look at, and where what was found out is kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ojak.judge.scores import row_of
from ojak.records import Conversation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOTES = "curate"  # the key under which a row's `meta` keeps what curation found


@dataclass(slots=True)
class View:
    """A conversation with its tags and scores, and `found`: what detectors say, by the name of the finding.

    A finding that is there and false (False, an empty list) means: looked for, nothing found. `vector` is the
    instruction's embedding (float32, unit length) where one was computed. `makers`: the identities of the models
    that set tags or scores, for `meta`.
    """

    conversation: Conversation
    tags: dict[str, Any]
    scores: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)
    vector: NDArray[np.float32] | None = None
    makers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, conversation: Conversation, *, fresh: bool = False) -> View:
        """The view of a conversation. `fresh`: what an earlier curation noted is left out."""
        notes = {} if fresh else conversation.meta.get(NOTES)
        found = notes.get("found") if isinstance(notes, dict) else None
        found = dict(found) if isinstance(found, dict) else {}
        return cls(conversation, dict(conversation.tags), dict(conversation.scores), found)

    @property
    def instruction(self) -> str:
        """The first thing that the user says, as a judge is shown it; empty if there is none."""
        return row_of(self.conversation).instruction

    @property
    def response(self) -> str:
        """What is answered to it (a greeting before it is no answer); empty if there is none."""
        return row_of(self.conversation).response

    def get(self, need: str) -> Any:
        """The value of "tags.x", "scores.x" or "found.x"; None where there is none."""
        place, _, name = need.partition(".")
        return getattr(self, place).get(name)

    def put(self, need: str, value: Any) -> None:
        """Set the value of "tags.x", "scores.x" or "found.x"."""
        place, _, name = need.partition(".")
        getattr(self, place)[name] = value

    def record(self) -> Conversation:
        """The conversation with its tags, its scores and, in `meta`, what was found."""
        meta = {**self.conversation.meta, **self.makers, NOTES: {"found": self.found}}
        return replace(self.conversation, meta=meta, tags=self.tags, scores=self.scores)
