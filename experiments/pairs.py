"""The pairs of augmented texts put otherwise: those of an invented world, wrong answers planted, checked ones alone.

    python -m experiments.pairs AUGMENTED --wrong 0.25 --out planted
    python -m experiments.pairs planted --verify --out checked

A wrong answer is that of another pair of the same maker (`source`), so that it is of the right kind. All texts are
written again by the templates that they had: arms made of them differ in nothing but the answers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ojak.artifact import Artifact, publish
from ojak.augment.draws import Draws
from ojak.augment.pairs import Pair
from ojak.augment.templates import render_group
from ojak.augment.verify import check_all
from ojak.records import Document

Change: TypeAlias = Callable[[Document, list[Pair]], list[Pair]]


def rewritten(source: Path, out: Path, change: Change, config: Mapping[str, Any]) -> Artifact:
    """The documents of an augmented artifact with changed pairs, in `out`; there already, it is left alone."""
    if (out / "manifest.json").is_file():
        return Artifact.open(out)
    origin = Artifact.open(source)
    seed = origin.manifest["config"]["seed"]
    counted = {"pairs": 0, "wrong": 0}

    def documents() -> Iterator[Document]:
        found = (record for record in origin.records() if isinstance(record, Document))
        for name, group in itertools.groupby(found, key=lambda document: str(document.meta["group"])):
            shots = [(document, change(document, pairs_of(document))) for document in group]
            texts = render_group(shots, Draws(seed, "templates", name))
            for (document, pairs), text in zip(shots, texts, strict=True):
                counted["pairs"] += len(pairs)
                counted["wrong"] += sum(pair.verified is False for pair in pairs)
                made = {"pairs": [pair.to_json() for pair in pairs], "augmented": text}
                yield replace(document, meta={**document.meta, **made})

    return publish(
        out,
        kind="augment",
        records=documents(),
        config={"seed": seed, **config},
        inputs=[origin],
        stats=counted,
    )


def pairs_of(document: Document) -> list[Pair]:
    return [Pair.from_json(pair) for pair in document.meta["pairs"]]


def planted(source: Path, out: Path, share: float, seed: int = 0) -> Artifact:
    """A share of all answers is wrong; such a pair has `verified` False."""
    answers: dict[str, list[str]] = {}
    for record in Artifact.open(source).records():
        for pair in pairs_of(record) if isinstance(record, Document) else ():
            answers.setdefault(pair.source, []).append(pair.answer)
    pools = {maker: sorted(set(found)) for maker, found in answers.items()}

    def change(document: Document, pairs: list[Pair]) -> list[Pair]:
        # A pair is wrong by its own number alone: what is wrong at a small share is wrong at every larger one.
        draws = [random.Random(f"{seed} {document.id} {number}") for number in range(len(pairs))]
        return [
            _wrong(pair, pools[pair.source], draw) if draw.random() < share else pair
            for pair, draw in zip(pairs, draws, strict=True)
        ]

    return rewritten(source, out, change, {"wrong": share, "planted_seed": seed})


def _wrong(pair: Pair, pool: Sequence[str], draw: random.Random) -> Pair:
    """With another answer, if there is one; of options, another one of them."""
    others = [answer for answer in pair.options or pool if answer.casefold() != pair.answer.casefold()]
    return replace(pair, answer=draw.choice(others), verified=False) if others else pair


def checked(source: Path, out: Path) -> Artifact:
    """Only the pairs that pass the check by rules."""

    def change(document: Document, pairs: list[Pair]) -> list[Pair]:
        verdicts = check_all(None, ((document.text, pair) for pair in pairs))
        return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.ok is not False]

    return rewritten(source, out, change, {"checked": True})


def given(source: Path, out: Path, texts: Iterable[Mapping[str, Any]]) -> Artifact:
    """The pairs that an invented world gives to its own articles (`texts`), as a synthesizer without a fault would."""
    known = {str(row["text"]): [Pair.from_json(pair) for pair in row["meta"]["pairs"]] for row in texts}
    return rewritten(source, out, lambda document, pairs: known.get(document.text, pairs), {"given": True})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The pairs of augmented texts put otherwise.")
    parser.add_argument("source", type=Path, help="what `ojak augment` made")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--wrong", type=float, help="the share of answers that become wrong")
    kind.add_argument("--verify", action="store_true", help="keep what passes the check")
    parser.add_argument("--seed", type=int, default=0, help="which answers become wrong, and which they get")
    parser.add_argument("--out", type=Path, required=True)
    found = parser.parse_args(arguments)
    made = (
        checked(found.source, found.out)
        if found.verify
        else planted(found.source, found.out, found.wrong, found.seed)
    )
    print(json.dumps({"out": str(made.path), **made.stats}))


if __name__ == "__main__":
    main()
