"""Finetuning by ojak and its peers, in turn on one machine: medians, ratios, the same loss, and the floor.

Every contender finetunes SmolLM2-135M-Instruct on the same rows on the same CPUs for one epoch. One small run each is
thrown away, then the contenders run in turn, `--repeats` rounds. Nothing is asserted about time: the exit code is 1
only when a run failed. Results go to benchmarks/results/.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import contenders
import floor
import harness
import trainers
from synthesis import ratio_of
from trainers import OURS, TRAINERS

HERE = pathlib.Path(__file__).resolve().parent
PEERS_HOME = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parent))
IDLE_LOAD = 0.5
WARMUP_ROWS = 16
SQUARES = (1024, 2048)
LAYER_PARAMETERS, HEAD_PARAMETERS = 106_168_320, 28_311_552  # SmolLM2-135M's matrices

Line = dict[str, Any]


class Benchmark:
    """One invocation: what was asked, what failed, where it is kept."""

    def __init__(self, args: argparse.Namespace, job: trainers.Job) -> None:
        self.args, self.job = args, job
        self.failures: list[str] = []
        self.machine = harness.machine()
        self.started = datetime.now(UTC)
        if unknown := sorted(set(args.only) - set(TRAINERS)):
            raise SystemExit(f"training: no contender {', '.join(unknown)}; there are {', '.join(TRAINERS)}")
        self.field = [n for n, each in TRAINERS.items() if (n in args.only if args.only else each.default)]

    def once(self, name: str, seed: int, rows: int, save: pathlib.Path | None = None) -> Line | None:
        """One run; a failure is told, kept for the exit code, and answered with None."""
        try:
            line = replace(self.job, rows=rows).run(name, seed, save)
        except harness.RunFailed as error:
            self.failures.append(f"{name}: {error}")
            harness.say(f"  {name}: FAILED")
            return None
        harness.say(
            f"  {name}: {line['tokens']} tokens, {line['seconds']:.1f} s, {line['tokens_per_s']:.0f} tokens/s"
        )
        return line

    def speed(self) -> Line:
        """The contenders in turn; kept after every round, so that a benchmark cut short keeps what it has."""
        harness.say("warm-up, thrown away")
        for name in self.field:
            self.once(name, 10_000, WARMUP_ROWS)
        runs: dict[str, list[Line | None]] = {name: [] for name in self.field}
        section: Line = {}
        for turn in range(self.args.repeats):
            harness.say(f"round {turn + 1} of {self.args.repeats}")
            for name in self.field:
                runs[name].append(self.once(name, turn, self.job.rows))
            section = summary(runs, self.args.malloc)
            self.keep({"speed-" + self.args.malloc: section})
        return section

    def loss(self) -> Line:
        """The loss on rows that none learnt from, after the same tokens at the same rate: speed must not cost it."""
        with tempfile.TemporaryDirectory(prefix="ojak-bench-") as parent:
            folder = pathlib.Path(parent)
            names = [name for name in ("hf-trainer", "ojak", "ojak-bf16-states") if name in self.field]
            lines = {name: self.once(name, 0, self.args.loss_rows, folder / name) for name in names}
            models = {n: folder / n / "model" if n in OURS else folder / n for n in names if lines[n]}
            try:
                losses = self.job.held_out_losses(list(models.values()), folder)
            except harness.RunFailed as error:
                self.failures.append(f"held-out loss: {error}")
                return {"error": str(error)}
            found = {name: losses[str(path)] for name, path in models.items()}
            supervised = {name: line["supervised_tokens"] for name, line in lines.items() if line}
            return {"held_out_loss": found, "supervised_tokens": supervised, "rows": self.args.loss_rows}

    def floor(self) -> Line:
        """Operations that the job asks for over the machine's best matrix rate, beside what was reached.

        Six a parameter of the layers and token, six a parameter of the output layer and supervised token, each token of
        the data; and the same over the tokens that ojak computes, since a beginning that rows share is computed once.
        """
        speed = self.kept().get("speed-" + self.args.malloc, {})
        lines = [line for line in speed.get("runs", {}).get("ojak", []) if line]
        if not lines:
            return {"error": "ojak has not run"}
        line, rate = lines[0], matrix_rate(self.args.threads)
        head = 6 * HEAD_PARAMETERS * line["supervised_tokens"]
        every = 6 * LAYER_PARAMETERS * line["tokens"]
        share = line.get("computed_share") or 1.0
        reached = speed["tokens_per_s"]["ojak"]["median"]
        bound = {
            n: line["tokens"] * rate / (head + every * s) for n, s in (("apart", 1.0), ("shared", share))
        }
        return {
            "matrix_flops": rate,
            "tokens_per_s_at_best": {name: round(value, 1) for name, value in bound.items()},
            "reached": reached,
            "share_of_best": {name: round(reached / value, 3) for name, value in bound.items()},
        }

    def path(self) -> pathlib.Path:
        """The day's result file for this machine."""
        name = harness.slug(self.machine["cpu"] or "unknown")
        return self.args.results / f"training-{self.started:%Y-%m-%d}-{name}.json"

    def keep(self, sections: Line) -> None:
        """Adds sections to the day's result file, each with the settings it was measured under."""
        names = ("threads", "repeats", "malloc", "rows", "batch", "max_len", "lr", "loss_rows", "quick")
        settings = {name: getattr(self.args, name) for name in names}
        at = {"at": self.started.isoformat(timespec="seconds"), "settings": settings, "ojak": self.version}
        head = {"benchmark": "training", "machine": self.machine}
        harness.update_results(
            self.path(), {**head, **{name: {**at, **each} for name, each in sections.items()}}
        )

    def kept(self) -> Line:
        """What the day's result file holds."""
        return json.loads(self.path().read_text(encoding="utf-8")) if self.path().exists() else {}

    def prepare(self) -> None:
        """Raises harness.RunFailed."""
        self.version = self.job.version()
        harness.run([*self.job.ojak, "models", "pull", trainers.MODEL], env=self.job.env)


def matrix_rate(threads: int) -> float:
    """The best rate of bf16 products seen here, operations a second."""
    import torch

    torch.set_num_threads(threads)
    rates: list[float] = []
    for side in SQUARES:
        a, b = (torch.randn(side, side).bfloat16() for _ in range(2))
        rates.append(2 * side**3 / floor.best_seconds(lambda a=a, b=b: a @ b, device="cpu", budget_s=2.0))
    return max(rates)


def summary(runs: dict[str, list[Line | None]], malloc: str) -> Line:
    """Medians of each contender, and the ratios of ojak's to those of its kind, with the aims."""
    rates = {name: [line["tokens_per_s"] if line else None for line in lines] for name, lines in runs.items()}
    medians = {n: harness.spread(found) for n, each in rates.items() if (found := [r for r in each if r])}
    peaks = {
        n: max(line["peak_rss_bytes"] for line in lines if line) for n, lines in runs.items() if n in medians
    }
    ratios: Line = {}
    for ours, name in ((a, b) for a in medians if a in OURS for b in medians if b not in OURS):
        if TRAINERS[ours].kind == TRAINERS[name].kind and (ratio := ratio_of(rates[ours], rates[name])):
            aims = TRAINERS[name].aims
            aim = aims[malloc == "tuned"] if aims else None
            ratios.setdefault(ours, {})[name] = {**ratio, "aim": aim}
    return {"runs": runs, "tokens_per_s": medians, "peak_rss_bytes": peaks, "ratios": ratios}


def markdown(bench: Benchmark) -> str:
    """The day's sections as tables."""
    kept, machine = bench.kept(), bench.machine
    title = f"# Training benchmark, {bench.started:%Y-%m-%d}"
    about = f"{machine['cpu']} ({', '.join(machine['cpu_flags'])}), {bench.args.threads} of {machine['cores']} cores."
    parts = [title, about]
    for malloc in ("default", "tuned"):
        if section := kept.get(f"speed-{malloc}"):
            parts += [f"## Speed, glibc's allocator {malloc}", speed_table(section)]
    if found := kept.get("loss", {}).get("held_out_loss"):
        rows = [[name, f"{value:.4f}"] for name, value in found.items()]
        parts += ["## Loss on held-out rows", harness.table(("contender", "loss"), rows)]
    if (best := kept.get("floor", {})) and "share_of_best" in best:
        rows = [
            [name, f"{value:.0f}", f"{best['share_of_best'][name]:.0%}"]
            for name, value in best["tokens_per_s_at_best"].items()
        ]
        parts += ["## Floor", harness.table(("tokens", "tokens/s at best", "reached"), rows)]
    return "\n\n".join(parts) + "\n"


def speed_table(section: Line) -> str:
    header = ("contender", "tokens/s, median (range)", "peak RSS, MiB", "ojak's best over it", "aim")
    rows: list[list[str]] = []
    for name, found in section["tokens_per_s"].items():
        over = [each[name] for each in section["ratios"].values() if name in each]
        best = max(over, key=lambda ratio: ratio["median"]) if over else None
        speed = f"{found['median']:.0f} ({found['min']:.0f}-{found['max']:.0f})"
        peak = f"{section['peak_rss_bytes'][name] / 2**20:.0f}"
        ratio = f"{best['median']:.2f} ({best['min']:.2f}-{best['max']:.2f})" if best else ""
        rows.append([name, speed, peak, ratio, f"{best['aim']}" if best and best["aim"] else ""])
    return harness.table(header, rows)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="a JSON list of {instruction, input, output}")
    add("--quick", action="store_true", help="few rows, one round, kept in /tmp: does everything work?")
    add("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(TRAINERS)}")
    add(
        "--rows",
        type=int,
        help="rows to learn from (default: 72, about 4,200 tokens of chapter 7's; quick 16)",
    )
    add(
        "--loss-rows",
        type=int,
        help="rows to learn from before the loss is compared (default: 400; quick 16)",
    )
    add("--held-out", type=int, default=110, help="rows at the end of the data to measure by")
    add("--repeats", type=int, help="rounds (default: 3, quick 1)")
    add("--batch", type=int, default=8)
    add("--max-len", type=int, default=512)
    add("--lr", type=float, default=2e-5)
    add("--threads", type=int, default=2, help="threads and CPUs of every contender")
    add("--malloc", choices=["default", "tuned"], default="default", help="glibc's settings, for all alike")
    add("--no-loss", action="store_true", help="leave out the comparison of losses")
    add("--ojak", help="the ojak command (default: the one beside this Python)")
    add("--peers-python", type=pathlib.Path, default=PEERS_HOME / ".peers" / "bin" / "python")
    add("--results", type=pathlib.Path, help="folder of the result files (default: benchmarks/results)")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (1 if args.quick else 3)
    args.rows = args.rows or (16 if args.quick else 72)
    args.loss_rows = args.loss_rows or (16 if args.quick else 400)
    args.results = args.results or (pathlib.Path("/tmp/ojak-bench-quick") if args.quick else harness.RESULTS)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that what we run ends with us
    harness.keep_to_cores(args.threads)
    job = trainers.Job(
        args.data, args.rows, args.held_out, args.batch, args.max_len, args.lr, args.threads,
        (args.ojak,) if args.ojak else contenders.default_ojak(), args.peers_python,
        harness.child_environment(args.threads, device="cpu", tuned_malloc=args.malloc == "tuned"),
    )  # fmt: skip
    bench = Benchmark(args, job)
    if bench.machine["load_1m"] > IDLE_LOAD:
        harness.say(f"other work runs here (load {bench.machine['load_1m']}): the figures will mean little")
    try:
        bench.prepare()
    except harness.RunFailed as error:
        sys.exit(f"training: {error}")
    bench.speed()
    bench.keep({"floor": bench.floor()})
    if not args.no_loss:
        bench.keep({"loss": bench.loss()})
    text = markdown(bench)
    bench.path().with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    for failure in bench.failures:
        harness.say(f"failed: {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
