"""Scores of a sample, learnt and given to every document."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_files import article

from ojak.artifact import verify
from ojak.corpus import educational
from ojak.corpus.config import CorpusConfig
from ojak.corpus.educational import learn, read_scores, ridge, score_all, stays
from ojak.corpus.run import make_corpus, summary
from ojak.errors import InputRefused


class Fake:
    """A direction for each word; a text is the mean of its words."""

    name, sha256, width = "a-fake-model", "0" * 64, 32

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, texts: Any) -> Any:
        texts = list(texts)
        self.seen += len(texts)
        return np.array(
            [np.mean([_direction(word) for word in text.split()], axis=0) for text in texts], np.float32
        )


def _direction(word: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(word.strip(".").lower().encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=Fake.width)


def lesson(draw: random.Random, good: bool) -> str:
    words = "proof theorem number lemma" if good else "sale shop price today"
    return article(draw, 1) + " " + " ".join(draw.choice(words.split()) for _ in range(25))


def sample(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    goods = [draw.random() < 0.4 for _ in range(count)]
    return [
        {"text": lesson(draw, good), "score": draw.choice([3, 4, 5] if good else [0, 1, 2])} for good in goods
    ]


def test_ridge_is_the_closed_form_and_its_strength_the_best_by_gcv() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(80, 6)).astype(np.float32)
    scores = matrix @ rng.normal(size=6) + 2 + rng.normal(size=80)
    head, chosen = ridge(matrix, scores)
    x, y = matrix.astype(np.float64) - matrix.mean(0, dtype=np.float64), scores - scores.mean()
    errors = {}
    for strength in educational.STRENGTHS:
        inverse = np.linalg.inv(x.T @ x + strength * np.eye(6))
        hat = x @ inverse @ x.T
        residual = y - hat @ y
        errors[strength] = (residual**2).mean() / (1 - (np.trace(hat) + 1) / 81) ** 2
        if strength == chosen:
            np.testing.assert_allclose(head.weights, inverse @ x.T @ y, rtol=1e-5)
            np.testing.assert_allclose(head.scores(matrix).mean(), scores.mean(), rtol=1e-6)
    assert chosen == min(errors, key=lambda strength: errors[strength])


def test_what_can_be_told_from_the_words_is_learnt() -> None:
    rows = sample(300)
    texts, scores = [row["text"] for row in rows], [row["score"] for row in rows]
    embedder: Any = Fake()
    _, learnt = learn(texts, scores, embedder, 3)
    assert (learnt.scored, learnt.held_out) == (300, 30)
    assert learnt.f1 > 0.9
    shuffled = list(zip(texts, scores, strict=True))
    random.Random(1).shuffle(shuffled)
    again = learn([text for text, _ in shuffled], [score for _, score in shuffled], embedder, 3)[1]
    assert again == learnt, "the order of the file does not count"
    noise = [random.Random(i).choice([0, 5]) for i in range(300)]
    assert learn(texts, noise, embedder, 3)[1].correlation < 0.4


def test_scores_are_rounded_as_fineweb_edu_does() -> None:
    assert stays(np.array([2.49, 2.5, 3.2]), 3.0).tolist() == [False, True, True]


def test_blocks_that_were_scored_are_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(educational, "BLOCK", 10)
    texts, embedder = [row["text"] for row in sample(35)], Fake()
    head = educational.Head(np.ones(Fake.width), 0.5)
    whole = score_all(texts, head, embedder, tmp_path)  # type: ignore[arg-type]
    np.testing.assert_allclose(whole, Fake().encode(texts).sum(axis=1) + 0.5, rtol=1e-5)
    (tmp_path / "scores-000002.npy").unlink()
    embedder.seen = 0
    assert score_all(texts, head, embedder, tmp_path).tolist() == whole.tolist()  # type: ignore[arg-type]
    assert embedder.seen == 10


def test_a_corpus_keeps_what_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ojak.similarity.embedding.Embedder.open", lambda *given, **more: Fake())
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, sample(200))), "utf-8")
    rows = sample(40, seed=7)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    config = CorpusConfig(
        paths=(tmp_path / "rows.jsonl",), profile="none", workers=1, educational=tmp_path / "scores.jsonl"
    )
    artifact = make_corpus(config, tmp_path / "out")
    verify(tmp_path / "out")
    facts = summary(artifact)
    good = sum(row["score"] >= 3 for row in rows)
    assert facts["kept"] == good
    assert facts["rejected"] == {"educational": len(rows) - good}
    assert facts["educational"]["f1"] > 0.9
    assert facts["funnel"][-1] == {"rule": "educational", "in": len(rows), "rejected": len(rows) - good}
    assert all(record.meta["educational"] >= 2.5 for record in artifact.records())
    assert all(record.meta["educational"] < 2.5 for record in artifact.rejected())


@pytest.mark.parametrize(
    "lines",
    [
        '{"text": "a", "score": "5"}',
        '{"text": "a", "score": true}',
        '{"score": 1}',
        '{"text": "a", "score": 1}',
    ],
)
def test_scores_that_say_nothing_are_refused(lines: str, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text(lines + "\n", "utf-8")
    with pytest.raises(InputRefused):
        read_scores(tmp_path / "scores.jsonl")
