"""Duplicates among many rows: ojak against the tools of the field, in one run, on one machine.

Sections, all by default:
    minhash     near duplicates of 100,000 rows, against datatrove and datasketch (benchmarks/peers/setup.sh dedup)
    neighbors   nearest neighbours of 100,000 vectors of 384 numbers, every pair compared, against FAISS's flat index
    index       1,000,000 vectors by ojak's index, with the recall that it measures
    scale       rows/s and peak memory of MinHash at 10k, 100k and 1M rows, of comparing all pairs at 10k and 100k

Rows and vectors are made up (see planted.py, curate_jobs.py). Contenders take turns, each run in a process of its own
on the same CPUs. Nothing is asserted about time: the exit code is 1 only when a run failed.

    python benchmarks/curate.py --quick                   few rows, one round: shows that everything works
    python benchmarks/curate.py minhash neighbors
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

import harness

HERE = pathlib.Path(__file__).resolve().parent
PEERS = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parent)) / ".peers-dedup" / "bin" / "python"
SECTIONS = ("minhash", "neighbors", "index", "scale")
PEER_NAMES = ("datatrove", "datasketch")
FULL = {
    "rows": 100_000,
    "index": 1_000_000,
    "scale": (10_000, 100_000, 1_000_000),
    "pairs": (10_000, 100_000),
}
QUICK = {"rows": 2_000, "index": 20_000, "scale": (1_000, 5_000), "pairs": (1_000, 5_000)}

Line = dict[str, Any]


class Benchmark:
    """One invocation. A section is the method of its name; what failed is kept for the exit code."""

    def __init__(self, args: argparse.Namespace, scratch: pathlib.Path) -> None:
        self.args, self.scratch = args, scratch
        self.sizes: Line = QUICK if args.quick else FULL
        self.repeats = 1 if args.quick else args.repeats
        self.env = harness.child_environment(args.threads, device="cpu", tuned_malloc=False)
        self.env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), self.env.get("PYTHONPATH", "")])
        self.failures: list[str] = []

    def job(
        self, name: str, *arguments: str, python: str = sys.executable, script: str = "curate_jobs.py"
    ) -> Line | None:
        """One run; a failure is told, kept, and answered with None."""
        try:
            done = harness.run([python, str(HERE / script), name, *arguments], env=self.env, limit_s=7200)
            line = harness.json_object(done.stdout)
        except harness.RunFailed as error:
            self.failures.append(f"{name}: {error}")
            harness.say(f"  {name}: FAILED")
            return None
        if "seconds" in line:
            harness.say(
                f"  {name}: {line['rows']} rows, {line['seconds']:.1f} s, {line['peak_rss_bytes'] / 2**20:.0f} MiB"
            )
        return line

    def rows(self, count: int) -> str:
        """A file of that many rows, made once."""
        path = self.scratch / f"{count}" / "rows.jsonl"
        if not path.exists():
            path.parent.mkdir()
            self.job("rows", str(path), str(count))
        return str(path)

    def in_turn(self, contenders: dict[str, Callable[[], Line | None]]) -> dict[str, list[Line]]:
        runs: dict[str, list[Line]] = {name: [] for name in contenders}
        for turn in range(self.repeats):
            harness.say(f"round {turn + 1} of {self.repeats}")
            for name, run in contenders.items():
                if (line := run()) is not None:
                    runs[name].append(line)
        return runs

    def minhash(self) -> Line:
        """Near duplicates of the same rows by word 5-grams; peers with their own, unverified, bands near 0.7."""
        path = self.rows(self.sizes["rows"])
        contenders: dict[str, Callable[[], Line | None]] = {"ojak": lambda: self.job("minhash", path)}
        if PEERS.exists():
            for name in PEER_NAMES:
                contenders[name] = lambda name=name: self.job(
                    name, path, str(self.args.threads), python=str(PEERS), script="peers/dedup.py"
                )
        else:
            harness.say(f"no peers: {PEERS} is not there; see benchmarks/peers/setup.sh dedup")
        return compared(self.in_turn(contenders))

    def neighbors(self) -> Line:
        """Ojak's blocked products and FAISS's flat index on the same vectors, and whether they agree."""
        count = str(self.sizes["rows"])
        ours, theirs = self.scratch / "ours.npz", self.scratch / "theirs.npz"
        section = compared(
            self.in_turn({
                "ojak": lambda: self.job("exact", count, str(ours)),
                "faiss flat": lambda: self.job("flat", count, str(theirs)),
            })
        )  # fmt: skip
        if ours.exists() and theirs.exists():
            section["agreement"] = agreement(np.load(ours), np.load(theirs))
        return section

    def index(self) -> Line:
        line = self.job("index", str(self.sizes["index"]))
        return {"runs": [line] if line else []}

    def scale(self) -> Line:
        """Rows per second and peak memory; the matrix itself is part of the memory of comparing all pairs."""
        minhash = [self.job("minhash", self.rows(count)) for count in self.sizes["scale"]]
        pairs = [self.job("exact", str(count)) for count in self.sizes["pairs"]]
        return {"minhash": [each for each in minhash if each], "exact": [each for each in pairs if each]}


def compared(runs: dict[str, list[Line]]) -> Line:
    """The contenders' seconds and memory, and ojak's ratio to each: theirs over ours, above 1 where ours is faster."""
    section: Line = {}
    for name, lines in runs.items():
        if lines:
            seconds = harness.spread([line["seconds"] for line in lines])
            peak = max(line["peak_rss_bytes"] for line in lines)
            section[name] = {**lines[-1], "seconds": seconds, "peak_rss_bytes": peak}
    if "ojak" in section:
        for name in section.keys() - {"ojak"}:
            section[name]["over_ojak"] = round(
                section[name]["seconds"]["median"] / section["ojak"]["seconds"]["median"], 2
            )
    return section


def agreement(ours: Any, theirs: Any) -> Line:
    """How far two answers differ: rows with the same neighbour, and the largest difference of the distances."""
    same = ours["index"] == theirs["index"]
    apart = np.abs(ours["distance"].astype(np.float64) - theirs["distance"].astype(np.float64))
    return {"same_index": float(same.mean()), "largest_difference": float(apart.max())}


def tables(sections: Line) -> str:
    parts = []
    for name in ("minhash", "neighbors"):
        if name in sections:
            parts += [name, _comparison(sections[name]), str(sections[name].get("agreement", ""))]
    flat = [("index", line) for line in sections.get("index", {}).get("runs", [])]
    flat += [(f"scale, {kind}", line) for kind, lines in sections.get("scale", {}).items() for line in lines]
    if flat:
        rows = [(name, f"{each['rows']:,}", f"{each['seconds']:.1f}", f"{each['rows'] / each['seconds']:,.0f}",
                 f"{each['peak_rss_bytes'] / 2**20:,.0f}", str(each.get("recall", "")))
                for name, each in flat]  # fmt: skip
        parts.append(harness.table(("job", "rows", "seconds", "rows/s", "peak MiB", "recall"), rows))
    return "\n\n".join(part for part in parts if part)


def _comparison(section: Line) -> str:
    rows = [
        (name, f"{each['rows']:,}", f"{each['seconds']['median']:.1f}",
         f"{each['rows'] / each['seconds']['median']:,.0f}",
         f"{each['peak_rss_bytes'] / 2**20:,.0f}", str(each.get("kept", "")), str(each.get("over_ojak", "")))
        for name, each in section.items() if "seconds" in each
    ]  # fmt: skip
    return harness.table(("contender", "rows", "seconds", "rows/s", "peak MiB", "kept", "times ojak's"), rows)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="few rows, one round, no result file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--scratch", type=pathlib.Path, help="where rows and answers are put, and removed (about 1 GB)"
    )
    args = parser.parse_args(arguments)
    chosen = args.sections or SECTIONS
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    harness.keep_to_cores(args.threads)
    day = datetime.now(UTC)
    sections: Line = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        benchmark = Benchmark(args, pathlib.Path(scratch))
        for name in chosen:
            harness.say(name)
            sections[name] = getattr(benchmark, name)()
            if not args.quick:  # kept after every section: a benchmark cut short keeps what it has
                path = harness.RESULTS / f"curate-{day:%Y-%m-%d}.json"
                harness.update_results(path, {"machine": harness.machine(), name: sections[name]})
    print(tables(sections))
    for failure in benchmark.failures:
        harness.say(failure)
    return 1 if benchmark.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
