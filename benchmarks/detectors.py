"""Recall and precision of every detector on rows with planted duplicates, personal data, test items and secrets.

The rows are made up (`planted.py`) from a seed that was not looked at while thresholds and patterns were chosen
(`--seed`; those were made on seed 1). Recall is the share of what was planted that was found; precision the share of
what was found that was planted; both with Wilson's 95 % interval. It asserts nothing.

    python benchmarks/detectors.py                 25,000 rows; under two minutes on two cores without --embed
    python benchmarks/detectors.py --embed 5000    and duplicates by meaning, on the first 5,000 rows
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import harness
import planted
from ojak._interval import wilson
from ojak.rules.contamination import Contamination
from ojak.rules.privacy import find_personal_data
from ojak.rules.secrets import find_secrets
from ojak.similarity.minhash import near_duplicates

TUNED_ON = 1
REPEATS = ("exact", "near", "paraphrase")
COSINES = (0.9, 0.95, 0.975)

Rows = list[planted.Row]
Line = dict[str, Any]


def share(right: int, count: int) -> Line:
    """A share with its interval; of nothing, none."""
    if count == 0:
        return {"right": 0, "of": 0}
    low, high = wilson(right, count)
    return {
        "right": right,
        "of": count,
        "share": round(right / count, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def line(detector: str, what: str, *, found: int, planted_: int, right: int, flagged: int) -> Line:
    """found of planted_ were found; right of flagged were planted."""
    return {
        "detector": detector,
        "what": what,
        "recall": share(found, planted_),
        "precision": share(right, flagged),
    }


def duplicates(detector: str, rows: Rows, first: Sequence[int]) -> list[Line]:
    """A line for each kind of repeat. A repeat is found when it is in the cluster of the row that it repeats; a flag
    is right on any planted repeat. A row and its only repeat are a cluster; anything else in it is wrong."""
    flagged = [number for number, of in enumerate(first) if of != number]
    right = sum(_same(rows, first, number) for number in flagged)
    lines = []
    for kind in REPEATS:
        of_kind = [number for number, row in enumerate(rows) if row.kind == kind]
        found = sum(_same(rows, first, number) for number in of_kind)
        lines.append(
            line(detector, kind, found=found, planted_=len(of_kind), right=right, flagged=len(flagged))
        )
    return lines


def _same(rows: Rows, first: Sequence[int], number: int) -> bool:
    of = rows[number].of
    return of is not None and first[number] == first[of]


def minhash(rows: Rows) -> list[Line]:
    lines = []
    for unit in ("word", "character"):
        found = near_duplicates((row.text for row in rows), unit=unit)
        lines += duplicates(f"MinHash, {unit} 5-grams, Jaccard 0.7", rows, found.first.tolist())
    exact = [
        (number if not same else int(of))
        for number, (same, of) in enumerate(zip(found.exact, found.first, strict=True))
    ]
    return [
        *[each for each in duplicates("equal after normalize", rows, exact) if each["what"] == "exact"],
        *lines,
    ]


def meaning(rows: Rows) -> list[Line]:
    from ojak.similarity.embedding import Embedder, clusters

    matrix = Embedder.open().encode(row.text for row in rows)
    found = [(cosine, clusters(matrix, cosine).tolist()) for cosine in COSINES]
    return [
        each for cosine, first in found for each in duplicates(f"embedding, cosine {cosine}", rows, first)
    ]


def personal(rows: Rows) -> list[Line]:
    """Found: the very place that was planted, with its kind. A flag is right where it lies in what was planted."""
    counts = {kind: [0, 0, 0, 0] for kind in planted.PERSONAL}
    for row in rows:
        places = [
            (kind, row.text.find(piece), piece) for kind, piece in row.planted if kind in planted.PERSONAL
        ]
        found = {(each.kind, each.start, each.end) for each in find_personal_data(row.text)}
        for kind, start, piece in places:
            counts[kind][1] += 1
            counts[kind][0] += (kind, start, start + len(piece)) in found
        for kind, start, end in found:
            counts[kind][3] += 1
            counts[kind][2] += any(kind == k and s <= start and end <= s + len(p) for k, s, p in places)
    return [
        line("personal data", kind, found=found, planted_=all_, right=right, flagged=flagged)
        for kind, (found, all_, right, flagged) in counts.items()
    ]


def by_row(detector: str, kind: str, rows: Rows, flags: Callable[[str], bool]) -> list[Line]:
    flagged = [row.kind == kind for row in rows if flags(row.text)]
    there = sum(row.kind == kind for row in rows)
    return [
        line(detector, kind, found=sum(flagged), planted_=there, right=sum(flagged), flagged=len(flagged))
    ]


def contamination(rows: Rows, tests: list[str]) -> list[Line]:
    check = Contamination(tests)
    return by_row("13-grams of a test set", "contaminated", rows, lambda text: check.find(text) is not None)


def secrets(rows: Rows) -> list[Line]:
    return by_row("secrets", "secret", rows, lambda text: bool(find_secrets(text)))


def table(lines: list[Line]) -> str:
    header = ("detector", "what", "recall", "precision")
    return harness.table(header, [(each["detector"], each["what"], *_cells(each)) for each in lines])


def _cells(each: Line) -> tuple[str, str]:
    recall, precision = (
        f"{s['share']:.4f} ({s['low']:.4f}-{s['high']:.4f}) of {s['of']}" if s["of"] else "none"
        for s in (each["recall"], each["precision"])
    )
    return recall, precision


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument(
        "--seed", type=int, default=20_261_124, help="not the one that thresholds were chosen on"
    )
    parser.add_argument("--embed", type=int, default=0, metavar="N", help="embed the first N rows, too")
    parser.add_argument("--no-file", action="store_true", help="write no result file")
    args = parser.parse_args(arguments)
    tests = planted.test_items(500, args.seed)
    rows = planted.rows(args.rows, args.seed, tests)
    jobs: dict[str, Callable[[], list[Line]]] = {
        "minhash": lambda: minhash(rows),
        "personal": lambda: personal(rows),
        "contamination": lambda: contamination(rows, tests),
        "secrets": lambda: secrets(rows),
    }
    if args.embed:
        jobs["embedding"] = lambda: meaning(rows[: args.embed])
    lines, seconds = [], {}
    for name, job in jobs.items():
        start = time.perf_counter()
        lines += job()
        seconds[name] = round(time.perf_counter() - start, 2)
        print(f"{name}: {seconds[name]} s", file=sys.stderr, flush=True)
    print(table(lines))
    if not args.no_file:
        day = datetime.now(UTC)
        result = {
            "rows": args.rows,
            "seed": args.seed,
            "tuned_on_seed": TUNED_ON,
            "seconds": seconds,
            "lines": lines,
        }
        path = harness.RESULTS / f"detectors-{day:%Y-%m-%d}.json"
        harness.update_results(
            path, {"detectors": result, "machine": harness.machine(), "date": f"{day:%Y-%m-%d}"}
        )
        print(f"\nwritten to {path.relative_to(harness.RESULTS.parents[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
