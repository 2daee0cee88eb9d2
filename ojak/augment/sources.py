"""Sets of texts with questions about them, in the forms in which they are published, as {context, pairs}.

    {"context": text, "pairs": [{"question", "answer", "options"?}]}   JSON lines
    documents of an artifact that `ojak augment` made
    SQuAD             {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}
    TAT-QA            [{"table": {"table"}, "paragraphs": [{"text"}], "questions": [{"question", "answer", "scale"}]}]
    PubMedQA          {PMID: {"QUESTION", "CONTEXTS", "final_decision", "LONG_ANSWER"}}
    prompts           {"template"?, "prompt", "completion"}, as far as `prompts.py` knows their layout

Files may be packed with gzip or Zstandard. Pairs about one context are gathered under it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ojak._compressed import open_unpacked
from ojak._files import disk_errors
from ojak.artifact import Artifact
from ojak.augment.pairs import Pair
from ojak.augment.prompts import read_prompt
from ojak.errors import InputRefused, UsageError
from ojak.records import Document

READ = (".json", ".jsonl")
PACKED = (".gz", ".zst")
MOST_BYTES = 2**30  # of a file that is one JSON value
YES_NO = ("yes", "no", "maybe")


@dataclass
class Grounds:
    """The contexts of one set, each with its pairs, in the order in which they first came."""

    name: str
    pairs: dict[str, list[Pair]] = field(default_factory=dict)

    def add(self, context: str, pairs: Iterable[Pair]) -> None:
        self.pairs.setdefault(context.strip(), []).extend(pairs)


def read_grounds(path: Path, skipped: Counter[str]) -> list[Grounds]:
    """The sets in a file, a folder of files or an artifact; each file is a set unless its rows name several.

    What gives no pair is counted in `skipped` by reason. Raises UsageError where nothing is at `path`, InputRefused for
    what is in none of the forms above.
    """
    if not path.exists():
        raise UsageError(f"there is nothing at {path}", fix="give a file or a folder of contexts with pairs")
    if path.is_dir() and (path / "manifest.json").is_file():
        found = Grounds(path.name)
        for record in Artifact.open(path).records():
            _of_document(record, found, skipped)
        return [found]
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if _is_data(each))
    if not files:
        raise InputRefused(f"{path} holds no data", fix="give .json or .jsonl files, packed or not")
    sets: dict[str, Grounds] = {}
    for file in files:
        name = file.name.split(".")[0] if file == path else file.relative_to(path).as_posix().split(".")[0]
        _read_file(
            file, lambda each, name=name: sets.setdefault(each or name, Grounds(each or name)), skipped
        )
    return [grounds for grounds in sets.values() if grounds.pairs]


def _is_data(path: Path) -> bool:
    name = Path(path.stem) if path.suffix in PACKED else path
    return path.is_file() and name.suffix in READ and not path.name.startswith(".")


SetOf = Callable[[str], Grounds]


def _read_file(path: Path, set_of: SetOf, skipped: Counter[str]) -> None:
    with disk_errors(path), open_unpacked(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputRefused(f"{path} is too large", why=f"it unpacks to more than {MOST_BYTES:,} bytes")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = _lines(path, data)
    try:
        for read in (_squad, _tatqa, _pubmedqa, _rows):
            if read(value, set_of, skipped):
                return
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputRefused(
            f"{path} is not what it seems to be", why=f"{type(error).__name__}: {error}"
        ) from error
    raise InputRefused(
        f"{path} is in no form that can be read",
        why="it holds no contexts with questions",
        fix='give lines of {"context": ..., "pairs": [{"question": ..., "answer": ...}]}',
    )


def _lines(path: Path, data: bytes) -> list[Any]:
    try:
        return [orjson.loads(line) for line in data.split(b"\n") if line.strip()]
    except orjson.JSONDecodeError as error:
        raise InputRefused(f"{path} is neither JSON nor JSON lines", why=str(error)) from error


def _squad(value: Any, set_of: SetOf, skipped: Counter[str]) -> bool:
    if not (isinstance(value, Mapping) and isinstance(value.get("data"), list)):
        return False
    for paragraph in (each for article in value["data"] for each in article["paragraphs"]):
        pairs = []
        for asked in paragraph["qas"]:
            if asked.get("answers"):
                pairs.append(Pair(asked["question"].strip(), asked["answers"][0]["text"].strip()))
            else:
                skipped["no_answer"] += 1
        set_of("").add(paragraph["context"], pairs)
    return True


def _tatqa(value: Any, set_of: SetOf, skipped: Counter[str]) -> bool:
    if not (isinstance(value, list) and value and isinstance(value[0], Mapping) and "questions" in value[0]):
        return False
    for each in value:
        table = "\n".join(" | ".join(map(str, row)) for row in each["table"]["table"])
        texts = [part["text"] for part in sorted(each["paragraphs"], key=lambda part: part["order"])]
        pairs = [Pair(asked["question"].strip(), _answer(asked)) for asked in each["questions"]]
        set_of("").add("\n\n".join([table, *texts]), pairs)
    return True


def _answer(asked: Mapping[str, Any]) -> str:
    """An answer of TAT-QA: a number with its scale, or texts."""
    said = asked["answer"]
    text = "; ".join(map(str, said)) if isinstance(said, list) else str(said)
    scale = asked.get("scale") or ""
    return f"{text}%" if scale == "percent" else f"{text} {scale}".strip()


def _pubmedqa(value: Any, set_of: SetOf, skipped: Counter[str]) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    if not all(isinstance(each, Mapping) and "CONTEXTS" in each for each in value.values()):
        return False
    for each in value.values():
        question, decision = each["QUESTION"].strip(), str(each["final_decision"])
        pairs = [Pair(question, decision, YES_NO if decision in YES_NO else ())]
        pairs += (
            [Pair(f"{question} Explain.", each["LONG_ANSWER"].strip())] if each.get("LONG_ANSWER") else []
        )
        set_of("").add("\n".join(each["CONTEXTS"]), pairs)
    return True


def _rows(value: Any, set_of: SetOf, skipped: Counter[str]) -> bool:
    rows = [value] if isinstance(value, Mapping) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return False
    if not all({"context", "pairs"} <= row.keys() or {"prompt", "completion"} <= row.keys() for row in rows):
        return False
    for row in rows:
        if "pairs" in row:
            context, pairs = row["context"], [Pair.from_json(pair) for pair in row["pairs"]]
            set_of(str(row.get("set") or "")).add(context, pairs)
        elif grounded := read_prompt(row["prompt"], row["completion"]):
            set_of(str(row.get("template") or "")).add(grounded.context, [grounded.pair])
        else:
            skipped["unknown_layout"] += 1
    return True


def _of_document(record: object, found: Grounds, skipped: Counter[str]) -> None:
    pairs = record.meta.get("pairs") if isinstance(record, Document) else None
    if isinstance(record, Document) and isinstance(pairs, list) and pairs:
        found.add(record.text, [Pair.from_json(pair) for pair in pairs])
    else:
        skipped["no_pairs"] += 1
