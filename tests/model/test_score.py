"""Log-probabilities of given texts, against one forward pass for each text alone."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from ojak.model import score as scoring
from ojak.model.score import score


def alone(decoder: tiny.Decoder, prompt: list[int], continuation: list[int]) -> list[float]:
    logits = decoder(torch.tensor([[*prompt, *continuation]]))[0].double().log_softmax(-1)
    return [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation)]


def pairs(count: int) -> list[tuple[list[int], list[int]]]:
    random = torch.Generator().manual_seed(3)

    def some(length: int) -> list[int]:
        return torch.randint(0, tiny.VOCAB, (length,), generator=random).tolist()

    return [(some(1 + 7 * i % 23), some(i * 5 % 19)) for i in range(count)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_text_is_scored_as_if_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WINDOW", 7)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 64)
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 5)
    decoder = tiny.decoder(family)
    given = pairs(20)
    with torch.inference_mode():
        expected = [alone(decoder, *pair) for pair in given]
        found = list(score(decoder, given))
    assert [len(row) for row in found] == [len(continuation) for _, continuation in given]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4)


def test_texts_are_read_as_they_are_needed() -> None:
    def endless():  # noqa: ANN202
        while True:
            yield [1, 2], [3]

    assert all(math.isfinite(value) for value in next(score(tiny.decoder("llama"), endless())))
