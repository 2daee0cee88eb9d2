"""The corpus stage: against plain datatrove on the same text with the same filters, and its memory as a corpus grows.

Sections, all by default:
    speed     MB/s of the four filters of FineWeb, on generated web text and on Python's language reference: plain
              datatrove (its classes, one after another, one process), ojak's filters in one process, and the whole of
              `ojak corpus` (reading, language, filters, duplicates, personal data, an artifact) with all workers
    memory    peak memory of `ojak corpus` (the process, and the largest worker) at several sizes of corpus

Texts are made up (a seed gives the same ones), so that rules of every kind are asked. Nothing is asserted about time.

    python benchmarks/corpus.py --quick
    python benchmarks/corpus.py memory --sizes 10 100 1000
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pydoc_data.topics
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "corpus"))
MB = 10**6
SECTIONS = ("speed", "memory")

Line = dict[str, Any]


def texts(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Made-up web texts, every third of them one that no rule drops; and topics of the language reference."""
    from raw_files import KINDS, article

    draw, size, number = random.Random(seed), 0, 0
    topics = list(pydoc_data.topics.topics.values())
    while size < megabytes * MB:
        text = article(draw, 8) if number % 3 == 0 else KINDS[number % len(KINDS)](draw)
        text = topics[number % len(topics)][:20_000] if number % 97 == 0 else text
        size, number = size + len(text.encode()), number + 1
        yield text


def plain(corpus: list[str]) -> list[str]:
    """Plain datatrove: the reasons, "" for a document that stays."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    steps = [
        filters.GopherRepetitionFilter(language="en"),
        filters.GopherQualityFilter(language="en"),
        filters.C4QualityFilter(filter_no_terminal_punct=False, language="en"),
        filters.FineWebQualityFilter(language="en"),
    ]
    reasons = []
    for text in corpus:
        document, found = Document(text=text, id=""), ""
        for step in steps:
            result = step.filter(document)
            if isinstance(result, tuple):
                found = str(result[1])
                break
        reasons.append(found)
    return reasons


def ours(corpus: list[str]) -> list[str]:
    """ojak's filters, the language left out as above."""
    from ojak.corpus.filters import Filters

    rules = Filters("web", (), 10**9)
    return [rules.filtered(text, "en").reason.partition(".")[2] for text in corpus]


def timed(function: Callable[[list[str]], list[str]], corpus: list[str]) -> tuple[float, list[str]]:
    function(corpus[:50])  # libraries and tables are loaded
    start = time.perf_counter()
    found = function(corpus)
    return time.perf_counter() - start, found


def speed(args: argparse.Namespace) -> Line:
    corpus = list(texts(args.megabytes))
    size = sum(len(text.encode()) for text in corpus) / MB
    rates: dict[str, list[float]] = {"datatrove": [], "ojak filters": [], "ojak corpus": []}
    agree = 0
    for turn in range(args.repeats):
        harness.say(f"round {turn + 1} of {args.repeats}")
        their_s, theirs = timed(plain, corpus)
        our_s, found = timed(ours, corpus)
        agree = sum(a == b for a, b in zip(theirs, found, strict=True))
        whole = whole_run(args.megabytes, args)
        rates["datatrove"].append(size / their_s)
        rates["ojak filters"].append(size / our_s)
        rates["ojak corpus"].append(size / whole["seconds"])
    medians = {name: round(statistics.median(found), 3) for name, found in rates.items()}
    ratio = medians["ojak filters"] / medians["datatrove"]
    return {
        "megabytes": size,
        "documents": len(corpus),
        "agree": agree,
        "mb_per_s": medians,
        "ratio": round(ratio, 2),
    }


def memory(args: argparse.Namespace) -> Line:
    return {"runs": [whole_run(size, args) for size in args.sizes]}


def whole_run(megabytes: float, args: argparse.Namespace) -> Line:
    """`ojak corpus` on a file of rows, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        rows = pathlib.Path(name) / "rows.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for text in texts(megabytes):
                file.write(json.dumps({"text": text}) + "\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--run", str(rows), f"{name}/out"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    line = {"megabytes": megabytes, **json.loads(done.stdout.splitlines()[-1])}
    harness.say(
        f"  {megabytes} MB: {line['seconds']:.1f} s, {line['own_mib']:.0f} MiB, a worker {line['worker_mib']:.0f} MiB"
    )
    return line


def run(rows: str, out: str) -> None:
    """Within that process."""
    import resource

    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.run import make_corpus, summary

    start = time.perf_counter()
    facts = summary(make_corpus(CorpusConfig(paths=(pathlib.Path(rows),)), out))
    seconds = time.perf_counter() - start
    own, worker = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    figures = {"documents": facts["documents_in"], "kept": facts["kept"]}
    print(json.dumps({**figures, "seconds": seconds, "own_mib": own, "worker_mib": worker}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--quick", action="store_true", help="little text, one round")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", help="where the texts are written")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        return
    if args.quick:
        args.megabytes, args.sizes, args.repeats = 0.5, [0.5, 1], 1
    found = {name: {"speed": speed, "memory": memory}[name](args) for name in args.sections or SECTIONS}
    print(json.dumps({"machine": harness.machine(), **found}, indent=2))


if __name__ == "__main__":
    main()
