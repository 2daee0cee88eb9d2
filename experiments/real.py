"""Real texts as lines of {"text"}: raw files cut into pieces, and biomedical abstracts with their questions.

    python -m experiments.real wiki wiki_demo.txt.gz --out real
    python -m experiments.real pubmedqa pubmedqa.json.gz --out pubmed

    real/texts.jsonl       what is learnt from
    real/held_out.jsonl    pieces of other articles; no article is in both

and of the abstracts, too,

    pubmed/facts.jsonl     questions for `ojak evaluate --probe`: "closed" about abstracts that are learnt from, without
                           them; "open" about held-out ones, which stand in the prompt
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.world import write_rows

PIECE = 1_200  # characters
MOST_ASKED = 60  # questions of each kind: each open one has an abstract before it
ENDS = re.compile(r"(?<=[.!?]) (?=[A-Z])")
ANSWERS = ("yes", "no", "maybe")


def unpacked(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def pieces(text: str) -> Iterator[str]:
    """Whole sentences, about `PIECE` characters of them."""
    piece = ""
    for sentence in ENDS.split(text):
        if piece and len(piece) + len(sentence) > PIECE:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}".strip()
    if piece:
        yield piece


def parted(names: Sequence[str], held_out: float, seed: int) -> set[str]:
    """The names that are held out."""
    drawn = random.Random(f"real {seed}").sample(sorted(names), len(names))
    return set(drawn[: max(1, round(held_out * len(drawn)))])


def write_wiki(path: Path, out: Path, held_out: float, seed: int, most: int | None = None) -> dict[str, int]:
    """An article on each line, or with a heading between ` = ` signs, in pieces; at most `most` to learn from."""
    whole = unpacked(path)
    articles = re.split(r"\n = [^=].* = \n", whole) if "\n = " in whole else whole.split("\n")
    known = {str(number): text for number, text in enumerate(articles) if len(text) > PIECE}
    out_of_it = parted(list(known), held_out, seed)
    kept: list[dict[str, str]] = []
    others: list[dict[str, str]] = []
    for name, text in known.items():
        (others if name in out_of_it else kept).extend(
            {"text": piece, "article": name} for piece in pieces(text) if len(piece) > PIECE // 4
        )
    drawn = random.Random(f"pieces {seed}").sample(kept, min(len(kept), most or len(kept)))
    out.mkdir(parents=True, exist_ok=True)
    return {
        "texts": write_rows(out / "texts.jsonl", drawn),
        "held_out": write_rows(out / "held_out.jsonl", others),
    }


def write_pubmedqa(path: Path, out: Path, held_out: float, seed: int) -> dict[str, int]:
    """Abstracts with their conclusions, and questions about them."""
    found: Mapping[str, Mapping[str, Any]] = json.loads(unpacked(path))
    out_of_it = parted(list(found), held_out, seed)
    asked = [*sorted(out_of_it)[:MOST_ASKED], *sorted(found.keys() - out_of_it)[:MOST_ASKED]]
    texts = {name: "\n".join([*each["CONTEXTS"], each["LONG_ANSWER"]]) for name, each in found.items()}
    out.mkdir(parents=True, exist_ok=True)
    kept = [name for name in found if name not in out_of_it]

    def rows(names: Iterable[str]) -> Iterator[dict[str, str]]:
        return ({"text": texts[name], "article": name} for name in names)

    return {
        "texts": write_rows(out / "texts.jsonl", rows(kept)),
        "held_out": write_rows(out / "held_out.jsonl", rows(sorted(out_of_it))),
        "facts": write_rows(out / "facts.jsonl", (_fact(n, found[n], n in out_of_it) for n in asked)),
    }


def _fact(name: str, each: Mapping[str, Any], is_held_out: bool) -> dict[str, Any]:
    asked = f"Question: {each['QUESTION'].strip()} Answer yes, no or maybe.\nAnswer:"
    shown = "\n".join(each["CONTEXTS"])  # without the conclusion, which holds the answer
    right = each["final_decision"]
    return {
        "id": name, "kind": "open" if is_held_out else "closed", "answer": right,
        "prompt": f"{shown}\n\n{asked}" if is_held_out else asked,
        "distractors": [answer for answer in ANSWERS if answer != right],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Real texts to learn from and to measure on.")
    parser.add_argument("kind", choices=("wiki", "pubmedqa"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--held-out", type=float, default=0.2, help="the share of articles that are held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    write = write_wiki if given.kind == "wiki" else write_pubmedqa
    print(json.dumps(write(given.path, given.out, given.held_out, given.seed)))


if __name__ == "__main__":
    main()
