"""Folders of training and evaluation as the stages of a recipe leave them, with invented numbers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ojak.artifact import publish
from ojak.records import Conversation

METRICS = (
    "bits_per_byte", "chrf", "reference_logprob", "stopped", "repetition", "instructions", "val_loss", "seconds",
    "peak_memory_mb",
)  # fmt: skip
CENTRES = {
    "base": (1.62, 14.2, -2.31, 0.04, 0.41, 0.17),
    "alpaca": (0.874, 41.3, -1.204, 0.93, 0.031, 0.395, 1.201, 412.0, 3120.0),
    "phi3": (0.879, 41.0, -1.211, 0.955, 0.028, 0.405, 1.208, 381.0, 3080.0),
    "masked": (0.861, 42.9, -1.187, 0.93, 0.034, 0.41, 1.187, 409.0, 3120.0),
    "lora": (0.931, 38.1, -1.302, 0.88, 0.052, 0.33, 1.296, 275.0, 1490.0),
}
REQUESTS = [
    ("Rewrite the sentence using a simile.\nThe car is very fast.", "The car is as fast as lightning."),
    ("What type of cloud is typically associated with thunderstorms?", "Cumulonimbus clouds."),
    ("Name the author of 'Pride and Prejudice'.", "Jane Austen."),
    ("Convert 45 kilometers to meters.", "45 kilometers is 45000 meters."),
    ("Give a synonym for 'joyful'.", "A synonym for 'joyful' is 'delighted'."),
    ("Describe how a rainbow comes to be, in two sentences.", ""),
    ("Write three words that begin with the letter b. Answer in lower case.", ""),
]
ANSWERS = {
    "base": "The sentence is:\nThe sentence is:\nThe sentence is:\nThe sentence is:",
    "alpaca": "The car is as fast as a cheetah.",
    "phi3": "The car is as quick as the wind.",
    "masked": "A rainbow is made where sunlight enters drops of rain.\n\n1. It is bent.\n2. It is sent back.",
    "lora": "```python\nprint('as fast as light')\n```\nThat is all.",
}


def training_run(
    folder: Path,
    seed: int = 0,
    *,
    steps: int = 60,
    level: float = 1.2,
    checks: int = 0,
    config: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A finished run in `folder`: manifest.json and metrics.jsonl in the form of `ojak.train`. Gives its result."""
    rng = random.Random(f"{folder.name}/{folder.parent.name}/{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    tokens = 0
    for step in range(1, steps + 1):
        tokens += rng.randint(180, 260)
        loss = level + 1.6 * math.exp(-6 * step / steps) + rng.gauss(0, 0.12)
        lines.append(
            {"loss": loss, "lr": 1e-5, "step": step, "epoch": 0, "supervised_tokens": tokens, "seconds": 0.5}
        )
        if checks and step % max(1, steps // checks) == 0 and step < steps:
            lines.append({"step": step, "val_loss": level + 0.1 + 1.2 * math.exp(-5 * step / steps)})
    lines.append({"step": steps, "val_loss": level + 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    found = {
        "steps": steps, "tokens": 2 * tokens, "supervised_tokens": tokens, "seconds": 31.5 * (1 + seed / 10),
        "tokens_per_s": 2 * tokens / 31.5, "loss_first": lines[0]["loss"], "loss_last": lines[-2].get("loss"),
        "val_loss": level + 0.1, "peak_memory_mb": 1800.0, **(result or {}),
    }  # fmt: skip
    settings = {
        "objective": "finetune", "model": "gemma-3-270m", "data": ["rows"], "seed": seed, "lr": 2e-5, "batch": 8,
        "style": "alpaca", "lora": None, "mask_roles": ["system", "user"], **(config or {}),
    }  # fmt: skip
    manifest = {
        "schema_version": 1, "kind": "training", "ojak_version": "0.1.0", "torch": "2.13.0", "config": settings,
        "config_sha256": "c" * 64, "model_sha256": "d" * 64, "rows": {"rows": 935}, "result": found,
        "files": [{"path": "model/model.safetensors", "bytes": 536_000_000, "sha256": "e" * 64}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return found


def training(folder: Path, arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """The stage `train` with arms: what `training_run` takes for each."""
    runs = [
        {"arm": arm, "seed": seed, "folder": f"{arm}/seed-{seed}",
         "result": training_run(folder / arm / f"seed-{seed}", seed, **options)}
        for seed in seeds for arm, options in arms.items()
    ]  # fmt: skip
    publish(
        folder, kind="train", records=[], config={"arms": {arm: {} for arm in arms}}, stats={"runs": runs}
    )
    return folder


def estimate(values: Sequence[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    half = max(max(values) - min(values), 0.01 * abs(mean))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def difference(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "decided": abs(value) > half}


def comparison(
    folder: Path, arms: Sequence[str], against: str, *, seeds: int = 3, answers: bool = True
) -> Path:
    """The stage `evaluate` over arms of `CENTRES` ("base" among them), with the answers of each."""
    rng = random.Random(3)
    measured: dict[str, dict[str, Any]] = {}
    for arm in arms:
        count = 1 if arm == "base" else seeds
        centres = dict(zip(METRICS, CENTRES[arm], strict=False))
        measured[arm] = {
            name: estimate([centre * rng.gauss(1, 0.004) for _ in range(count)])
            for name, centre in centres.items()
        }
    differences = {
        arm: {
            name: difference(line[name]["mean"] - measured[against][name]["mean"], 0.02 * abs(line[name]["mean"]))
            for name in line if name in measured[against]
        }
        for arm, line in measured.items() if arm != against
    }  # fmt: skip
    stats = {"metrics": list(METRICS), "arms": measured, "against": against, "differences": differences}
    publish(folder, kind="comparison", records=[], config={"base": True}, stats=stats)
    for arm in arms if answers else ():
        for seed in range(1 if arm == "base" else seeds):
            name = arm if arm == "base" else f"{arm}-seed-{seed}"
            answered(folder / name, f"{ANSWERS[arm]}" + f" ({seed})" * (seed > 0))
    return folder


def answered(
    folder: Path, said: str, requests: Sequence[tuple[str, str]] = tuple(REQUESTS), **meta: Any
) -> None:
    """An artifact of kind "evaluate": every request answered with `said`."""
    rows = []
    for number, (request, reference) in enumerate(requests):
        turns: Any = [{"role": "user", "content": request}, {"role": "assistant", "content": said}]
        known = {"reference": reference} if reference else {}
        scores = {"repetition": 0.1, **({"chrf": 31.25} if reference else {"followed": 1.0})}
        more = {"finish_reason": "stop", "tokens": len(said) // 4, **known, **meta}
        rows.append(Conversation(f"q{number}", turns, "", more, {}, scores))
    publish(folder, kind="evaluate", records=rows, config={"seed": 0}, stats={"model": folder.name})


def chapter7_run(folder: Path) -> Path:
    """A run of the stages rows, train and evaluate: four arms, three seeds each, and the untrained model."""
    rows = [
        Conversation(
            f"r{n}", [{"role": "user", "content": q}, {"role": "assistant", "content": a or "Well."}]
        )
        for n, (q, a) in enumerate(REQUESTS)
    ]
    splits = {"train": rows[:5], "validation": rows[5:6], "test": rows[6:]}
    publish(
        folder / "rows", kind="rows", splits=splits, config={"data": ["instruction-data.json"], "seed": 0}
    )
    training(
        folder / "train",
        {
            "alpaca": {"level": 1.2, "checks": 6},
            "phi3": {"level": 1.21, "checks": 6, "config": {"style": "phi3"}},
            "masked": {"level": 1.19, "checks": 6, "config": {"mask_roles": []}},
            "lora": {"level": 1.3, "checks": 6, "config": {"lora": {"r": 16, "alpha": 16}, "lr": 2e-4}},
        },
    )
    comparison(folder / "evaluate", ["base", "alpaca", "phi3", "masked", "lora"], "alpaca")
    return folder


def quickstart_models(folder: Path) -> Path:
    """The stages train and evaluate of a run with one arm and one seed, beside what `folder` holds."""
    training_run(folder / "train", level=1.1, config={"lora": {"r": 16}})
    comparison(folder / "evaluate", ["base", "alpaca"], "base", seeds=1)
    path = folder / "evaluate"
    assert (path / "alpaca-seed-0" / "manifest.json").is_file()
    return folder
