"""Data sets to lay side by side: read once, in a stream, with their lengths, labels and a sample of instructions.

A turn is what a user says and what is answered to it; system prompts are not counted. Of a preference, the chosen
answer is taken. Rows are foreign input: a label that is missing or of another type counts as not there.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from ojak._files import sha256_file
from ojak.artifact import Artifact
from ojak.errors import InputRefused, UsageError
from ojak.formats import load
from ojak.records import AnyRecord, Conversation, Message, Preference
from ojak.report.measures import Lengths, Reservoir, dig
from ojak.report.openings import opening

MOST_SETS, MOST_SAMPLED = 8, 10_000
MOST_NAME_CHARS, MOST_LABEL_CHARS = 40, 40
MOST_LABELS = 200  # different ones that are counted for a field: there may be a new one in every row
BATCH_ROWS = 512
LABEL_FIELDS = ("input_quality", "difficulty", "task_category")
# A word is a run of letters and digits; scripts that write without spaces are counted by their characters.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_]+(?:['\u2019][^\W_]+)*"
)

Count: TypeAlias = Callable[[Sequence[str]], Sequence[int]]


@dataclass(slots=True)
class DataSet:
    """What the page says about one data set. Lengths are counted over turns, in words or tokens.

    sample: at most 10,000 first instructions, drawn evenly, in their order. skipped: rows without a user's turn.
    labels: field -> label -> rows, where rows have labels. openings: first words of requests and questions.
    """

    name: str
    source: str
    sha256: str
    rows: int = 0
    skipped: int = 0
    instruction: Lengths = field(default_factory=Lengths)
    response: Lengths = field(default_factory=Lengths)
    turn: Lengths = field(default_factory=Lengths)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    openings: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)


def words(text: str) -> list[str]:
    """The words of a text, case folded; of scripts without spaces, the characters."""
    return _WORD.findall(text.casefold())


def count_words(texts: Sequence[str]) -> list[int]:
    """How many words each text has."""
    return [sum(1 for _ in _WORD.finditer(text)) for text in texts]


def named(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, path) of each `NAME=PATH` or `PATH`; equal names are numbered.

    Raises UsageError for fewer than two, or more than eight.
    """
    if not 2 <= len(texts) <= MOST_SETS:
        raise UsageError(
            f"{len(texts)} data sets were given, and a comparison takes 2 to {MOST_SETS}",
            fix="give folders of artifacts, or files; a run's folder that is called `compare` is `./compare`",
        )
    found: list[tuple[str, Path]] = []
    for text in texts:
        name, path = _split(text)
        taken = {each for each, _ in found}
        numbered = (name if turn == 1 else f"{name} ({turn})" for turn in range(1, MOST_SETS + 1))
        found.append((next(each for each in numbered if each not in taken), path))
    return found


def _split(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and name and path and not os.path.exists(text):  # False for what no file can be called
        return name[:MOST_NAME_CHARS], Path(path)
    bare = Path(text).absolute().name
    stem = bare if Path(text).is_dir() else bare.partition(".")[0] or bare
    return (stem or text)[:MOST_NAME_CHARS], Path(text)


def read_set(name: str, path: Path, count: Count = count_words, *, seed: int = 0) -> DataSet:
    """Read every row of the artifact or file `path`; `seed` decides which instructions make the sample.

    Raises InputRefused for what cannot be read, and for data without a single instruction.
    """
    records = load(path)
    if path.is_dir():
        found = DataSet(name, f"{path.absolute().name}/", Artifact.open(path).manifest_sha256)
    else:
        found = DataSet(name, path.name, sha256_file(path))
    sample: Reservoir[str] = Reservoir(MOST_SAMPLED, f"{seed}/compare")
    while batch := list(islice(records, BATCH_ROWS)):
        _add(found, batch, count, sample)
    found.sample = sample.items()
    if not found.rows:
        raise InputRefused(
            f"{path} has no instruction to compare", why=f"none of its {found.skipped} rows has a user's turn"
        )
    return found


def _add(found: DataSet, batch: Iterable[AnyRecord], count: Count, sample: Reservoir[str]) -> None:
    pairs: list[tuple[str, str]] = []
    for record in batch:
        turns = list(_turns(_messages(record)))
        if not turns:
            found.skipped += 1
            continue
        found.rows += 1
        pairs += turns
        sample.add(turns[0][0])
        _add_labels(found, record)
        first = opening(turns[0][0])
        if first.kind != "other":
            found.openings[first.word] += 1
    asked, answered = count([ask for ask, _ in pairs]), count([answer for _, answer in pairs])
    for ask, answer in zip(asked, answered, strict=True):
        found.instruction.add(ask)
        found.response.add(answer)
        found.turn.add(ask + answer)


def _messages(record: AnyRecord) -> list[Message]:
    if isinstance(record, Preference):
        return [*record.prompt, *record.chosen]
    return record.messages if isinstance(record, Conversation) else []


def _turns(messages: Iterable[Message]) -> Iterator[tuple[str, str]]:
    """(what the user said, what the assistant said to it)."""
    ask, answer = None, ""
    for message in messages:
        if message["role"] == "user":
            if ask is not None:
                yield ask, answer
            ask, answer = message["content"], ""
        elif message["role"] == "assistant" and ask is not None:
            answer = f"{answer}\n{message['content']}" if answer else message["content"]
    if ask is not None:
        yield ask, answer


def _add_labels(found: DataSet, record: AnyRecord) -> None:
    """Our own tags, or the columns of the same names that published Magpie sets have."""
    for name in LABEL_FIELDS:
        label: Any = dig(getattr(record, "tags", None), name) or dig(record.meta, "extra", name)
        if isinstance(label, str) and label.strip():
            counts = found.labels.setdefault(name, Counter())
            label = label.strip()[:MOST_LABEL_CHARS]
            counts[label if label in counts or len(counts) < MOST_LABELS else "further labels"] += 1
