"""How fast labels are read: rows through `Tagger` without and with a reason, against plain prefill of the same prompts.

    python benchmarks/tagging.py --rows 96 --results benchmarks/results

"prefill" reads each prompt once, alone, in batches of prompts of equal length: what the engine could do at best without
sharing anything. "a prompt a label" reads it once for each label, as the scorer did before labels were branches.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import torch

import harness
from ojak.chat import encode_prompt
from ojak.engines.native import NativeEngine
from ojak.judge.ask import Asker
from ojak.judge.calibrate import bundled
from ojak.judge.prompts import CATEGORY_QUESTION, QUALITY_QUESTION, Question, Row
from ojak.model import score as scoring
from ojak.model.load import load_model


def rows(count: int) -> list[Row]:
    """The bundled rows again and again, numbered so that no two are the same."""
    samples = itertools.cycle(bundled())
    return [
        sample.row._replace(instruction=f"{sample.row.instruction} ({i})")
        for i, sample in zip(range(count), samples, strict=False)
    ]


@torch.inference_mode()
def prefill(engine: NativeEngine, prompts: list[list[int]]) -> float:
    """Tokens a second of hidden states and the last position's logits, in batches of prompts cut to one length."""
    decoder, read, begin = engine.model.decoder, 0, time.perf_counter()
    order = sorted(prompts, key=len)
    size = max(1, scoring.BATCH_TOKENS // len(order[-1]))
    for batch in (order[i : i + size] for i in range(0, len(order), size)):
        width = len(batch[0])
        x_BTD = decoder.hidden(torch.tensor([prompt[:width] for prompt in batch]))
        decoder.logits(x_BTD[:, -1:])
        read += width * len(batch)
    return read / (time.perf_counter() - begin)


def ask(
    engine: NativeEngine, question: Question, shown: list[Row], reason_tokens: int | None
) -> dict[str, float]:
    """Rows and prompt tokens a second."""
    asker = Asker(engine, reason_tokens=reason_tokens)
    asker.ask(question, shown)
    return {
        key: asker.spent.to_dict()[key] for key in ("rows_per_s", "tokens_per_s", "prompt_tokens", "seconds")
    }


def unshared(engine: NativeEngine, question: Question, shown: list[Row]) -> dict[str, float]:
    """The same labels with one reading of the prompt for each."""
    kept = scoring.BRANCH_TOKENS, scoring.LEAST_SHARED
    scoring.BRANCH_TOKENS, scoring.LEAST_SHARED = -(1 << 30), 1 << 30
    try:
        return ask(engine, question, shown, 0)
    finally:
        scoring.BRANCH_TOKENS, scoring.LEAST_SHARED = kept


def measure(engine: NativeEngine, question: Question, count: int, repeats: int) -> dict[str, Any]:
    """All ways in turn, the median of each."""
    shown = rows(count)
    asker = Asker(engine, reason_tokens=0)
    bare = dataclasses.replace(
        question, fields=(), examples=tuple(e._replace(fields=()) for e in question.examples)
    )
    prompts = [
        encode_prompt(engine.model.tokenizer, f"{asker.prompt(bare, row)}{question.label}:") for row in shown
    ]
    tokens = sum(map(len, prompts))
    ask(engine, question, shown[:8], 0)
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        found.setdefault("prefill", []).append(prefill(engine, prompts))
        found.setdefault("labels", []).append(ask(engine, question, shown, 0)["tokens_per_s"])
        found.setdefault("labels after a reason", []).append(
            ask(engine, question, shown, None)["tokens_per_s"]
        )
    found["a prompt a label"] = [unshared(engine, question, shown[: max(8, count // 8)])["tokens_per_s"]]
    rates = {name: harness.spread(each) for name, each in found.items()}
    return {"rows": count, "labels": len(question.labels), "prompt_tokens": tokens, "tokens_per_s": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=pathlib.Path, help="folder to keep the figures in")
    args = parser.parse_args()
    engine = NativeEngine(load_model(args.model))
    found = {
        question.name: measure(engine, question, args.rows, args.repeats)
        for question in (QUALITY_QUESTION, CATEGORY_QUESTION)
    }
    for name, each in found.items():
        lines = [(way, f"{rate['median']:,.0f}") for way, rate in each["tokens_per_s"].items()]
        print(
            f"{name}: {each['rows']} rows, {each['prompt_tokens']:,} prompt tokens, {each['labels']} labels"
        )
        print(harness.table(("way", "prompt tokens/s, median"), lines))
    if args.results:
        facts = {
            "date": datetime.now(UTC).isoformat(),
            "machine": harness.machine(),
            "model": args.model,
            **found,
        }
        path = args.results / f"tagging-{datetime.now(UTC):%Y-%m-%d}.json"
        path.write_text(json.dumps(facts, indent=1), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
