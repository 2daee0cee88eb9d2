"""Near duplicates of the rows of a JSONL file with a peer: one JSON line. Run by the Python of `.peers-dedup`.

    dedup.py datasketch FILE THREADS     MinHashLSH, threshold 0.7, 128 permutations, words, one process
    dedup.py datatrove FILE THREADS      its four MinHash steps, 14 buckets of 8 (its default: 0.72), as many processes

Both take word 5-grams and report candidates without comparing the texts themselves.
"""

import argparse
import json
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

GRAM = 5


def datasketch(path: pathlib.Path, _threads: int) -> dict[str, Any]:
    """Each row is looked up among those kept so far, and kept where nothing is found."""
    from datasketch import MinHash, MinHashLSH

    start = time.perf_counter()
    index = MinHashLSH(threshold=0.7, num_perm=128)
    kept = count = 0
    with path.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, 1):
            words = json.loads(line)["text"].lower().split()
            grams = {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}
            signature = MinHash(num_perm=128)
            signature.update_batch([gram.encode("utf-8") for gram in grams])
            if not index.query(signature):
                index.insert(count, signature)
                kept += 1
    return {"rows": count, "kept": kept, "seconds": time.perf_counter() - start}


def datatrove(path: pathlib.Path, threads: int) -> dict[str, Any]:
    """Signatures, buckets, clusters, filter, over as many shards as there are processes (making those is not timed)."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.typeshelper import Languages

    config = MinhashConfig(n_grams=GRAM, num_buckets=14, hashes_per_bucket=8)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        root = pathlib.Path(name)
        count = shards(path, root / "in", threads)
        reader = JsonlReader(str(root / "in"), compression=None)
        out = {step: str(root / step) for step in ("signatures", "buckets", "remove", "kept")}
        steps = [
            (
                [reader, MinhashDedupSignature(out["signatures"], config=config, language=Languages.english)],
                threads,
            ),
            ([MinhashDedupBuckets(out["signatures"], out["buckets"], config=config)], config.num_buckets),
            ([MinhashDedupCluster(out["buckets"], out["remove"], config=config)], 1),
            (
                [reader, MinhashDedupFilter(out["remove"]), JsonlWriter(out["kept"], compression=None)],
                threads,
            ),
        ]
        start = time.perf_counter()
        for number, (pipeline, tasks) in enumerate(steps):
            logs = str(root / f"logs{number}")
            LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=threads, logging_dir=logs).run()
        seconds = time.perf_counter() - start
        kept = sum(one.read_bytes().count(b"\n") for one in (root / "kept").glob("*.jsonl"))
    return {"rows": count, "kept": kept, "seconds": seconds}


def shards(path: pathlib.Path, folder: pathlib.Path, count: int) -> int:
    """The file's lines in `count` files; gives how many lines there are."""
    folder.mkdir()
    rows = path.read_bytes().splitlines(keepends=True)
    for number in range(count):
        (folder / f"{number}.jsonl").write_bytes(b"".join(rows[number::count]))
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=["datasketch", "datatrove"])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    line = {"datasketch": datasketch, "datatrove": datatrove}[args.peer](args.file, args.threads)
    own, children = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({**line, "peak_rss_bytes": max(own, children) * 1024}))


if __name__ == "__main__":
    sys.exit(main())
