"""Experiment 1 in one command: its data made, `three-arms.yaml` run. Interrupted, the same command goes on.

    python -m experiments.three_arms arms --real wiki_demo.txt.gz --out runs/three-arms

    arms       vanilla, mix, instruct
    ratio      instruct, with 0, 1/10, 1/5, 1/2 and all of the tokens in texts with pairs
    wrong      pairs of the world itself, 0, 10, 25 and 50 % of the answers wrong; the last checked, too
    shots      1, 2 and 3 texts in a chain
    makers     pairs by rules, by the world itself, and by --synthesizer
    finetune   the arms, finetuned briefly: after `arms`

One factor at a time: a factor's arms have the same texts, tokens, seeds and order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.pairs import checked, given, planted
from experiments.real import write_wiki
from experiments.recipes import with_arms
from experiments.world import make_world, supervised, texts, write_rows, write_world
from ojak.augment.config import AugmentConfig
from ojak.augment.run import augment_data
from ojak.cli.work import run_recipe
from ojak.corpus.config import CorpusConfig
from ojak.corpus.run import make_corpus

HERE = Path(__file__).parent
FACTORS = ("arms", "ratio", "wrong", "shots", "makers", "finetune")
RATIOS = {"r0": 0.0, "r10": 0.1, "r20": 0.2, "r50": 0.5, "r100": 1.0}
WRONG = {"w0": 0.0, "w10": 0.1, "w25": 0.25, "w50": 0.5}
SHOTS = (1, 2, 3)

Arms = dict[str, dict[str, Any]]


class Data:
    """What the arms are made of, in a folder: each part is made when it is first asked for, and left alone after."""

    def __init__(self, out: Path, given: argparse.Namespace) -> None:
        self.out, self.asked = out, given
        self.world, self.real = out / "world", out / "real"
        marker = {"entities": given.entities, "mentions": given.mentions, "pieces": given.pieces}
        kept = out / "data.json"
        if kept.is_file() and json.loads(kept.read_text("utf-8")) != marker:
            raise SystemExit(f"{out} holds data of other sizes: choose another --out")
        if not kept.is_file():
            write_world(self.world, given.entities, given.mentions, 0)
            # Tasks of a third world: what finetuning is measured on.
            write_rows(self.world / "tasks.jsonl", supervised(max(8, given.entities // 4), 7))
            write_wiki(given.real, self.real, 0.2, 0, given.pieces)
            kept.write_text(json.dumps(marker), "utf-8")

    def corpus(self) -> Path:
        """The documents, with the ids that the recipe's own corpus gives them."""
        out = self.out / "corpus"
        paths = (self.world / "texts.jsonl", self.real / "texts.jsonl")
        if not (out / "manifest.json").is_file():
            make_corpus(CorpusConfig(paths=paths, profile="none"), out, notify=print)
        return out

    def augmented(self, name: str, **settings: Any) -> Path:
        out = self.out / f"augmented-{name}"
        if not (out / "manifest.json").is_file():
            augment_data(self.corpus(), out, AugmentConfig(**settings), notify=print)
        return out

    def of_the_world(self) -> Path:
        """The texts with the world's own pairs; real texts keep those of the rules."""
        rules, out = self.augmented("rules"), self.out / "augmented-world"
        world = make_world(self.asked.entities, 0)
        given(rules, out, texts(world, self.asked.mentions))
        return out


def arms_of(factor: str, data: Data) -> Arms:
    """The arms of a mix: settings by name."""
    if factor == "ratio":
        return {name: {"arm": "instruct", "ratio": ratio} for name, ratio in RATIOS.items()}
    if factor == "wrong":
        return _wrong(data)
    if factor == "shots":
        made = {f"m{shots}": data.augmented(f"m{shots}", shots=shots) for shots in SHOTS}
    else:
        made = {"rules": data.augmented("rules"), "world": data.of_the_world()}
        if data.asked.synthesizer:
            made["model"] = data.augmented("model", synthesizer=data.asked.synthesizer)
    return {"vanilla": {}, **{name: {"arm": "instruct", "data": str(path)} for name, path in made.items()}}


def _wrong(data: Data) -> Arms:
    right = data.of_the_world()
    made: dict[str, Path] = {}
    for name, share in WRONG.items():
        made[name] = planted(right, data.out / f"augmented-{name}", share).path
    made["w50checked"] = checked(made["w50"], data.out / "augmented-w50checked").path
    return {name: {"arm": "instruct", "data": str(path)} for name, path in made.items()}


def sets_of(factor: str, data: Data, more: Sequence[str]) -> list[str]:
    """What `ojak run --set` would be given."""
    places = {"world": data.world, "real": data.real}
    if factor == "finetune":
        places = {"world": data.world, "arms": data.out / "arms"}
    return [*(f"{name}={path}" for name, path in places.items()), *more]


def recipe_of(factor: str, data: Data) -> Path:
    """The recipe of a factor, its arms put in where they are not those of the file."""
    if factor == "finetune":
        return HERE / "three-arms-finetune.yaml"
    recipe = HERE / "three-arms.yaml"
    return (
        recipe if factor == "arms" else with_arms(recipe, data.out / f"{factor}.yaml", arms_of(factor, data))
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Experiment 1: three arms, and one factor at a time.")
    parser.add_argument("factor", choices=FACTORS)
    parser.add_argument("--real", type=Path, required=True, help="real text: an article on each line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--entities", type=int, default=30)
    parser.add_argument("--mentions", type=int, default=4)
    parser.add_argument("--pieces", type=int, default=24, help="of the real text, to learn from")
    parser.add_argument("--synthesizer", help="a model that makes pairs, for `makers`")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe")
    found = parser.parse_args(arguments)
    data = Data(found.out, found)
    sets, recipe = sets_of(found.factor, data, found.set), recipe_of(found.factor, data)
    run_recipe(recipe, found.out / found.factor, sets, (), overwrite=False).check()


if __name__ == "__main__":
    main()
