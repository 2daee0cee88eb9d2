"""The Magpie job by ojak and its peers, in turn on one machine: medians, ratios, and what explains them.

Every contender runs SmolLM2-135M-Instruct over the same job on the same CPUs. One small run each is thrown
away, then the contenders run in turn, `--repeats` rounds. Nothing is asserted about time: the exit code is 1
only when a run failed. Results go to benchmarks/results/, section by section, so the parts may be run at
different times of a day.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import contenders
import harness
import tables
from contenders import OJAK, Contender

HERE = pathlib.Path(__file__).resolve().parent
PEERS_HOME = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parent))
WARMUP_ROWS = 16
IDLE_LOAD = 0.5  # runnable processes, on average: above this the machine is not ours alone
SCALING_ROWS = (512, 2048)
QUICK_SCALING_ROWS = (32, 128)

Line = dict[str, Any]
Runs = dict[str, list[Line | None]]  # by contender, one a round; None: that run failed


class Benchmark:
    """One invocation: what was asked, where it is kept, what failed. A section is the method of its name."""

    def __init__(self, args: argparse.Namespace, job: contenders.Job) -> None:
        self.args, self.job = args, job
        self.failures: list[str] = []
        self.machine = harness.machine()
        self.started = datetime.now(UTC)
        every = contenders.CUDA if args.device == "cuda" else contenders.CPU
        if unknown := sorted(set(args.only) - set(every)):
            raise SystemExit(
                f"synthesis: no contender {', '.join(unknown)} here; there are {', '.join(every)}"
            )
        self.field = {
            name: each for name, each in every.items() if (name in args.only if args.only else each.default)
        }

    def prepare(self) -> None:
        """Notes ojak's version and puts the model into its cache. Raises harness.RunFailed."""
        self.ojak_version = self.job.version()
        self.job.pull()

    def rows(self, contender: Contender) -> int:
        return self.args.rows or (contender.quick_rows if self.args.quick else contender.rows)

    def once(self, name: str, rows: int, seed: int, *, parent: pathlib.Path | None = None) -> Line | None:
        """One run; a failure is told, kept for the exit code, and answered with None."""
        try:
            if name == OJAK:
                line = self.job.run_ojak(rows, seed, parent=parent)
            else:
                line = self.job.run_peer(self.field[name].arguments, rows, seed)
        except harness.RunFailed as error:
            self.failures.append(f"{name}: {error}")
            harness.say(f"  {name}: FAILED")
            return None
        harness.say(
            f"  {name}: {line['rows']} rows, {line['seconds']:.1f} s, {line['tokens_per_s']:.0f} tokens/s"
        )
        return line

    def comparison(self) -> Line:
        """The contenders in turn. Kept after every round, so that a benchmark cut short keeps what it has."""
        harness.say("warm-up, thrown away")
        for name, contender in self.field.items():
            self.once(name, min(WARMUP_ROWS, self.rows(contender)), seed=10_000)
        runs: Runs = {name: [] for name in self.field}
        section: Line = {}
        for turn in range(self.args.repeats):
            harness.say(f"round {turn + 1} of {self.args.repeats}")
            for name, contender in self.field.items():
                runs[name].append(self.once(name, self.rows(contender), seed=turn))
            section = {**summary(runs, self.field), "complete": turn + 1 == self.args.repeats}
            self.keep({self.comparison_name: section})
        return section

    @property
    def comparison_name(self) -> str:
        """A run of some contenders does not replace the day's run of all."""
        return "partial" if self.args.only else "comparison"

    def scaling(self) -> Line:
        """Rows per second of a long run against a short one, in turn."""
        small, large = QUICK_SCALING_ROWS if self.args.quick else SCALING_ROWS
        long = (f"{large} rows", lambda seed: self.once(OJAK, large, seed))
        short = (f"{small} rows", lambda seed: self.once(OJAK, small, seed))
        return self._in_turn("rows_per_s", long, short)

    def ledger(self) -> Line:
        """The ledger's share of the time: as ojak counts it, else runs in memory against runs on disk.

        The second way sees only the waiting for the disk, not the ledger's own work.
        """
        rows = self.rows(self.field.get(OJAK, contenders.CPU[OJAK]))
        first = self.once(OJAK, rows, seed=0)
        if first and first.get("ledger_seconds") is not None:
            lines = [first, *self._repeat(OJAK, rows, range(1, self.args.repeats))]
            shares = harness.spread([line["ledger_seconds"] / line["seconds"] for line in lines])
            return {"method": "counted by ojak", "share": shares["median"], "shares": shares, "runs": lines}
        memory = contenders.memory_folder()
        if first is None or memory is None:
            return {"why": "no run, or ojak prints no ledger_seconds and no folder lies in memory"}
        disk = ("disk", lambda seed: self.once(OJAK, rows, seed))
        held = ("memory", lambda seed: self.once(OJAK, rows, seed, parent=memory))
        found = self._in_turn("tokens_per_s", disk, held)
        share = {"share": round(1 - found["ratio"]["median"], 4)} if "ratio" in found else {}
        return {"method": "disk against memory", **share, **found}

    def first_token(self) -> Line:
        """Start to first token: as ojak counts it, and a one-row run's wall time, which cannot be shorter."""
        lines = self._repeat(OJAK, 1, range(self.args.repeats))
        found: Line = {"runs": lines}
        if lines:
            found["one_row_wall_s"] = harness.spread([line["wall_s"] for line in lines])
        if counted := [line["first_token_s"] for line in lines if line.get("first_token_s") is not None]:
            found["first_token_s"] = harness.spread(counted)
        return found

    def floor(self) -> Line:
        """floor.py at the batch and row lengths of ojak's runs of the day, beside the rate they reached."""
        compared = self.kept().get(self.comparison_name, {})
        line = next((run for run in compared.get("runs", {}).get(OJAK, []) if run), {})
        command = [sys.executable, str(HERE / "floor.py"), "--json", "--threads", str(self.args.threads)]
        command += ["--device", self.args.device, "--budget", "0.2" if self.args.quick else "3"]
        try:
            found = harness.json_object(
                harness.run([*command, *floor_options(line)], env=self.job.env).stdout
            )
        except harness.RunFailed as error:
            self.failures.append(f"floor: {error}")
            return {"error": str(error)}
        rate = compared.get("tokens_per_s", {}).get(OJAK, {}).get("median")
        return {**found, "measured_tokens_per_s": rate}

    def _repeat(self, name: str, rows: int, seeds: range) -> list[Line]:
        return [line for seed in seeds if (line := self.once(name, rows, seed))]

    def _in_turn(self, figure: str, *kinds: tuple[str, Callable[[int], Line | None]]) -> Line:
        """Two kinds of run in turn, and the ratio of the first's figure to the second's within each round."""
        runs: Runs = {name: [] for name, _ in kinds}
        for turn in range(self.args.repeats):
            for name, once in kinds:
                runs[name].append(once(turn))
        pairs = [(a[figure], b[figure]) for a, b in zip(*runs.values(), strict=True) if a and b]
        ratio = {"ratio": harness.spread([a / b for a, b in pairs])} if pairs else {}
        return {"figure": figure, "runs": runs, **ratio}

    def path(self) -> pathlib.Path:
        """The day's result file for this machine and device."""
        name = self.machine["gpu"] if self.args.device == "cuda" else self.machine["cpu"]
        return self.args.results / f"synthesis-{self.started:%Y-%m-%d}-{harness.slug(name or 'unknown')}.json"

    def keep(self, sections: Line) -> None:
        """Adds sections to the day's result file, each with the settings it was measured under."""
        at = {"at": self.started.isoformat(timespec="seconds"), "settings": self.settings()}
        head = {"benchmark": "synthesis", "machine": self.machine}
        harness.update_results(
            self.path(), {**head, **{name: {**at, **each} for name, each in sections.items()}}
        )

    def kept(self) -> Line:
        """What the day's result file holds."""
        return json.loads(self.path().read_text(encoding="utf-8")) if self.path().exists() else {}

    def settings(self) -> Line:
        names = (
            "threads",
            "max_instruction",
            "max_response",
            "repeats",
            "model",
            "device",
            "malloc",
            "quick",
            "rows",
        )
        kept = {name: getattr(self.args, name) for name in names}
        return {**kept, "ojak": getattr(self, "ojak_version", None)}


def floor_options(line: Line) -> list[str]:
    """floor.py's options from what a run of ojak says of itself, as far as it does."""
    options: list[str] = []
    if slots := line.get("engine", {}).get("slots"):
        options += ["--batch", str(slots)]
    for side in ("instruction", "response"):
        if tokens := line.get(f"{side}_tokens"):
            options += [f"--{side}-tokens", f"{tokens / line['rows']:.1f}"]
    return options


def summary(runs: Runs, field: dict[str, Contender]) -> Line:
    """Medians of each contender, and ojak's ratio to each and to the best batched one, round by round."""
    rates = {name: [line["tokens_per_s"] if line else None for line in lines] for name, lines in runs.items()}
    medians = {
        name: harness.spread(found) for name, each in rates.items() if (found := [r for r in each if r])
    }
    ratios = {
        name: {**ratio, "aim": field[name].aim}
        for name in medians
        if name != OJAK and (ratio := ratio_of(rates.get(OJAK, []), rates[name]))
    }
    if rivals := [name for name in contenders.BEST_OF if name in ratios]:
        best = max(rivals, key=lambda name: medians[name]["median"])
        ratios["best of these"] = {**ratios[best], "of": best, "aim": contenders.BEST_AIM}
    return {"runs": runs, "tokens_per_s": medians, "ratios": ratios}


def ratio_of(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Line | None:
    """The ratio of the medians, with the smallest and largest ratio within one round."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a and b]
    if not pairs:
        return None
    mine, other = (harness.spread(side)["median"] for side in zip(*pairs, strict=True))
    return harness.spread([a / b for a, b in pairs]) | {"median": round(mine / other, 3)}


def sections_wanted(args: argparse.Namespace) -> list[str]:
    """The sections' names in the order they run; the floor comes last, it reads the comparison."""
    wanted = {
        "comparison": not args.no_compare,
        "scaling": args.scaling or args.all,
        "ledger": args.ledger or args.all,
        "first_token": args.first_token or args.all,
        "floor": not args.no_floor,
    }
    return [name for name, yes in wanted.items() if yes]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="few rows, one round, kept in /tmp: does everything work?")
    add("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(contenders.CPU)}")
    add("--rows", type=int, help="rows of every contender (default: each its own)")
    add("--repeats", type=int, help="rounds (default: 3, quick 1)")
    add("--threads", type=int, default=2, help="threads and CPUs of every contender")
    add("--max-instruction", type=int, default=64, help="tokens")
    add("--max-response", type=int, default=160, help="tokens")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--malloc", choices=["default", "tuned"], default="default", help="glibc's settings, for all alike")
    add("--model", default="smollm2-135m-instruct", help="ojak's name of the model, or a path")
    add("--ojak", help="the ojak command (default: the one beside this Python)")
    add("--peers-python", type=pathlib.Path, default=PEERS_HOME / ".peers" / "bin" / "python")
    add("--scratch", type=pathlib.Path, help="where ojak's output folders are made and removed")
    add("--results", type=pathlib.Path, help="folder of the result files (default: benchmarks/results)")
    add("--no-compare", action="store_true", help="only the parts named below")
    add("--scaling", action="store_true", help="2,048 rows against 512")
    add("--ledger", action="store_true", help="the ledger's share of the time")
    add("--first-token", action="store_true", help="start to first token")
    add("--all", action="store_true", help="these three too")
    add("--no-floor", action="store_true", help="leave out what the machine could do")
    return with_defaults(parser.parse_args(argv))


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """What depends on --quick: a quick run's figures mean nothing, so they stay out of the repository."""
    args.repeats = args.repeats or (1 if args.quick else 3)
    args.results = args.results or (pathlib.Path("/tmp/ojak-bench-quick") if args.quick else harness.RESULTS)
    return args


def make_job(args: argparse.Namespace) -> contenders.Job:
    return contenders.Job(
        max_instruction=args.max_instruction,
        max_response=args.max_response,
        threads=args.threads,
        model=args.model,
        ojak=(args.ojak,) if args.ojak else contenders.default_ojak(),
        peers_python=args.peers_python,
        env=harness.child_environment(args.threads, device=args.device, tuned_malloc=args.malloc == "tuned"),
        scratch=args.scratch,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that what we run ends with us
    harness.keep_to_cores(args.threads)
    bench = Benchmark(args, make_job(args))
    if bench.machine["load_1m"] > IDLE_LOAD:
        harness.say(f"other work runs here (load {bench.machine['load_1m']}): the figures will mean little")
    wanted = sections_wanted(args)
    if OJAK in bench.field or set(wanted) & {"scaling", "ledger", "first_token"}:
        try:
            bench.prepare()
        except harness.RunFailed as error:
            sys.exit(f"synthesis: {error}")
    for name in wanted:
        harness.say(name)
        section = getattr(bench, name)()
        bench.keep({bench.comparison_name if name == "comparison" else name: section})
    text = markdown(bench)
    bench.path().with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    harness.say(f"written: {bench.path()} and .md")
    for failure in bench.failures:
        harness.say(f"failed: {failure}")
    return 1 if bench.failures else 0


def markdown(bench: Benchmark) -> str:
    """The report kept beside the JSON: all of the day's sections."""
    machine, kept = bench.machine, bench.kept()
    used = kept.get("comparison", {}).get("settings", bench.settings())
    flags = ", ".join(machine["cpu_flags"])
    limits = f"{used['max_instruction']} tokens an instruction and {used['max_response']} a response"
    hardware = (
        f"{machine['cpu']} ({flags}), {used['threads']} of {machine['cores']} cores; "
        f"GPU: {machine['gpu'] or 'none'}. SmolLM2-135M-Instruct, at most {limits}; "
        f"rounds: {used['repeats']}. Versions: in the JSON file."
    )
    title = f"# Synthesis benchmark, {bench.started:%Y-%m-%d}"
    return "\n\n".join([title, hardware, tables.render(kept)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
