"""Raw text on its way into training: filters against plain datatrove's, tokens a second, and memory as a corpus grows.

Sections, all by default:
    speed     MB/s of the four filters of FineWeb, on generated web text and on Python's language reference: plain
              datatrove (its classes, one after another, one process), ojak's filters in one process, and the whole of
              `ojak corpus` (reading, language, filters, duplicates, personal data, an artifact) with all workers
    tokens    MB of text for each CPU second of one thread: the tokenizer's library alone, training's tokenizing into
              its cache, packing, and the whole of `ojak pretrain-mix` (it counts, chooses, and writes)
    memory    peak memory at several sizes of corpus: of `ojak corpus` (the process, and the largest worker), and of
              what follows it, `ojak augment --synthesizer rules` and `ojak pretrain-mix`, each a process of its own

Texts are made up (a seed gives the same ones), so that rules of every kind are asked. Nothing is asserted about time.

    python benchmarks/corpus.py --quick
    python benchmarks/corpus.py memory --sizes 10 100 1000 --results benchmarks/results
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
from datetime import UTC, datetime
from typing import Any

import harness

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "corpus"))
MB = 10**6
SECTIONS = ("speed", "tokens", "memory")
STEPS = ("corpus", "augment", "mix")
MAX_LEN = 1024

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


def tokens(args: argparse.Namespace) -> Line:
    """In a process of its own, whose libraries have one thread each."""
    rounds = []
    for turn in range(args.repeats):
        rounds.append(in_steps(args.megabytes, args, ("tokens",))[0])
        harness.say(f"round {turn + 1} of {args.repeats}: {rounds[-1]['mb_per_cpu_s']}")
    names = rounds[0]["mb_per_cpu_s"]
    medians = {name: statistics.median(each["mb_per_cpu_s"][name] for each in rounds) for name in names}
    return {"megabytes": args.megabytes, "max_len": MAX_LEN, "mb_per_cpu_s": medians, "rounds": rounds}


def memory(args: argparse.Namespace) -> Line:
    runs: list[Line] = []
    for size in args.sizes:
        runs += in_steps(size, args, STEPS[: STEPS.index(args.until) + 1])
    return {"runs": runs}


def whole_run(megabytes: float, args: argparse.Namespace) -> Line:
    """`ojak corpus` alone."""
    return in_steps(megabytes, args, ("corpus",))[0]


def in_steps(megabytes: float, args: argparse.Namespace, steps: tuple[str, ...]) -> list[Line]:
    """Rows in a file, and one step after another on what the last one wrote, each in a process of its own."""
    lines = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        found = pathlib.Path(name) / "rows.jsonl"
        with found.open("w", encoding="utf-8") as file:
            for text in texts(megabytes):
                file.write(json.dumps({"text": text}) + "\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if "tokens" in steps:
            one = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
            environment |= {**one, "TOKENIZERS_PARALLELISM": "false"}
        for step in steps:
            out = found.with_name(step)
            command = [
                sys.executable,
                str(pathlib.Path(__file__).resolve()),
                "--run",
                step,
                str(found),
                str(out),
            ]
            begin = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{step}, {megabytes} MB:\n{done.stderr[-2000:]}")
            line = {"step": step, "megabytes": megabytes, **json.loads(done.stdout.splitlines()[-1])}
            lines.append({**line, "whole_s": round(time.perf_counter() - begin, 1)})
            harness.say(f"  {json.dumps(lines[-1])}")
            found = out
    return lines


def run(step: str, source: str, out: str) -> None:
    """Within that process."""
    import resource

    start = time.perf_counter()
    facts = {"corpus": run_corpus, "augment": run_augment, "mix": run_mix, "tokens": run_tokens}[step](
        pathlib.Path(source), pathlib.Path(out)
    )
    seconds = time.perf_counter() - start
    own, worker = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({**facts, "seconds": seconds, "own_mib": own, "worker_mib": worker}))


def run_corpus(source: pathlib.Path, out: pathlib.Path) -> Line:
    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.run import make_corpus, summary

    facts = summary(make_corpus(CorpusConfig(paths=(source,)), out))
    return {"documents": facts["documents_in"], "kept": facts["kept"]}


def run_augment(source: pathlib.Path, out: pathlib.Path) -> Line:
    from ojak.augment.config import AugmentConfig
    from ojak.augment.run import augment_data, summary

    facts = summary(augment_data(source, out, AugmentConfig(synthesizer="rules")))
    return {"documents": facts["documents"], "pairs": facts["pairs"]}


def run_mix(source: pathlib.Path, out: pathlib.Path) -> Line:
    """Of the texts with pairs, a token for every 32 characters: about an eighth of all, each counted and compared."""
    from ojak.artifact import Artifact
    from ojak.records import Document
    from ojak.train.mix import make_mix
    from ojak.train.mix_config import MixConfig

    size = sum(len(each.text) for each in Artifact.open(source).records() if isinstance(each, Document))
    config = MixConfig(arm="instruct", tokens=max(MAX_LEN, size // 32), max_len=MAX_LEN)
    return {"tokens": make_mix(source, out, config).stats["arms"]["train"]["tokens"]}


def run_tokens(source: pathlib.Path, out: pathlib.Path) -> Line:
    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.run import make_corpus
    from ojak.records import Document
    from ojak.train.batches import plan_epoch
    from ojak.train.mix import find_tokenizer, make_mix
    from ojak.train.mix_config import MixConfig
    from ojak.train.rows import open_rows

    made = make_corpus(CorpusConfig(paths=(source,), profile="none"), out.with_name("texts"))
    corpus = [each.text for each in made.records() if isinstance(each, Document)]
    size = sum(len(text.encode()) for text in corpus) / MB
    config = MixConfig(arm="vanilla", tokens=1, max_len=MAX_LEN)
    tokenizer = find_tokenizer(config.tokenizer, (), harness.say)
    rates: dict[str, float] = {}

    def rate(name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = work()
        rates[name] = round(size / (time.process_time() - start), 3)
        return found

    rate("the tokenizer alone", lambda: [tokenizer.encode(text) for text in corpus])
    os.environ["OJAK_HOME"] = str(out.with_name("home"))  # an empty cache of tokens
    rows = rate(
        "tokenizing for training",
        lambda: open_rows([str(made.path)], tokenizer, template=None, objective="pretrain", max_len=MAX_LEN),
    )
    plan = rate("packing", lambda: plan_epoch(rows, seed=0, epoch=0, batch=8, packing=True, max_len=MAX_LEN))
    rate("packing and laying out every step", lambda: [plan.step(number) for number in range(plan.steps)])
    del os.environ["OJAK_HOME"]
    config = config.model_copy(update={"tokens": round(0.8 * plan.tokens)})
    rate("pretrain-mix, 0.8 of the text", lambda: make_mix(made.path, out, config))
    return {"tokens": plan.tokens, "mb_per_cpu_s": rates}


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
    parser.add_argument(
        "--until", choices=STEPS, default="mix", help="the last step whose memory is measured"
    )
    parser.add_argument("--results", type=pathlib.Path, help="folder to keep the figures in")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        return
    if args.quick:
        args.megabytes, args.sizes, args.repeats = 0.5, [0.5, 1], 1
    measures = {"speed": speed, "tokens": tokens, "memory": memory}
    found = {name: measures[name](args) for name in args.sections or SECTIONS}
    print(json.dumps({"machine": harness.machine(), **found}, indent=2))
    if args.results:
        facts = {"date": datetime.now(UTC).isoformat(), "machine": harness.machine()}
        path = args.results / f"corpus-{datetime.now(UTC):%Y-%m-%d}.json"
        harness.update_results(path, {**facts, **found})
        print(path)


if __name__ == "__main__":
    main()
