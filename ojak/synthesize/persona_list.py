"""Personas for a run: read from a file, one of them for each row, put into the row's system turn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ojak._jsonl import read_rows, refused
from ojak.artifact import Artifact
from ojak.errors import InputRefused, UsageError
from ojak.records import Document
from ojak.rules import check_response

MOST_CHARACTERS = 2_000  # of one persona
SYSTEM = "You are a helpful assistant."
TURN = (
    "The user who writes to you is this person: {persona} All that they ask comes out of their own life and work, "
    "in their own way of speaking."
)


@dataclass(frozen=True, slots=True)
class PersonaList:
    """Personas in the order of their file. `sha256` is that of the texts alone, whatever the format."""

    texts: tuple[str, ...]
    sha256: str

    def of_row(self, row: int, seed: int) -> str:
        """The persona of a row: in an order drawn from `seed`, each once before any of them comes again."""
        from ojak.engines.native import row_seed

        count = len(self.texts)
        step = 1 + row_seed(seed, "personas", "step") % count
        while math.gcd(step, count) > 1:
            step += 1
        return self.texts[(row * step + row_seed(seed, "personas", "begin")) % count]

    def check(self, special_tokens: Collection[str]) -> None:
        """Raises InputRefused for a persona that would forge a turn, or that shows as something else than it is."""
        for number, text in enumerate(self.texts, 1):
            reason = check_response(text, special_tokens=special_tokens)
            if reason:
                raise InputRefused(
                    f"persona {number} cannot stand in a system turn: {text[:60]!r}",
                    why=reason.removeprefix("response_"),
                    fix="remove it from the file",
                )


def persona_turn(persona: str, system: str | None) -> str:
    """The system turn for a persona, after the system text of the run."""
    return f"{system or SYSTEM} {TURN.format(persona=persona)}"


def read_personas(path: Path) -> PersonaList:
    """The personas in a text file (one a line), a file of JSON lines ({"persona"} or {"text"}), or an artifact's
    folder (`ojak synthesize personas` makes one). White space is collapsed, empty lines are left out.

    Raises UsageError if there is no such file, InputRefused, naming the line, for what is no persona.
    """
    if not path.exists():
        raise UsageError(f"there is no file {path}", fix="give a file of personas")
    digest, texts = hashlib.sha256(), []
    for where, raw in _raw(path):
        text = " ".join(raw.split())
        if len(text) > MOST_CHARACTERS:
            raise InputRefused(
                f"{path}, {where}: a persona of {len(text)} characters",
                why=f"at most {MOST_CHARACTERS} fit a system turn",
                fix="give one persona on each line",
            )
        if text:
            texts.append(text)
            digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    if not texts:
        raise InputRefused(
            f"{path} holds no personas", why="every line of it is blank", fix="give one persona on each line"
        )
    return PersonaList(tuple(texts), digest.hexdigest())


def _raw(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each persona as it stands in the file."""
    if path.is_dir():
        for record in Artifact.open(path).records():
            if not isinstance(record, Document):
                raise InputRefused(
                    f"{path} holds no personas", why="its records are no texts",
                    fix="give what `ojak synthesize personas` made, or a file with one persona on each line",
                )  # fmt: skip
            yield f"record {record.id}", record.text
    elif path.suffix in (".jsonl", ".json"):
        for line in read_rows(path):
            text = line.row.get("persona", line.row.get("text"))
            if not isinstance(text, str):
                raise refused(path, line, 'it has no text under "persona"')
            yield f"line {line.number}", text
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number in range(1, 2**62):
            raw = file.readline(8 * MOST_CHARACTERS)  # a longer line is refused by its length anyway
            if not raw:
                return
            try:
                yield f"line {number}", raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputRefused(f"{path}, line {number}: not UTF-8", why=str(error)) from error
