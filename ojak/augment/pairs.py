"""What a text is augmented with: a question and its answer, made from that very text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SYNTHESIZER = (
    "synthesizer"  # the source of a pair that a model wrote; of a rule-made one it is "rules:<task>"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer. With `options` the answer is one of them, word for word.

    `verified` is what the check against the text said, None where there was none; `scores` are its numbers.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    source: str = ""
    verified: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The pair as a document's `meta["pairs"]` holds it; `options` only where there are some."""
        options = {"options": list(self.options)} if self.options else {}
        return {
            "question": self.question,
            "answer": self.answer,
            **options,
            "source": self.source,
            "verified": self.verified,
            "scores": dict(self.scores),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pair:
        """The inverse of `to_json`; a row of another program needs only question and answer.

        Raises ValueError, naming the field that is missing or of another type.
        """
        for name in ("question", "answer"):
            if not isinstance(value.get(name), str):
                raise ValueError(f"{name!r} of a pair is not text but {type(value.get(name)).__name__}")
        options = value.get("options") or ()
        if not isinstance(options, list | tuple) or not all(isinstance(item, str) for item in options):
            raise ValueError("'options' of a pair is not a list of texts")
        return cls(
            question=value["question"],
            answer=value["answer"],
            options=tuple(options),
            source=str(value.get("source") or ""),
            verified=value.get("verified"),
            scores=dict(value.get("scores") or {}),
        )
