"""Cross-entropy fused with the output layer, beside the plain form and the peers' chunked ones: time and memory.

Each repetition is a process of its own, the ways in turn, so that what else the machine does falls on all alike. What
is compared is the CPU time of the leading thread, which is what the wall time would be with nothing else running; the
wall time is kept beside it. Memory is what the process took at its most beyond the inputs, both gradients included. The
loss and the gradients' norms must agree, or the exit code is 1; nothing is asserted about time.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import harness
from synthesis import ratio_of

HERE = pathlib.Path(__file__).resolve().parent
WORKER = HERE / "peers" / "loss.py"
PEERS_HOME = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parent))
WAYS = ("plain", "plain-float32-logits", "torch-chunked", "trl", "ojak")
WIDTH = 640  # of gemma-3-270m, whose vocabulary is the larger one
SIDE, TRIES = 1024, 20  # of the products that the machine's rate is told from
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}  # of loss and norms, relative

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """Rows, vocabulary and number format of one comparison."""

    rows: int
    vocabulary: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.dtype}, {self.rows} rows, {self.vocabulary:,} tokens"

    @property
    def operations(self) -> float:
        """Of the three products that value and gradients take."""
        return 6.0 * self.rows * WIDTH * self.vocabulary

    def command(self, python: str, way: str, args: argparse.Namespace) -> list[str]:
        """What times one way in a process of its own."""
        words = [python, str(WORKER), way, "--rows", str(self.rows), "--vocabulary", str(self.vocabulary)]
        words += ["--width", str(WIDTH), "--dtype", self.dtype, "--threads", str(args.threads)]
        return [*words, "--repeats", str(max(1, round(args.operations / self.operations)))]


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    for dtype in args.dtype:
        for vocabulary in args.vocabulary:
            for rows in args.rows:
                yield Setting(rows, vocabulary, dtype)


def measure(setting: Setting, args: argparse.Namespace) -> Line:
    """All ways in turn, `--rounds` times. Raises harness.RunFailed."""
    env = harness.child_environment(args.threads, device="cpu", tuned_malloc=args.malloc == "tuned")
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), env.get("PYTHONPATH", "")])
    lines: dict[str, list[Line]] = {way: [] for way in args.ways}
    for _ in range(args.rounds):
        for way in args.ways:
            python = str(args.peers_python) if way == "trl" else sys.executable
            done = harness.run(setting.command(python, way, args), env=env, limit_s=900.0)
            lines[way].append(harness.json_object(done.stdout))
    return {way: summary(each, lines["plain"]) for way, each in lines.items()}


def summary(lines: list[Line], plain: list[Line]) -> Line:
    """Medians of one way, and how many times as fast as the plain one it was, round by round."""
    rates, others = ([1 / min(line["leading_s"]) for line in each] for each in (lines, plain))
    found = {
        name: harness.spread([min(line[key]) for line in lines])
        for name, key in (("seconds", "leading_s"), ("wall_s", "seconds"), ("cpu_s", "cpu_s"))
    }
    last = lines[-1]
    extra = max(line["extra_bytes"] for line in lines)
    facts = {name: last[name] for name in ("loss", "gradient_norms", "torch")}
    return {**found, "speed_of_plain": ratio_of(rates, others), "extra_bytes": extra, **facts}


def disagreements(setting: Setting, found: Line) -> list[str]:
    """The ways whose loss or gradients are not the plain form's."""
    wanted, limit = found["plain"], TOLERANCE[setting.dtype]

    def far(way: str) -> bool:
        pairs = zip(
            [found[way]["loss"], *found[way]["gradient_norms"]],
            [wanted["loss"], *wanted["gradient_norms"]],
            strict=True,
        )
        return any(abs(a - b) > limit * abs(b) for a, b in pairs)

    return [f"{setting.name}: {way} differs from the plain form" for way in found if far(way)]


def matrix_rates(threads: int) -> dict[str, float]:
    """Operations a second of a large product of each number format, the best seen, by the leading thread's time."""
    import torch

    torch.set_num_threads(threads)
    found: dict[str, float] = {}
    for name in TOLERANCE:
        a, b = (torch.randn(SIDE, SIDE).to(getattr(torch, name)) for _ in range(2))
        times: list[float] = []
        for _ in range(TRIES):
            begin = time.thread_time()
            torch.matmul(a, b)
            times.append(time.thread_time() - begin)
        found[name] = 2 * SIDE**3 / min(times)
    return found


def table(found: dict[str, Line], rates: dict[str, float], chosen: Sequence[Setting]) -> str:
    rows: list[list[str]] = []
    for setting in chosen:
        floor = setting.operations / rates[setting.dtype]
        for way, line in found.get(setting.name, {}).items():
            ratio = line["speed_of_plain"]
            rows.append([
                setting.name, way, f"{line['seconds']['median']:.2f}", f"{floor:.2f}",
                f"{line['wall_s']['median']:.2f}", f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                f"{line['extra_bytes'] / 2**20:,.0f}",
            ])  # fmt: skip
    header = ("setting", "way", "seconds", "floor, s", "wall, s", "times plain's speed", "memory, MiB")
    return harness.table(header, rows)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[128, 512, 2048])
    add("--vocabulary", type=int, nargs="+", default=[49_152, 262_144])
    add("--dtype", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE))
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--rounds", type=int, default=3)
    add("--operations", type=float, default=4e11, help="repeat what takes fewer, up to so many")
    add("--threads", type=int, default=2)
    add("--malloc", choices=["default", "tuned"], default="tuned", help="tuned: as training has it")
    add("--peers-python", type=pathlib.Path, default=PEERS_HOME / ".peers" / "bin" / "python")
    add("--results", type=pathlib.Path, help="folder to keep the figures in (default: only printed)")
    args = parser.parse_args(argv)
    if not args.peers_python.exists():
        args.ways = [way for way in args.ways if way != "trl"]
    if "plain" not in args.ways:
        args.ways = ["plain", *args.ways]
    return args


def keep(args: argparse.Namespace, machine: Line, rates: dict[str, float], found: dict[str, Line]) -> None:
    now = datetime.now(UTC)
    path = args.results / f"cross-entropy-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
    asked: Line = {name: getattr(args, name) for name in ("rounds", "threads", "malloc", "operations")}
    head = {"benchmark": "cross_entropy", "machine": machine}
    held = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}
    asked |= {"at": now.isoformat(timespec="seconds"), "load_1m": machine["load_1m"], "matrix_flops": rates}
    every = {**held, **{name: {"asked": asked, "ways": each} for name, each in found.items()}}
    harness.update_results(path, {**head, "width": WIDTH, "settings": every})


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what we run ends with us
    machine, rates = harness.machine(), matrix_rates(args.threads)
    found: dict[str, Line] = {}
    failures: list[str] = []
    for setting in settings(args):
        harness.say(setting.name)
        try:
            found[setting.name] = measure(setting, args)
        except harness.RunFailed as error:
            failures.append(f"{setting.name}: {error}")
            continue
        failures += disagreements(setting, found[setting.name])
        print(table(found, rates, [setting]), flush=True)
        if args.results:
            keep(args, machine, rates, found)
    for failure in failures:
        harness.say(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
