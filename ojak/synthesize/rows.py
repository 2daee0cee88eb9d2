"""A row of a Magpie run, from its first instruction to its last answer, and the record that it becomes.

Where the parts of a row end up in its record:

    messages             the turns, with the first answer to each instruction
    meta                 seed, sampling, finish reason, tokens, raw text of the first turn; `persona` if it had one
    meta["turns"]        the same of each later turn
    meta["turn_end"]     why a conversation has fewer turns than were asked for; its reason is in tags["turn_end"], too
    meta["answers"]      with several answers to an instruction: [turn][sample], the first of them in `messages`, too
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ojak.ledger import Entry
from ojak.model.request import Sampling
from ojak.records import Conversation, Message, Rejected


@dataclass(slots=True)
class Turn:
    """An instruction and the answers to it: `answers` by the number of the sample."""

    asked: Entry
    instruction: str = ""
    edits: tuple[str, ...] = ()
    answers: dict[int, Entry] = field(default_factory=dict)

    @property
    def answered(self) -> Entry | None:
        """The answer that the conversation goes on with."""
        return self.answers.get(0)


@dataclass(frozen=True, slots=True)
class End:
    """Why turn `turn` (from 2) is not there: the `stage` that failed, its reason, and the raw text if there was one."""

    turn: int
    stage: str
    reason: str
    text: str = ""


@dataclass(slots=True)
class Row:
    """One row of the run. `waiting`: its requests that are not answered; `persona`: who asks, if somebody is given."""

    number: int
    sampling: Sampling
    persona: str | None = None
    turns: list[Turn] = field(default_factory=list)
    reason: str | None = None  # why it is rejected
    stage: str = "instruction"
    end: End | None = None
    waiting: int = 0
    finished: bool = False

    def texts(self) -> list[str]:
        """The turns so far, user's and assistant's: the last instruction may wait for its answer."""
        found: list[str] = []
        for turn in self.turns:
            found.append(turn.instruction)
            if turn.answered:
                found.append(turn.answered.text.strip())
        return found

    def drop_turn(self, stage: str, reason: str, raw: str) -> None:
        """The last turn is no good: the conversation ends before it."""
        self.end = End(len(self.turns), stage, reason, raw)
        self.turns.pop()


@dataclass(frozen=True, slots=True)
class Recorder:
    """Makes the records of a run's rows. `check` gives the reason why an answer to an instruction is no good, or None;
    `answers`: how many there are to each instruction; `identity`: the engine's."""

    record_id: Callable[[int], str]
    system: Callable[[Row], str | None]
    check: Callable[[str, Entry], str | None]
    identity: dict[str, Any]
    answers: int = 1

    def conversation(self, row: Row) -> Conversation:
        return Conversation(
            id=self.record_id(row.number),
            messages=[*self._opening(row), *_messages(row.texts())],
            source="magpie",
            meta=self.meta(row),
            tags={"turn_end": row.end.reason} if row.end else {},
        )

    def rejected(self, row: Row) -> Rejected:
        turn = row.turns[0]
        answered = turn.answered
        reply = [answered.text] if answered else []
        return Rejected(
            id=self.record_id(row.number),
            reason=row.reason or "",
            stage=row.stage,
            text=answered.text if answered else turn.asked.text,
            messages=[*self._opening(row), *_messages([turn.instruction, *reply])],
            source="magpie",
            meta=self.meta(row),
        )

    def meta(self, row: Row) -> dict[str, Any]:
        first, *later = row.turns
        meta: dict[str, Any] = {"method": "magpie", "row": row.number, **self.identity, **_facts(first)}
        if row.persona is not None:
            meta["persona"] = row.persona
        if later:
            meta["turns"] = [{"turn": number, **_facts(turn)} for number, turn in enumerate(later, 2)]
        if row.end:
            end = row.end
            meta["turn_end"] = {
                "turn": end.turn,
                "stage": end.stage,
                "reason": end.reason,
                "text": end.text,
            }
        if self.answers > 1 and first.answered:
            meta["answers"] = [self._answers(turn) for turn in row.turns]
        return meta

    def _opening(self, row: Row) -> list[Message]:
        system = self.system(row)
        return [{"role": "system", "content": system}] if system else []

    def _answers(self, turn: Turn) -> list[dict[str, Any]]:
        return [
            {
                "text": entry.text.strip(),
                "seed": entry.payload.get("seed"),
                "finish_reason": entry.finish_reason,
                "tokens": entry.token_count,
                "reason": self.check(turn.instruction, entry),
            }
            for _, entry in sorted(turn.answers.items())
        ]


def _messages(texts: list[str]) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def _facts(turn: Turn) -> dict[str, Any]:
    """What made a turn, apart for its instruction and its answer."""
    sides = {"instruction": turn.asked, "response": turn.answered}
    found = {side: entry for side, entry in sides.items() if entry}
    return {
        "seed": {side: entry.payload["seed"] for side, entry in found.items()},
        "sampling": {side: entry.payload["sampling"] for side, entry in found.items()},
        "finish_reason": {side: entry.finish_reason for side, entry in found.items()},
        "tokens": {side: entry.token_count for side, entry in found.items()},
        "prompt_tokens": {side: entry.prompt_tokens for side, entry in found.items()},
        "edits": list(turn.edits),
        "raw": {side: entry.text for side, entry in found.items() if side == "instruction"},
    }
