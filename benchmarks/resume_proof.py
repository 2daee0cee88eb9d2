"""A run that is killed again and again, and resumed, ends with the very weights of a run that never was.

Two runs with the same settings: one straight through; one that gets SIGKILL after a step that was drawn, or while it
saves a checkpoint, in turn, and is started again each time. Then every file of the trained model must have the same
SHA-256 in both, and every step the same loss. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

LIMIT_S = 3600.0
LOOK_S = 0.005


def command(args: argparse.Namespace, out: pathlib.Path) -> list[str]:
    """One run; the same words begin it and resume it."""
    return [
        str(args.ojak), "train", "finetune", "--model", args.model, "--data", *args.data, "--out", str(out),
        "--max-tokens", str(args.max_tokens), "--seed", "1", "--json",
        "--set", f"checkpoint.every_steps={args.every}", *[word for each in args.set for word in ("--set", each)],
    ]  # fmt: skip


def steps_made(out: pathlib.Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (out / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines if line.endswith(b"}")), default=0)


def saving(out: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((out / "checkpoints").glob(".staging-*"))


def run_until(words: list[str], ready: Callable[[], bool]) -> bool:
    """Start a run and kill it when `ready`; False if it ended by itself before."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    end = time.monotonic() + LIMIT_S
    try:
        while process.poll() is None and not ready():
            if time.monotonic() > end:
                raise harness.RunFailed(f"{' '.join(words)} ran past {LIMIT_S:.0f} s")
            time.sleep(LOOK_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[1].decode(errors="replace")
    if process.returncode not in (0, -signal.SIGKILL):
        raise harness.RunFailed(f"a run ended with {process.returncode}: {said[-1500:]}")
    return process.returncode != 0


def kill_and_resume(args: argparse.Namespace, out: pathlib.Path, steps: int) -> list[dict[str, Any]]:
    """Kill a run `args.kills` times and let it end; at which steps, and how, it was killed."""
    draw, kills = random.Random(args.seed), []
    for number, after in enumerate(sorted(draw.randrange(1, steps) for _ in range(args.kills))):
        how = "while saving" if number % 2 else "after a step"

        def ready(after: int = after, how: str = how) -> bool:
            return steps_made(out) >= after and (how == "after a step" or saving(out))

        if run_until(command(args, out), ready):
            kills.append({"after_step": steps_made(out), "how": how})
    harness.run(command(args, out), limit_s=LIMIT_S)
    return kills


def hashes(out: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file of the model, by the run's manifest, which `ojak` wrote last."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry["sha256"] for entry in manifest["files"]}


def losses(out: pathlib.Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [each["loss"] for each in map(json.loads, lines) if "loss" in each]


def prove(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Both runs, and whether they are the same."""
    straight, killed = folder / "straight", folder / "killed"
    result = harness.json_object(harness.run(command(args, straight), limit_s=LIMIT_S).stdout)
    kills = kill_and_resume(args, killed, result["steps"])
    same_files, same_losses = hashes(straight) == hashes(killed), losses(straight) == losses(killed)
    return {
        "model": args.model,
        "steps": result["steps"],
        "tokens": result["tokens"],
        "checkpoint_every_steps": args.every,
        "kills": kills,
        "files_identical": same_files,
        "losses_identical": same_losses,
        "weights_sha256": hashes(straight)["model/model.safetensors"],
        "proved": same_files and same_losses and len(kills) == args.kills,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", required=True, help="what to learn from, in any format of `ojak train`"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--max-tokens", type=int, default=12_000)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--set", action="append", default=[], help="further settings of the run, name=value")
    parser.add_argument("--ojak", type=pathlib.Path, default=pathlib.Path(sys.executable).parent / "ojak")
    parser.add_argument(
        "--scratch", type=pathlib.Path, help="where the runs are made (default: a temporary folder)"
    )
    parser.add_argument(
        "--results", type=pathlib.Path, help="folder to keep the figures in (default: only printed)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        try:
            found = prove(args, pathlib.Path(folder))
        except harness.RunFailed as error:
            sys.exit(f"resume_proof: {error}")
    print(json.dumps(found, indent=1))
    if args.results:
        machine, now = harness.machine(), datetime.now(UTC)
        path = args.results / f"resume-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
        harness.update_results(
            path, {"at": now.isoformat(timespec="seconds"), "machine": machine, "resume": found}
        )
    if not found["proved"]:
        sys.exit("resume_proof: the runs differ, or a kill came too late")


if __name__ == "__main__":
    main()
