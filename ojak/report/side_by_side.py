"""The same requests answered by each model: the untrained one, and the first seed of every arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ojak.artifact import Artifact
from ojak.errors import OjakError
from ojak.records import Conversation
from ojak.report import text
from ojak.report.arms import arm_of, ordered
from ojak.report.folders import peek
from ojak.report.measures import Reservoir, as_number, is_fact

SHOWN, WITH_REFERENCE = 12, 8  # requests; at least so many of those whose own answer is known
MAX_MODELS, MAX_FOLDERS = 9, 256
MAX_ANSWER_CHARS, MAX_REQUEST_CHARS = 3_000, 6_000
MAX_TURNS = 10


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, or that there is none (`turn` is None): of a fact only `notes`."""

    arm: str
    turn: text.Turn | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and what each model says to it; `before`: what the heading does not hold of the request.

    fact: it was asked for by heart, and no model wrote anything: `answers` say how likely the right answer is.
    """

    heading: str
    before: list[text.Turn]
    reference: text.Turn | None
    answers: list[Said]
    fact: bool = False


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Requests drawn from `rows` answered ones; `models`: whose answers they are; `left_out`: folder -> why."""

    asked: list[Asked] = field(default_factory=list)
    rows: int = 0
    models: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> bool:
        """Whether there are facts among the requests."""
        return any(each.fact for each in self.asked)


def read_answers(folder: Path, arms: Sequence[str], *, seed: int = 0) -> SideBySide:
    """The answers in the artifacts of kind "evaluate" directly in `folder`; `arms`: the order to show them in."""
    found, left_out = _artifacts(folder)
    names = ordered(list(found), arms)[:MAX_MODELS]
    if not names:
        return SideBySide(left_out=left_out)
    rows, picked = _picked(found[names[0]], seed)
    answers = {name: _answers(found[name], picked) for name in names}
    asked = [_asked(row, names, answers) for row in picked.values()]
    return SideBySide(asked, rows, names, left_out)


def _artifacts(folder: Path) -> tuple[dict[str, Artifact], dict[str, str]]:
    """The artifact of each arm's first seed, and the folders whose artifact is damaged."""
    named = [(arm_of(path.parent.name), path.parent) for path in folder.glob("*/manifest.json")]
    places = sorted((seed, arm, place) for (arm, seed), place in named)
    found: dict[str, Artifact] = {}
    left_out: dict[str, str] = {}
    for _, arm, place in places[:MAX_FOLDERS]:
        if arm in found or peek(place).get("kind") != "evaluate":
            continue
        try:
            found[arm] = Artifact.open(place)
        except OjakError as error:
            left_out[place.name] = f"{error.what}; {error.why}" if error.why else error.what
    return found, left_out


def _picked(artifact: Artifact, seed: int) -> tuple[int, dict[str, Conversation]]:
    """The number of answered requests, and some of them by id: drawn evenly of those with a reference, and without."""
    samples: list[Reservoir[Conversation]] = [Reservoir(SHOWN, f"{seed}/answers/{part}") for part in range(2)]
    rows = 0
    for row in _conversations(artifact):
        rows += 1
        samples[is_fact(row) or not row.meta.get("reference")].add(row)
    known, other = (sample.items() for sample in samples)
    shown = known[: max(WITH_REFERENCE, SHOWN - len(other))]
    return rows, {row.id: row for row in [*shown, *other[: SHOWN - len(shown)]]}


def _conversations(artifact: Artifact) -> Iterable[Conversation]:
    """The rows that end with a model's answer to a user's request."""
    for row in artifact.records():
        if isinstance(row, Conversation) and [turn["role"] for turn in row.messages[-2:]] == [
            "user",
            "assistant",
        ]:
            yield row


def _answers(artifact: Artifact, picked: dict[str, Conversation]) -> dict[str, Conversation]:
    """Its answers to the picked requests; a row of the same id that asks something else is none."""
    return {
        row.id: row
        for row in _conversations(artifact)
        if row.id in picked and row.messages[:-1] == picked[row.id].messages[:-1]
    }


def _asked(row: Conversation, names: Sequence[str], answers: dict[str, dict[str, Conversation]]) -> Asked:
    *earlier, request = row.messages[:-1]
    heading = text.one_line(request["content"])
    turns = [(turn["role"], turn["content"]) for turn in earlier[-MAX_TURNS:]]
    if heading != request["content"] or not heading:
        turns.append((request["role"], request["content"]))
    reference = row.messages[-1]["content"] if is_fact(row) else row.meta.get("reference")
    return Asked(
        heading or "(empty)",
        [text.turn(role, content, MAX_REQUEST_CHARS) for role, content in turns],
        text.turn("reference", reference, MAX_ANSWER_CHARS)
        if isinstance(reference, str) and reference
        else None,
        [_said(name, answers[name].get(row.id)) for name in names],
        is_fact(row),
    )


def _said(arm: str, row: Conversation | None) -> Said:
    if row is None:
        return Said(arm, None)
    if is_fact(row):
        return Said(arm, None, _recalled(row))
    return Said(arm, text.turn("assistant", row.messages[-1]["content"], MAX_ANSWER_CHARS), _notes(row))


def _recalled(row: Conversation) -> list[str]:
    """What a model makes of the right answer."""
    notes = []
    if (exact := as_number(row.scores.get("exact"))) is not None:
        notes.append("would write it" if exact else "would not write it")
    if (rank := as_number(row.scores.get("rank"))) is not None:
        likelier = round(rank) - 1
        notes.append(
            f"{text.number(likelier) if likelier else 'no'} wrong answer{'s'[: likelier != 1]} likelier"
        )
    tokens, logprob = as_number(row.scores.get("tokens")), as_number(row.scores.get("logprob"))
    if tokens and logprob is not None:
        notes.append(f"{text.signed(text.fixed(abs(logprob / tokens), 2), logprob)} nats a token")
    return notes


def _notes(row: Conversation) -> list[str]:
    notes = []
    if (tokens := as_number(row.meta.get("tokens"))) is not None:
        notes.append(f"{text.number(tokens)} token{'' if tokens == 1 else 's'}")
    if row.meta.get("finish_reason") == "length":
        notes.append("cut at the token limit")
    if (followed := as_number(row.scores.get("followed"))) is not None:
        notes.append("follows the instruction" if followed else "does not follow the instruction")
    if (chrf := as_number(row.scores.get("chrf"))) is not None:
        notes.append(f"chrF {text.fixed(chrf, 1)}")
    if (judged := as_number(row.scores.get("judge_score"))) is not None:
        notes.append(f"judged {text.fixed(judged, 0)} of 100")
    return notes
