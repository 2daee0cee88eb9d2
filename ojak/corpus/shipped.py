"""The texts that come with every Python: the language reference (`pydoc_data.topics`) and the standard library's help.

    OUT/texts.jsonl        a document for each topic of the reference and for each module
    OUT/facts.jsonl        what modules and functions are for, in a wording that no text has (`ojak evaluate --probe`)
    OUT/supervised.jsonl   the examples within the help, as conversations, for the arm `mix` of `ojak pretrain-mix`

Nothing is imported or run: sources are parsed. All follows from the Python at hand, and the seed.
"""

from __future__ import annotations

import ast
import doctest
import json
import platform
import random
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ojak._files import sha256_file, write_atomic
from ojak._settings import Settings
from ojak.artifact import Artifact, publish

TEXTS, FACTS, SUPERVISED = "texts.jsonl", "facts.jsonl", "supervised.jsonl"
LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "pydoc_data", "__pycache__",
}  # fmt: skip
DISTRACTORS = 4
LONGEST_ANSWER = 90  # characters


class ShippedConfig(Settings):
    """limit: at most so many documents, drawn by the seed. facts: at most so many of them are asked for."""

    limit: int | None = Field(default=None, ge=2)
    facts: int = Field(default=400, ge=1)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Help:
    """What the help says of a module, or of one of its functions and classes."""

    name: str
    kind: str
    text: str

    @property
    def summary(self) -> str:
        """Its first sentence, "" where that is no sentence of some words that could be an answer."""
        first = " ".join(self.text.strip().split("\n\n")[0].split())
        found = re.match(r"[A-Z][^.:;>`]{10,}?[.](?=\s|$)", first)
        return found[0] if found and len(found[0]) <= LONGEST_ANSWER and self.name not in found[0] else ""


def write_shipped(out: Path | str, config: ShippedConfig) -> Artifact:
    """Writes the three files, and a manifest (kind "texts") with their hashes and numbers of rows."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"shipped {config.seed}")
    modules = list(_modules(Path(sysconfig.get_paths()["stdlib"])))
    documents = [*_topics(), *(_document(module) for module in modules)]
    if config.limit is not None and len(documents) > config.limit:
        documents = draw.sample(documents, config.limit)
    kept = {row["id"] for row in documents}
    helps = [each for module in modules if _module_id(module) in kept for each in module]
    rows = {TEXTS: documents, FACTS: _facts(helps, config.facts, draw), SUPERVISED: list(_examples(helps))}
    stats: dict[str, Any] = {"python": platform.python_version()}
    for name, found in rows.items():
        write_atomic(out / name, _lines(found))
        stats[name] = {"rows": len(found), "sha256": sha256_file(out / name)}
    return publish(out, kind="texts", records=[], config=config.model_dump(mode="json"), stats=stats)


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _topics() -> Iterator[dict[str, Any]]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield {"id": f"topic-{name}", "text": text.strip(), "source": "pydoc_data.topics"}


def _modules(library: Path) -> Iterator[list[Help]]:
    """For each module with a docstring, that and those of its public functions and classes, in order."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT & set(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        name = ".".join(part for part in parts if part != "__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        if text := ast.get_docstring(tree):
            yield [Help(name, "module", text), *_members(tree, name)]


def _members(tree: ast.Module, module: str) -> Iterator[Help]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            if text := ast.get_docstring(node):
                yield Help(f"{module}.{node.name}", kind, text)


def _module_id(module: Sequence[Help]) -> str:
    return f"module-{module[0].name}"


def _document(module: Sequence[Help]) -> dict[str, Any]:
    parts = [f"{each.kind.capitalize()} {each.name}\n\n{each.text.strip()}" for each in module]
    return {"id": _module_id(module), "text": "\n\n".join(parts), "source": "standard library"}


def _facts(helps: Sequence[Help], most: int, draw: random.Random) -> list[dict[str, Any]]:
    """What things are for, beside what others of their kind are for."""
    summaries = [(each, each.summary) for each in helps]
    asked = [(each, summary) for each, summary in summaries if summary]
    by_kind: dict[str, list[str]] = {}
    for each, summary in asked:
        by_kind.setdefault(each.kind, []).append(summary)
    found = []
    for each, summary in draw.sample(asked, min(most, len(asked))):
        others = sorted({text for text in by_kind[each.kind] if text != summary})
        prompt = (
            f"Question: What does the help of Python say that the {each.kind} {each.name} is for?\nAnswer:"
        )
        wrong = draw.sample(others, min(DISTRACTORS, len(others)))
        found.append(
            {"id": each.name, "prompt": prompt, "answer": summary, "distractors": wrong, "kind": "help"}
        )
    return found


def _examples(helps: Sequence[Help]) -> Iterator[dict[str, Any]]:
    """Examples of one line with what they print."""
    parser = doctest.DocTestParser()
    for each in helps:
        try:
            examples = parser.get_examples(each.text)
        except ValueError:  # indented in a way that is none
            continue
        for example in examples:
            asked, said = example.source.strip(), example.want.strip()
            if said and "\n" not in said:
                turns = (("user", f"What does Python print?\n\n>>> {asked}"), ("assistant", said))
                yield {"messages": [{"role": role, "content": text} for role, text in turns]}
