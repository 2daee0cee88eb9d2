"""Facts: the log-probabilities of answers against the decoder's own logits, ranks, and files that are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from ojak.errors import InputRefused, UsageError
from ojak.judge.facts import Fact, Pair, by_kind, figures, read_facts, recall
from ojak.model.score import score_greedy

FACTS = [
    Fact("a", "The river of Ob is", "Lu", ("Mi", "Ra", "Te"), "cloze"),
    Fact("a", "Question: Which river?\nAnswer:", "Lu", ("Mi",), "qa"),
    Fact("b", "x", "a longer answer", (), "qa"),
]


def file(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_recalled_is_what_the_logits_say() -> None:
    model = tiny.model()
    found = list(recall(FACTS, model.tokenizer, lambda pairs: score_greedy(model.decoder, pairs)))
    for fact, each in zip(FACTS, found, strict=True):
        totals = []
        for text in (fact.answer, *fact.distractors):
            prompt = [tiny.BOS, *fact.prompt.encode()]
            ids = [*prompt, *f" {text}".encode()]
            logits = model.decoder(torch.tensor([ids]))[0].double().numpy()
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            places = range(len(prompt) - 1, len(ids) - 1)
            totals.append(sum(logprobs[i, ids[i + 1]] for i in places))
            if text == fact.answer:
                assert each.exact == all(logprobs[i].argmax() == ids[i + 1] for i in places)
                assert each.tokens == len(places)
        assert each.logprob == pytest.approx(totals[0], abs=1e-3)
        assert each.rank == (1 + sum(other > totals[0] for other in totals[1:]) if fact.distractors else None)


def test_an_answer_that_greedy_decoding_writes_is_exact() -> None:
    def read(pairs: Iterable[Pair]) -> Iterator[tuple[tuple[float, bool], ...]]:
        """Knows answers that begin with L."""
        for _, ids in pairs:
            known = bytes(ids).startswith(b" L")
            yield tuple((-0.1 if known else -2.0, known) for _ in ids)

    found = list(recall(FACTS, tiny.tokenizer(), read))
    assert [(each.exact, each.rank) for each in found] == [(True, 1), (True, 1), (False, None)]
    kinds = by_kind(found)
    assert figures(kinds["cloze"]) == {"logprob": pytest.approx(-0.1), "exact": 1.0, "accuracy": 1.0}
    # 3 tokens at -0.1 and 16 at -2: the mean is over tokens.
    assert figures(kinds["qa"])["logprob"] == pytest.approx((3 * -0.1 + 16 * -2.0) / 19)
    assert figures(kinds["qa"])["exact"] == 0.5


def test_facts_are_read(tmp_path: Path) -> None:
    row = {"prompt": "p ", "answer": " a", "distractors": ["b", "a", "b "], "kind": "qa", "id": 7, "more": 1}
    assert read_facts(file(tmp_path / "f.jsonl", row)) == [Fact("7", "p", "a", ("b",), "qa")]
    assert read_facts(file(tmp_path / "g.jsonl", {"prompt": "p", "answer": "a"})) == [Fact("1", "p", "a")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "", "answer": "a"}, "'prompt'"),
        ({"prompt": "p"}, "'answer'"),
        ({"prompt": "p", "answer": 3}, "'answer'"),
        ({"prompt": "p", "answer": "a", "distractors": "b"}, "'distractors'"),
        ({"prompt": "p", "answer": "a", "distractors": [None]}, "'distractors'"),
        ({"prompt": "p", "answer": "a", "kind": "Two words"}, "'kind'"),
    ],
)
def test_wrong_facts_are_refused_with_their_line(tmp_path: Path, row: Any, why: str) -> None:
    path = file(tmp_path / "f.jsonl", {"prompt": "p", "answer": "a"}, row)
    with pytest.raises(InputRefused, match=why) as error:
        read_facts(path)
    assert "line 2" in str(error.value)


def test_no_facts_are_refused(tmp_path: Path) -> None:
    for path, error in ((tmp_path / "absent", UsageError), (file(tmp_path / "empty.jsonl"), InputRefused)):
        with pytest.raises(error):
            read_facts(path)
