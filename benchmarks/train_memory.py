"""How near `ojak train --dry-run` comes to what a run then takes: peak memory, and the seconds of its steps.

Each setting is planned, and then run for a few steps in a process of its own. The aim: memory within 10 % on each.
The exit code says only whether everything ran.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

AIM = 0.10
# Name -> flags beyond model, data and length. They differ in what the memory goes into.
SETTINGS: dict[str, list[str]] = {
    "bf16, 8 rows": [],
    "bf16, 8 rows, bf16 states": ["--set", "optimizer.state_dtype=bfloat16"],
    "float32, 4 rows": ["--set", "dtype=float32", "--batch", "4"],
    "bf16, 16 rows, 4 at a time": ["--batch", "16", "--set", "micro_batch=4"],
    "bf16, packed to 1024": ["--set", "packing=true", "--batch", "2", "--max-len", "1024"],
    "bf16, packed to 2048, recomputed": [
        "--set", "packing=true", "--batch", "1", "--max-len", "2048", "--set", "gradient_checkpointing=true",
    ],
    "bf16, 8 rows, averaged weights": ["--set", "ema=0.99"],
    "LoRA, 8 rows": ["--lora"],
}  # fmt: skip


def command(args: argparse.Namespace, flags: list[str], out: pathlib.Path) -> list[str]:
    common = [
        "--model",
        args.model,
        "--data",
        *args.data,
        "--max-tokens",
        str(args.max_tokens),
        "--seed",
        "1",
    ]
    return [str(args.ojak), "train", "finetune", *common, "--out", str(out), *flags, "--json"]


def measure(args: argparse.Namespace, name: str, folder: pathlib.Path) -> dict[str, Any]:
    """The plan of one setting and its run."""
    words = command(args, SETTINGS[name], folder / harness.slug(name))
    plan = harness.json_object(harness.run([*words, "--dry-run"], limit_s=900.0).stdout)
    done = harness.json_object(harness.run(words, limit_s=3600.0).stdout)
    return {
        "planned_mb": plan["memory_mb"]["total"],
        "measured_mb": done["peak_memory_mb"],
        "error": round(plan["memory_mb"]["total"] / done["peak_memory_mb"] - 1, 4),
        "planned_s": plan["seconds"],
        "measured_s": done["seconds"],
        "steps": [plan["steps"], done["steps"]],
        "tokens": [plan["tokens"], done["tokens"]],
        "terms_mb": plan["memory_mb"],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", required=True, help="what to learn from, in any format of `ojak train`"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--max-tokens", type=int, default=4_000)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--ojak", type=pathlib.Path, default=pathlib.Path(sys.executable).parent / "ojak")
    parser.add_argument(
        "--scratch", type=pathlib.Path, help="where the runs are made (default: a temporary folder)"
    )
    parser.add_argument(
        "--results", type=pathlib.Path, help="folder to keep the figures in (default: only printed)"
    )
    return parser.parse_args()


def main() -> None:
    args, found = arguments(), {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        try:
            for name in args.only:
                found[name] = measure(args, name, pathlib.Path(folder))
                print(f"{name}: {found[name]['error']:+.1%}", file=sys.stderr)
        except harness.RunFailed as error:
            sys.exit(f"train_memory: {error}")
    rows = [
        (
            name, f"{each['planned_mb']:,.0f}", f"{each['measured_mb']:,.0f}", f"{each['error']:+.1%}",
            f"{each['planned_s']:.1f}", f"{each['measured_s']:.1f}",
        )
        for name, each in found.items()
    ]  # fmt: skip
    print(harness.table(("setting", "planned, MiB", "measured", "error", "planned, s", "measured"), rows))
    within = sum(abs(each["error"]) <= AIM for each in found.values())
    print(f"\n{within} of {len(found)} within {AIM:.0%}")
    if args.results:
        machine, now = harness.machine(), datetime.now(UTC)
        path = args.results / f"train-memory-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
        sections = {
            "at": now.isoformat(timespec="seconds"),
            "machine": machine,
            "model": args.model,
            "memory": found,
        }
        harness.update_results(path, sections)
        print(json.dumps({"results": str(path)}))


if __name__ == "__main__":
    main()
