"""How near `ojak train --dry-run` comes to what a run then takes: peak memory, and the seconds of its steps.

Each setting is planned, and then run for a few steps in a process of its own. The aim: memory within 10 % on each,
seconds within 25 %. Seconds are told for an idle machine, so they are held against the CPU seconds of the run's leading
thread, which is what its clock shows where nothing else runs; the clock's own are kept beside them.

The plan was made while looking at the first eight settings. The others were never looked at before it was done.
The exit code says only whether everything ran.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

AIM, SECONDS_AIM = 0.10, 0.25
FIRST = "smollm2-135m-instruct"
GEMMA = "gemma-3-270m"  # a vocabulary of 262,144
FRESH = "fresh"
FRESH_SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 256,
    "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """Flags beyond data and length, the model, what is learnt, and whether the plan was made by looking at it."""

    flags: tuple[str, ...] = ()
    model: str = FIRST
    verb: str = "finetune"
    looked_at: bool = True


# They differ in what the memory goes into.
SETTINGS = {
    "bf16, 8 rows": Setting(),
    "bf16, 8 rows, bf16 states": Setting(("--set", "optimizer.state_dtype=bfloat16")),
    "float32, 4 rows": Setting(("--set", "dtype=float32", "--batch", "4")),
    "bf16, 16 rows, 4 at a time": Setting(("--batch", "16", "--set", "micro_batch=4")),
    "bf16, packed to 1024": Setting(("--set", "packing=true", "--batch", "2", "--max-len", "1024")),
    "bf16, packed to 2048, recomputed": Setting((
        "--set", "packing=true", "--batch", "1", "--max-len", "2048", "--set", "gradient_checkpointing=true",
    )),
    "bf16, 8 rows, averaged weights": Setting(("--set", "ema=0.99")),
    "LoRA, 8 rows": Setting(("--lora",)),
    "Gemma, bf16, 8 rows": Setting(("--style", "alpaca"), GEMMA, looked_at=False),
    "Gemma, LoRA, 8 rows": Setting(("--style", "alpaca", "--lora"), GEMMA, looked_at=False),
    "Gemma, float32, 2 rows": Setting(
        ("--style", "alpaca", "--set", "dtype=float32", "--batch", "2"), GEMMA, looked_at=False
    ),
    "a fresh model of 5M, 32 rows": Setting(("--batch", "32"), FRESH, "pretrain", looked_at=False),
    "bf16, packed to 512, 4 at once": Setting(
        ("--set", "packing=true", "--batch", "4", "--max-len", "512", "--set", "micro_batch=4"), looked_at=False
    ),
    "bf16, packed to 1536, Muon": Setting((
        "--set", "packing=true", "--batch", "1", "--max-len", "1536", "--set", "optimizer.name=muon",
    ), looked_at=False),
}  # fmt: skip


def command(args: argparse.Namespace, setting: Setting, out: pathlib.Path) -> list[str]:
    """The run of a setting, in the folder `out`."""
    model = str(out.parent / FRESH) if setting.model == FRESH else setting.model
    words = [str(args.ojak), "train", setting.verb, "--model", model, "--data", *args.data, "--out", str(out)]
    words += ["--max-tokens", str(args.max_tokens), "--seed", "1"]
    return [*words, *setting.flags, "--json"]


def make_fresh(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """A model without weights, with a tokenizer learnt from the data. Raises harness.RunFailed."""
    words = [str(args.ojak), "tokenizer", "train", "--data", args.data[0], "--vocab-size", "2048"]
    harness.run([*words, "--out", str(folder / FRESH)], limit_s=300.0)
    (folder / FRESH / "config.json").write_text(json.dumps(FRESH_SHAPE), encoding="utf-8")


def measure(args: argparse.Namespace, name: str, folder: pathlib.Path) -> dict[str, Any]:
    """The plan of one setting and its run. Raises harness.RunFailed."""
    setting, out = SETTINGS[name], folder / harness.slug(name)
    if setting.model == FRESH:
        make_fresh(args, folder)
    words = command(args, setting, out)
    plan = harness.json_object(harness.run([*words, "--dry-run"], limit_s=900.0).stdout)
    done = harness.json_object(harness.run(words, limit_s=3600.0).stdout)
    busy = sum(
        json.loads(line).get("cpu_s", 0.0) for line in (out / "metrics.jsonl").read_text().splitlines()
    )
    return {
        "looked_at": setting.looked_at,
        "planned_mb": plan["memory_mb"]["total"],
        "measured_mb": done["peak_memory_mb"],
        "error": round(plan["memory_mb"]["total"] / done["peak_memory_mb"] - 1, 4),
        "planned_s": plan["seconds"],
        "measured_cpu_s": round(busy, 3),
        "measured_wall_s": done["seconds"],
        "seconds_error": round(plan["seconds"] / busy - 1, 4),
        "steps": [plan["steps"], done["steps"]],
        "tokens": [plan["tokens"], done["tokens"]],
        "terms_mb": plan["memory_mb"],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", required=True, help="what to learn from, in any format of `ojak train`"
    )
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
                errors = f"{found[name]['error']:+.1%}, seconds {found[name]['seconds_error']:+.1%}"
                print(f"{name}: {errors}", file=sys.stderr)
        except harness.RunFailed as error:
            sys.exit(f"train_memory: {error}")
    rows = [
        (
            name, f"{each['planned_mb']:,.0f}", f"{each['measured_mb']:,.0f}", f"{each['error']:+.1%}",
            f"{each['planned_s']:.1f}", f"{each['measured_cpu_s']:.1f}", f"{each['seconds_error']:+.1%}",
            f"{each['measured_wall_s']:.1f}", "yes" if each["looked_at"] else "no",
        )
        for name, each in found.items()
    ]  # fmt: skip
    header = (
        "setting",
        "planned, MiB",
        "measured",
        "error",
        "planned, s",
        "CPU",
        "error",
        "wall",
        "looked at",
    )
    print(harness.table(header, rows))
    for key, aim in (("error", AIM), ("seconds_error", SECONDS_AIM)):
        within = sum(abs(each[key]) <= aim for each in found.values())
        print(f"{key}: {within} of {len(found)} within {aim:.0%}")
    if args.results:
        machine, now = harness.machine(), datetime.now(UTC)
        path = args.results / f"train-memory-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
        sections = {"at": now.isoformat(timespec="seconds"), "machine": machine, "memory": found}
        harness.update_results(path, sections)
        print(json.dumps({"results": str(path)}))


if __name__ == "__main__":
    main()
