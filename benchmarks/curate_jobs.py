"""The jobs that `curate.py` times, each run in a process of its own: prints one JSON line.

rows FILE N           N made-up rows as JSONL
minhash FILE          clusters of near duplicates of the rows in FILE
exact N OUT           nearest neighbours of N vectors, every pair compared
flat N OUT            the same by FAISS's flat index
index N               the same by ojak's index, with its recall
"""

import argparse
import json
import pathlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import planted

WIDTH = 384
HIDDEN = 48  # directions in which the vectors differ much, as those of embedding models do
PART = 65_536
SEED = 7

Matrix = NDArray[np.float32]


def texts(path: pathlib.Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def vectors(count: int) -> Matrix:
    """Unit vectors in groups of about ten around centres, which lie near a plane of few dimensions."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(max(1, count // 10), HIDDEN)).astype(np.float32)
    spread = rng.normal(size=(HIDDEN, WIDTH)).astype(np.float32)
    matrix = np.empty((count, WIDTH), dtype=np.float32)
    for start in range(0, count, PART):
        part = matrix[start : start + PART]
        chosen = centres[rng.integers(len(centres), size=len(part))]
        near = chosen + 0.5 * rng.normal(size=chosen.shape).astype(np.float32)
        part[:] = near @ spread + 0.5 * rng.normal(size=part.shape).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return matrix


def write_rows(path: pathlib.Path, count: int) -> dict[str, Any]:
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(planted.plain_texts(count, SEED)):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return {"bytes": path.stat().st_size}


def minhash(path: pathlib.Path) -> dict[str, Any]:
    from ojak.similarity.minhash import near_duplicates

    start = time.perf_counter()
    found = near_duplicates(texts(path), threshold=0.7, unit="word", size=5)
    seconds = time.perf_counter() - start
    return {"rows": len(found.first), "seconds": seconds, "kept": int(found.stays.sum())}


def exact(count: int, out: pathlib.Path | None) -> dict[str, Any]:
    from ojak.similarity.embedding import neighbors

    matrix = vectors(count)
    neighbors(matrix[:4096])
    start = time.perf_counter()
    found = neighbors(matrix, exact_up_to=count)
    return _neighbors(count, time.perf_counter() - start, found.distance, found.index, out)


def flat(count: int, out: pathlib.Path | None) -> dict[str, Any]:
    """FAISS's flat index over inner products, asked for two: a row finds itself, too."""
    import faiss

    matrix = vectors(count)
    start = time.perf_counter()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(matrix)
    cosines, found = index.search(matrix, 2)
    other = (found[:, 0] == np.arange(count)).astype(np.int64)
    rows = np.arange(count)
    return _neighbors(count, time.perf_counter() - start, 1 - cosines[rows, other], found[rows, other], out)


def index(count: int) -> dict[str, Any]:
    from ojak.similarity.embedding import neighbors

    matrix = vectors(count)
    start = time.perf_counter()
    found = neighbors(matrix, exact_up_to=0)
    seconds = time.perf_counter() - start
    recall = {"recall": found.recall, "recall_low": found.recall_low, "recall_high": found.recall_high}
    return {"rows": count, "seconds": seconds, **recall, "matrix_bytes": matrix.nbytes}


def _neighbors(
    count: int, seconds: float, distance: Any, neighbor: Any, out: pathlib.Path | None
) -> dict[str, Any]:
    if out:
        np.savez(out, distance=distance, index=neighbor)
    return {"rows": count, "seconds": seconds, "matrix_bytes": 4 * count * WIDTH}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=["rows", "minhash", "exact", "flat", "index"])
    parser.add_argument("arguments", nargs="+")
    args = parser.parse_args()
    first, rest = args.arguments[0], args.arguments[1:]
    out = pathlib.Path(rest[0]) if rest and args.job in ("exact", "flat") else None
    jobs = {
        "rows": lambda: write_rows(pathlib.Path(first), int(rest[0])),
        "minhash": lambda: minhash(pathlib.Path(first)),
        "exact": lambda: exact(int(first), out),
        "flat": lambda: flat(int(first), out),
        "index": lambda: index(int(first)),
    }
    line = jobs[args.job]()
    line["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(line))


if __name__ == "__main__":
    sys.exit(main())
