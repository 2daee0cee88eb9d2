"""Experiment 3 in one command: how good are the pairs of a tuned synthesizer, of the same model asked in words, of
rules?

    python -m experiments.synthesizer --data tatqa.json.gz pubmedqa.json.gz --unseen xquad.en.json.gz --out runs/pairs

The model is tuned on some context-QA sets, and all three make pairs of the texts of another one. Told of each: how many
pieces of what was written are pairs at all, how many of these the check by rules supports, how many of the words of
their questions differ, pairs a text. Intervals are of a bootstrap over texts. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.world import write_rows
from ojak.artifact import Artifact
from ojak.augment.config import AugmentConfig
from ojak.augment.lessons import make_lessons
from ojak.augment.pairs import Pair
from ojak.augment.run import augment_data
from ojak.augment.sources import read_grounds
from ojak.augment.verify import check_all
from ojak.records import Document, Rejected
from ojak.train.config import TrainConfig
from ojak.train.run import train

SAMPLES = 1_000  # of the bootstrap

Counts = dict[str, float]


def texts_of(path: Path, out: Path, most: int, seed: int) -> Path:
    """The contexts of a set as documents; at most so many, drawn."""
    file = out / "unseen.jsonl"
    if not file.is_file():
        found = sorted({text for grounds in read_grounds(path, Counter()) for text in grounds.pairs})
        drawn = random.Random(f"unseen {seed}").sample(found, min(most, len(found)))
        write_rows(file, ({"text": text} for text in drawn))
    return file


def tuned(model: str, data: Sequence[Path], out: Path, tokens: int) -> str:
    """The folder of the tuned model."""
    make_lessons(data, out / "lessons", shots=1)
    config = TrainConfig(
        objective="finetune", model=model, data=(str(out / "lessons"),), out=out / "tuned", style="synthesizer",
        max_tokens=tokens, lr=1e-4, batch=2, max_len=1024,
    )  # fmt: skip
    train(config, notify=print)
    return str(out / "tuned" / "model")


def counted(artifact: Artifact) -> dict[str, Counts]:
    """Of each text: pieces that were written, pairs among them, those that the check supports, their words."""
    found: dict[str, Counts] = {}
    for record in artifact.records():
        if isinstance(record, Document):
            pairs = [Pair.from_json(pair) for pair in record.meta["pairs"]]
            verdicts = list(check_all(None, ((record.text, pair) for pair in pairs)))
            words = [word.casefold() for pair in pairs for word in pair.question.split()]
            found[record.id] = {
                "pieces": len(pairs), "pairs": len(pairs), "supported": sum(each.ok is True for each in verdicts),
                "words": len(words), "different": len(set(words)), "texts": 1,
            }  # fmt: skip
    for record in artifact.rejected():
        if isinstance(record, Rejected) and record.meta["document"] in found:
            found[record.meta["document"]]["pieces"] += 1
    return found


MEASURES: Mapping[str, tuple[str, str]] = {
    "valid": ("pairs", "pieces"),
    "supported": ("supported", "pairs"),
    "distinct_words": ("different", "words"),
    "pairs_a_text": ("pairs", "texts"),
}


def told(texts: Mapping[str, Counts], seed: int = 0) -> dict[str, list[float]]:
    """[value, low, high] of each measure."""
    rows, draw = list(texts.values()), random.Random(f"bootstrap {seed}")
    samples = [draw.choices(rows, k=len(rows)) for _ in range(SAMPLES)]

    def ratio(above: str, below: str) -> Callable[[Sequence[Counts]], float]:
        return lambda some: sum(each[above] for each in some) / max(1.0, sum(each[below] for each in some))

    found: dict[str, list[float]] = {}
    for name, (above, below) in MEASURES.items():
        value = ratio(above, below)
        drawn = sorted(map(value, samples))
        found[name] = [round(x, 4) for x in (value(rows), drawn[SAMPLES // 40], drawn[-SAMPLES // 40])]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Experiment 3: pairs by a tuned model, an untuned one, and rules."
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="sets to tune on")
    parser.add_argument("--unseen", type=Path, required=True, help="a set whose texts pairs are made of")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=100_000, help="that are learnt from")
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    documents = texts_of(given.unseen, given.out, given.texts, 0)
    makers: dict[str, dict[str, Any]] = {
        "rules": {"synthesizer": "rules"},
        "asked": {"synthesizer": given.model, "format": "asked"},
        "tuned": {"synthesizer": tuned(given.model, given.data, given.out, given.tokens)},
    }
    results: dict[str, Any] = {}
    for name, settings in makers.items():
        out = given.out / f"pairs-{name}"
        if not (out / "manifest.json").is_file():
            augment_data(documents, out, AugmentConfig(verify=False, **settings), notify=print)
        results[name] = told(counted(Artifact.open(out)))
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
