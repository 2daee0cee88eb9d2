"""`ojak curate` by rules that need no model, at 10,000, 100,000 and 1,000,000 rows: rows/s and peak memory.

Rows are made up (`planted.py`, in parts of 10,000, each from a seed of its own), one in a hundred a copy of a row of
the first part, some refusals and loops among them, and written as JSON lines. Each size is curated by the command
itself, in a process of its own; its memory is the peak of its resident set, which holds pages of files that it has
mapped. It asserts nothing about time or memory: the exit code is 1 only when a run failed, or lost a row.

    python benchmarks/curate_scale.py                     all three sizes (about 5 GB of disk)
    python benchmarks/curate_scale.py 10000 100000        some sizes
    python benchmarks/curate_scale.py --quick             1,000 and 3,000 rows: shows that everything works
"""

import argparse
import json
import os
import pathlib
import random
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import harness
import planted

HERE = pathlib.Path(__file__).resolve().parent
SIZES = (10_000, 100_000, 1_000_000)
QUICK = (1_000, 3_000)
PART = 10_000
SEED = 23
TEST_ITEMS = 500
REFUSAL = "I'm sorry, but I can't help with that request."
RECIPE = """version: 1
name: scale
rules:
  - length: {{of: instruction, unit: chars, min: 10, max: 8000}}
  - length: {{of: response, unit: chars, min: 2, max: 32000}}
  - max_score: {{score: repetition, at_most: 0.3}}
  - no_refusal:
  - no_boilerplate:
  - no_personal_data:
  - no_contamination: {{against: [{tests}], n: 13}}
  - no_duplicates: {{kind: exact}}
  - no_duplicates: {{kind: near, threshold: 0.7}}
pick: {{by: longest, number: 1, of: 2}}
"""

Line = dict[str, Any]


def texts(count: int, tests: list[str]) -> Iterator[str]:
    """Instruction and answer of each row, with a line end between them."""
    rng = random.Random(SEED)
    first: list[str] = []
    for begin in range(0, count, PART):
        for row in planted.rows(min(PART, count - begin), SEED + begin, tests):
            draw = rng.random()
            if begin and draw < 0.01:
                yield rng.choice(first)
            elif draw < 0.03:
                yield f"{row.text.partition(chr(10))[0]}\n{REFUSAL}"
            elif draw < 0.04:
                yield f"{row.text}{' And so it goes on and on.' * 20}"
            else:
                yield row.text
            if not begin:
                first.append(row.text)


def write_rows(path: pathlib.Path, count: int, tests: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts(count, tests)):
            asked, _, answered = text.partition("\n")
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"id": f"made-up-{number:07d}", "messages": turns}) + "\n")


def measured(folder: pathlib.Path, count: int, threads: int) -> Line:
    """One size: rows made, curated by the command, counted. Raises RunFailed."""
    tests = planted.test_items(TEST_ITEMS, SEED)
    rows, items, recipe = folder / "rows.jsonl", folder / "tests.jsonl", folder / "scale.yaml"
    write_rows(rows, count, tests)
    items.write_text("".join(json.dumps({"text": item}) + "\n" for item in tests), "utf-8")
    recipe.write_text(RECIPE.format(tests=json.dumps(str(items))), "utf-8")
    env = harness.child_environment(threads, device="cpu", tuned_malloc=False)
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "ojak", "curate", str(rows), "--recipe", str(recipe)]
    before = cpu_s()
    done = harness.run([*command, "--out", str(folder / "out"), "--json"], env=env, limit_s=4 * 3600)
    facts = harness.json_object(done.stdout)
    if facts["rows_in"] != count or facts["kept"] + sum(facts["rejected"].values()) != count:
        raise harness.RunFailed(f"rows were lost: {facts}")
    return {
        "rows": count,
        "seconds": round(done.wall_s, 2),
        "rows_per_s": round(count / done.wall_s, 1),
        "cpu_s": round(cpu_s() - before, 2),
        "peak_rss_bytes": done.peak_rss_bytes,
        "input_bytes": rows.stat().st_size,
        "kept": facts["kept"],
        "rejected": facts["rejected"],
    }


def cpu_s() -> float:
    """CPU seconds of the commands that have ended: what a busy machine does not change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(lines: Sequence[Line]) -> str:
    cells = [
        (f"{each['rows']:,}", f"{each['seconds']:.1f}", f"{each['rows_per_s']:,.0f}", f"{each['cpu_s']:.1f}",
         f"{each['peak_rss_bytes'] / 2**20:,.0f}", f"{each['input_bytes'] / 2**20:,.0f}", f"{each['kept']:,}")
        for each in lines
    ]  # fmt: skip
    return harness.table(("rows", "seconds", "rows/s", "CPU s", "peak MiB", "input MiB", "kept"), cells)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sizes", nargs="*", type=int, metavar="ROWS", help="how many rows (default: all three)"
    )
    parser.add_argument("--quick", action="store_true", help="few rows, no result file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=pathlib.Path, help="where rows and results are put, and removed")
    args = parser.parse_args(arguments)
    harness.keep_to_cores(args.threads)
    lines: list[Line] = []
    failed = False
    for count in args.sizes or (QUICK if args.quick else SIZES):
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            try:
                lines.append(measured(pathlib.Path(folder), count, args.threads))
            except harness.RunFailed as error:
                failed = True
                harness.say(f"{count:,} rows: {error}")
                continue
        harness.say(table(lines[-1:]))
        if not args.quick:  # kept after every size: a benchmark cut short keeps what it has
            path = harness.RESULTS / f"curate-scale-{datetime.now(UTC):%Y-%m-%d}.json"
            harness.update_results(path, {f"{count} rows": {**lines[-1], "machine": harness.machine()}})
    print(table(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
