"""LIFT on a small model: how many answers are longer than they may be, before and after, and at what price?

    python -m experiments.lift --data alpaca_cleaned_1000.json.gz --out lift

Short answers of the data's requests are the better ones of pairs, the model's own answers the worse ones. Four arms see
as many rows, in as many steps: rows and pairs twice over, or once as they are and once with a limit. Measured is, on
requests that no arm has seen, the share of answers over a limit that the data's own answer just keeps, and how probable
the data's answers are to the same requests without a limit. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ojak
from ojak.artifact import Artifact, publish
from ojak.evaluate.arms import compare
from ojak.evaluate.comparison import figures_of
from ojak.model.lora_config import LoraConfig
from ojak.records import Conversation, Preference, Record
from ojak.rules.rule import word_count
from ojak.train.config import CheckpointConfig
from ojak.train.rows import shuffled

BASE, SHORTEST, LONGEST = "base", 15, 60  # words of the data's answers
ARMS = ("sft-plain", "sft-lift", "dpo-plain", "dpo-lift")
RATES = {"sft": 2e-4, "dpo": 5e-5}


@dataclass(frozen=True, slots=True)
class Study:
    """What the command was asked for."""

    data: Path
    model: str
    out: Path
    rows: int
    test: int
    max_tokens: int

    def made(self, name: str, records: Iterable[Record]) -> Path:
        """The folder of some records, written unless it is there."""
        folder = self.out / name
        if not (folder / "manifest.json").exists():
            publish(folder, kind="rows", records=records, config={})
        return folder

    def limited(self, source: Path, name: str, **settings: Any) -> Path:
        folder = self.out / name
        if not (folder / "manifest.json").exists():
            ojak.lift_data(source, folder, ojak.LiftConfig(**settings))
        return folder

    def measured(self, model: str, data: Path, name: str, *measures: Any) -> Path:
        """The folder of an evaluation, made unless it is there."""
        folder = self.out / name
        if not (folder / "manifest.json").exists():
            ojak.evaluate_model(
                ojak.EvaluateConfig(
                    model=model, data=str(data), measures=measures, max_tokens=self.max_tokens
                ),
                folder,
            )
        return folder


def short_rows(study: Study) -> list[Conversation]:
    """Requests of one turn, without an input, whose answers are short; in an order that the data alone decide."""
    found = [row for row in ojak.load(study.data) if isinstance(row, Conversation) and fits(row)]
    return [found[i] for i in shuffled(len(found), "lift")[: study.rows + study.test]]


def fits(row: Conversation) -> bool:
    roles = [turn["role"] for turn in row.messages]
    plain = roles == ["user", "assistant"] and "alpaca_input" not in row.meta
    return plain and SHORTEST <= word_count(row.messages[1]["content"]) <= LONGEST


def pairs(rows: Sequence[Conversation], own: Path) -> Iterable[Preference]:
    """The data's answer against the model's own, where they differ."""
    written = {
        row.id: row.messages[-1] for row in Artifact.open(own).records() if isinstance(row, Conversation)
    }
    for row in rows:
        other = written.get(row.id)
        if other and other["content"].strip() not in ("", row.messages[1]["content"].strip()):
            yield Preference(row.id, row.messages[:1], row.messages[1:], [other])


def trained(study: Study, arm: str, data: Path) -> str:
    """The folder of an arm's adapter."""
    kind, _, form = arm.partition("-")
    config = ojak.TrainConfig(
        objective="prefer" if kind == "dpo" else "finetune", prefer=ojak.PreferConfig() if kind == "dpo" else None,
        model=study.model, data=(str(data),), out=study.out / arm, lora=LoraConfig(r=16), lr=RATES[kind],
        epochs=1 if form == "lift" else 2, batch=8, micro_batch=4, max_len=320,
        checkpoint=CheckpointConfig(every_steps=4),
    )  # fmt: skip
    ojak.train_model(config, notify=print)
    return str(study.out / arm / "adapter")


def run(study: Study) -> dict[str, Any]:
    """All arms, one after the other; gives the figures of each and the differences from the base."""
    rows = short_rows(study)
    train, test = rows[: study.rows], rows[study.rows :]
    plain, held = study.made("train", train), study.made("test", test)
    own = study.measured(study.model, plain, "own", "answers")
    chosen = study.made("pairs", pairs(train, own))
    data = {
        "sft-plain": plain,
        "sft-lift": study.limited(plain, "train-lift"),
        "dpo-plain": chosen,
        "dpo-lift": study.limited(chosen, "pairs-lift"),
    }
    limits = study.limited(held, "test-lift", slack=0.0, originals="none")
    figures = {BASE: [figures_for(study, BASE, study.model, held, limits)]}
    for arm in ARMS:
        figures[arm] = [figures_for(study, arm, trained(study, arm, data[arm]), held, limits)]
        print(
            arm,
            {name: round(getattr(value, "value", 0.0), 4) for name, value in figures[arm][0].items()},
            flush=True,
        )
    return compare(figures, BASE)


def figures_for(study: Study, arm: str, model: str, held: Path, limits: Path) -> dict[str, Any]:
    """Violations of limits; of requests without one, how probable the data's answers are."""
    answers = figures_of(study.measured(model, limits, f"measured/{arm}-limits", "answers"))
    free = figures_of(study.measured(model, held, f"measured/{arm}-free", "likelihood"))
    return {name: answers[name] for name in ("length_violations", "stopped", "chrf", "repetition")} | free


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="Alpaca rows, or others of one turn")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64, help="rows, and pairs, to learn from")
    parser.add_argument("--test", type=int, default=48, help="requests to measure by")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    study = Study(**vars(parser.parse_args()))
    study.out.mkdir(parents=True, exist_ok=True)
    found = run(study)
    (study.out / "figures.json").write_text(json.dumps(found, indent=1), "utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
