"""Training data of a synthesizer: texts with questions about them, as conversations in the published format.

The user says a text, the assistant its pairs; several examples of one set follow each other in a conversation, so that
the model learns to keep to one kind of task (arXiv 2406.14491, section 2.2). Written by the style `synthesizer` of
`ojak train`, the loss is on the pairs alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ojak._code import code_sha256
from ojak._files import sha256_file
from ojak._progress import silent
from ojak.artifact import Artifact, publish
from ojak.augment.draws import Draws
from ojak.augment.pairs import Pair
from ojak.augment.parsed import same_question
from ojak.augment.sources import Grounds, read_grounds
from ojak.augment.tagged import TAGS, unwritable, write_pairs
from ojak.errors import InputRefused, TargetExists
from ojak.records import Conversation, Message, record_id

KIND = "lessons"
MOST_EXAMPLES = 10_000  # of a set, those with the most pairs, as published: none outweighs the others
CODE = (
    "augment/lessons.py",
    "augment/sources.py",
    "augment/prompts.py",
    "augment/tagged.py",
    "augment/parsed.py",
)

Example = tuple[str, list[Pair]]


def make_lessons(
    paths: Sequence[Path | str],
    out: Path,
    *,
    shots: int = 3,
    seed: int = 0,
    notify: Callable[[str], None] = silent,
) -> Artifact:
    """Publish in `out` the examples of all sets in `paths`, `shots` of one set in a conversation; or find them there.

    Raises UsageError and InputRefused as `read_grounds` does, InputRefused if no example comes out, and TargetExists
    where `out` holds those of other data or settings.
    """
    places = [Path(path) for path in paths]
    config = {
        "data": [{"name": path.name, "sha256": content_sha256(path)} for path in places],
        "shots": shots,
        "seed": seed,
        "code_sha256": code_sha256(CODE),
    }
    if (out / "manifest.json").is_file() and (found := _there(out, config)):
        return found
    skipped: Counter[str] = Counter()
    sets: dict[str, Grounds] = {}
    for grounds in (each for path in places for each in read_grounds(path, skipped)):
        for context, pairs in grounds.pairs.items():
            sets.setdefault(grounds.name, Grounds(grounds.name)).add(context, pairs)
    examples = {name: _examples(grounds, seed, skipped) for name, grounds in sets.items()}
    told = {name: {"contexts": len(found), "pairs": sum(len(pairs) for _, pairs in found)}
            for name, found in examples.items()}  # fmt: skip
    if not any(examples.values()):
        raise InputRefused("there is nothing to learn from", why=f"left out: {dict(skipped)}")
    total = sum(each["pairs"] for each in told.values())
    notify(f"{total:,} pairs about {sum(map(len, examples.values())):,} texts of {len(told)} sets")
    records = (record for name, found in examples.items() for record in _lessons(name, found, shots))
    stats = {"sets": told, "skipped": dict(sorted(skipped.items()))}
    return publish(out, kind=KIND, records=records, config=config, stats=stats, replace=True)


def _there(out: Path, config: Mapping[str, Any]) -> Artifact | None:
    """The lessons that are there; None where an earlier version of the code made them of the same data: they are made
    anew. Raises TargetExists for others: a model may have learnt from them."""
    found = Artifact.open(out)
    if found.kind == KIND and found.manifest["config"] == config:
        return found.verify()
    if found.kind != KIND or {**found.manifest["config"], "code_sha256": config["code_sha256"]} != config:
        raise TargetExists(f"{out} holds lessons of other data or settings", fix="choose another folder")
    return None


def content_sha256(path: Path) -> str:
    """A hash over the content of a file, an artifact, or all files in a folder, wherever it lies."""
    if path.is_file():
        return sha256_file(path)
    if (path / "manifest.json").is_file():
        return Artifact.open(path).manifest_sha256
    digest = hashlib.sha256()
    for each in sorted(found for found in path.rglob("*") if found.is_file()):
        digest.update(
            f"{each.relative_to(path).as_posix()}\0{sha256_file(each)}\0".encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()


def _examples(grounds: Grounds, seed: int, skipped: Counter[str]) -> list[Example]:
    """The texts of a set with the pairs that can be written, in a random order that follows from the texts alone."""
    found: list[Example] = []
    for context, pairs in grounds.pairs.items():
        sound = list(_sound(pairs, skipped))
        if not context or any(tag in context for tag in TAGS):
            skipped["unusable_context"] += 1
        elif sound:
            found.append((context, sound))
    draws = Draws(seed, "lessons", grounds.name)
    most = sorted(found, key=lambda each: (-len(each[1]), draws.bits(each[0])))[:MOST_EXAMPLES]
    skipped["beyond_the_cap"] += len(found) - len(most)
    return sorted(most, key=lambda each: draws.bits(each[0]))


def _sound(pairs: Sequence[Pair], skipped: Counter[str]) -> Iterator[Pair]:
    """The pairs that the format can hold, each question once."""
    kept: list[Pair] = []
    for pair in pairs:
        if reason := unwritable(pair):
            skipped[reason] += 1
        elif any(same_question(pair, other) for other in kept):
            skipped["duplicate_question"] += 1
        else:
            kept.append(pair)
            yield pair


def _lessons(name: str, examples: Sequence[Example], shots: int) -> Iterator[Conversation]:
    for number, begin in enumerate(range(0, len(examples), shots)):
        together = examples[begin : begin + shots]
        messages: list[Message] = []
        for context, pairs in together:
            messages.append({"role": "user", "content": context})
            messages.append({"role": "assistant", "content": write_pairs(pairs)})
        meta: dict[str, Any] = {"set": name, "pairs": sum(len(pairs) for _, pairs in together)}
        yield Conversation(record_id(f"lessons {name}", number), messages, source=name, meta=meta)
