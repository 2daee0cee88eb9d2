"""How much a document teaches: scores that somebody gave to a sample, learnt from embeddings, given to every document.

FineWeb-Edu's way (arXiv 2406.17557): a large model scores some pages from 0 to 5, a linear regression on a frozen
embedding learns it, documents whose rounded score reaches 3 stay. Here the regression is a ridge in closed form, its
strength chosen by generalised cross-validation (Golub, Heath and Wahba 1979), and a tenth of the scored texts is held
out to say how well it does.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak._files import write_atomic
from ojak._jsonl import read_rows, refused
from ojak._progress import silent
from ojak.errors import InputRefused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ojak.similarity.embedding import Embedder

    Matrix = NDArray[np.float32]
    Scores = NDArray[np.float64]

LEAST_SCORED = 50  # a head of some hundred weights learns nothing from fewer
HELD_OUT = 10  # one in so many
STRENGTHS = tuple(10.0**power for power in range(-4, 5))
BLOCK = 512  # documents that are embedded together, always the same ones: rounding depends on the company


@dataclass(frozen=True, slots=True)
class Learnt:
    """How the head does on texts that it has not seen: Pearson's r; precision, recall and F1 of `least` and above."""

    scored: int
    held_out: int
    strength: float
    correlation: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Head:
    """score = embedding @ weights + bias."""

    weights: Scores
    bias: float

    def scores(self, matrix: Matrix) -> Scores:
        """[rows] the score of each embedding [rows, width]."""
        return matrix @ self.weights + self.bias


def read_scores(path: Path) -> tuple[list[str], list[float]]:
    """The texts and scores of a file of JSON lines {"text", "score"}. Raises InputRefused."""
    texts, scores = [], []
    for line in read_rows(path, silent):
        text, score = line.row.get("text"), line.row.get("score")
        if not isinstance(text, str) or isinstance(score, bool) or not isinstance(score, int | float):
            raise refused(path, line, 'it needs "text" and a number under "score"')
        texts.append(text)
        scores.append(float(score))
    if len(texts) < LEAST_SCORED:
        raise InputRefused(
            f"{path} has scores of {len(texts)} texts",
            why=f"nothing can be learnt from fewer than {LEAST_SCORED}",
            fix="let a model score more; FineWeb-Edu took 460,000",
        )
    return texts, scores


def learn(
    texts: Sequence[str], scores: Sequence[float], embedder: Embedder, least: float
) -> tuple[Head, Learnt]:
    """A head, and how well it does on the texts that were held out (chosen by a hash, so always the same)."""
    import numpy as np

    order = sorted(
        range(len(texts)), key=lambda i: hashlib.sha256(texts[i].encode("utf-8", "replace")).digest()
    )
    matrix, given = embedder.encode([texts[i] for i in order]), np.array([scores[i] for i in order])
    held = len(order) // HELD_OUT
    head, strength = ridge(matrix[held:], given[held:])
    found, truth = head.scores(matrix[:held]), given[:held]
    return head, Learnt(len(order), held, strength, *_agreement(found, truth, least))


def ridge(matrix: Matrix, scores: Scores) -> tuple[Head, float]:
    """(the head with the least generalised cross-validation error, its strength). matrix: [rows, width]."""
    import numpy as np

    mean, middle = matrix.mean(axis=0, dtype=np.float64), scores.mean()
    u, s, vt = np.linalg.svd(matrix - mean, full_matrices=False)
    aligned = u.T @ (scores - middle)
    best: tuple[float, float] | None = None
    for strength in STRENGTHS:
        shrunk = s**2 / (s**2 + strength)
        residual = scores - middle - u @ (shrunk * aligned)
        error = float((residual**2).mean() / (1 - (shrunk.sum() + 1) / (len(scores) + 1)) ** 2)
        best = min(best, (error, strength)) if best else (error, strength)
    assert best is not None
    weights = vt.T @ (s / (s**2 + best[1]) * aligned)
    return Head(weights, float(middle - mean @ weights)), best[1]


def stays(scores: Scores, least: float) -> NDArray[np.bool_]:
    """[rows] whether the score, rounded as FineWeb-Edu does, reaches `least`."""
    import numpy as np

    return np.floor(scores + 0.5) >= least


def _agreement(found: Scores, truth: Scores, least: float) -> tuple[float, float, float, float]:
    """(correlation, precision, recall, F1); 0 where one is not defined."""
    import numpy as np

    varied = found.std() > 0 and truth.std() > 0
    correlation = float(np.corrcoef(found, truth)[0, 1]) if varied else 0.0
    said, true = stays(found, least), truth >= least
    hits = int((said & true).sum())
    precision, recall = (hits / count if count else 0.0 for count in (int(said.sum()), int(true.sum())))
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return round(correlation, 4), round(precision, 4), round(recall, 4), round(f1, 4)


def score_all(texts: Iterable[str], head: Head, embedder: Embedder, folder: Path) -> Scores:
    """[texts] the scores, block by block; a block that was scored before is read from the folder."""
    import numpy as np

    blocks = [np.empty(0)]
    rest = iter(texts)
    for number in range(2**31):
        path, block = folder / f"scores-{number:06d}.npy", list(islice(rest, BLOCK))
        if not block:
            break
        if not path.is_file():
            buffer = io.BytesIO()
            np.save(buffer, head.scores(embedder.encode(block)))
            write_atomic(path, buffer.getvalue())
        blocks.append(np.load(path, allow_pickle=False))
    return np.concatenate(blocks)


def facts(learnt: Learnt, embedder: Embedder, least: float) -> dict[str, Any]:
    """What the manifest says of it."""
    return {
        **asdict(learnt),
        "least_score": least,
        "embedder": embedder.name,
        "embedder_sha256": embedder.sha256,
    }
