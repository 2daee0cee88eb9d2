"""Experiment 2 in one command: its data made, `continual.yaml` run. Interrupted, the same command goes on.

    python -m experiments.continual python --general wikitext.txt.gz --out runs/python
    python -m experiments.continual pubmedqa --domain pubmedqa.json.gz --general wikitext.txt.gz --out runs/pubmedqa

The factor `remedies` has, beside `once` (every text as often as any other), the three of arXiv 2406.14833, all at as
many tokens: `subset` reads a part of the texts several times, `best` the part that has most prose, `mixture` as much
general text as text of the field.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.real import parted, write_pubmedqa, write_wiki
from experiments.recipes import with_arms
from experiments.world import write_rows
from ojak.artifact import Artifact, publish
from ojak.augment.rules_text import Reading
from ojak.cli.work import run_recipe
from ojak.corpus.config import CorpusConfig
from ojak.corpus.run import make_corpus
from ojak.corpus.shipped import ShippedConfig, write_shipped
from ojak.formats import load
from ojak.records import Document

RECIPE = Path(__file__).parent / "continual.yaml"
PART = 0.25  # of the texts that are read several times


def write_python(out: Path, held_out: float, seed: int) -> None:
    """The texts that come with every Python, a share of them held out, and what their readers are asked for."""
    write_shipped(out / "all", ShippedConfig(facts=120))
    documents = [each for each in load(out / "all/texts.jsonl") if isinstance(each, Document)]
    out_of_it = parted([each.id for each in documents], held_out, seed)
    for name, wanted in (("texts", False), ("held_out", True)):
        rows = ({"text": each.text} for each in documents if (each.id in out_of_it) is wanted)
        write_rows(out / f"{name}.jsonl", rows)
    (out / "facts.jsonl").write_bytes((out / "all/facts.jsonl").read_bytes())


def once(out: Path, write: Callable[[Path], object]) -> Path:
    """The folder, written if it is not whole yet."""
    marker = out / "done"
    if not marker.is_file():
        write(out)
        marker.touch()
    return out


def part(corpus: Path, out: Path, order: Callable[[Document], Any]) -> str:
    """The first texts in an order, `PART` of all their characters."""
    if not (out / "manifest.json").is_file():
        found = [each for each in Artifact.open(corpus).records() if isinstance(each, Document)]
        left = PART * sum(len(each.text) for each in found)
        chosen: set[str] = set()
        for each in sorted(found, key=order):
            if left > 0:
                chosen.add(each.id)
                left -= len(each.text)
        kept = [each for each in found if each.id in chosen]
        publish(out, kind="corpus", records=kept, config={"part": PART}, inputs=[Artifact.open(corpus)])
    return str(out)


def prose(document: Document) -> float:
    """The share of a text's characters in whole sentences of words."""
    return sum(len(sentence.text) for sentence in Reading(document.text).prose) / max(1, len(document.text))


def remedies(domain: Path, general: Path) -> Path:
    """The recipe with the remedies in the place of the arms."""
    corpus = domain / "corpus"
    if not (corpus / "manifest.json").is_file():
        make_corpus(CorpusConfig(paths=(domain / "texts.jsonl",), profile="none"), corpus, notify=print)
    arms: dict[str, dict[str, Any]] = {
        "once": {},
        "subset": {"data": part(corpus, domain / "subset", lambda each: random.Random(each.id).random())},
        "best": {"data": part(corpus, domain / "best", lambda each: (-prose(each), each.id))},
        "mixture": {"replay": f"{general / 'texts.jsonl'}:1"},
    }
    return with_arms(RECIPE, domain / "remedies.yaml", arms)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Experiment 2: learning on from the texts of a field.")
    parser.add_argument("field", choices=("python", "pubmedqa"))
    parser.add_argument("--factor", choices=("arms", "remedies"), default="arms")
    parser.add_argument("--domain", type=Path, help="the abstracts, for pubmedqa")
    parser.add_argument("--general", type=Path, required=True, help="general text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe")
    found = parser.parse_args(arguments)
    if found.field == "pubmedqa" and found.domain is None:
        parser.error("pubmedqa needs --domain")
    domain = once(
        found.out / found.field,
        lambda out: (
            write_python(out, 0.2, 0)
            if found.field == "python"
            else write_pubmedqa(found.domain, out, 0.2, 0)
        ),
    )
    general = once(found.out / "general", lambda out: write_wiki(found.general, out, 0.5, 0))
    sets = [f"domain={domain}", f"general={general}"]
    recipe = remedies(domain, general) if found.factor == "remedies" else RECIPE
    run_recipe(recipe, found.out / found.factor, [*sets, *found.set], (), overwrite=False).check()


if __name__ == "__main__":
    main()
