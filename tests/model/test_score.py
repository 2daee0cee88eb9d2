"""Log-probabilities of given texts, against one forward pass for each text alone."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from ojak.model import score as scoring
from ojak.model.score import score, score_greedy


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


def test_a_token_that_greedy_decoding_would_write_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 3)
    decoder = tiny.decoder("llama")
    given = pairs(12)
    for prompt, continuation in given[::2]:
        for place in range(0, len(continuation), 2):
            text = torch.tensor([[*prompt, *continuation[:place]]])
            continuation[place] = int(decoder(text)[0, -1].argmax())
    with torch.inference_mode():
        found = list(score_greedy(decoder, given))
        assert [tuple(value for value, _ in row) for row in found] == list(score(decoder, given))
        for (prompt, continuation), row in zip(given, found, strict=True):
            likeliest = decoder(torch.tensor([[*prompt, *continuation]]))[0].argmax(-1)[len(prompt) - 1 : -1]
            expected = [best == token for best, token in zip(likeliest.tolist(), continuation, strict=True)]
            assert [best for _, best in row] == expected
    flags = [best for row in found for _, best in row]
    assert any(flags) and not all(flags)


def test_texts_are_read_as_they_are_needed() -> None:
    def endless():  # noqa: ANN202
        while True:
            yield [1, 2], [3]

    assert all(math.isfinite(value) for value in next(score(tiny.decoder("llama"), endless())))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_branches_of_one_prompt_and_shared_beginnings_change_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of a question: the same prompt again and again, all prompts beginning alike."""
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 128)
    monkeypatch.setattr(scoring, "BRANCH_TOKENS", 30)
    decoder = tiny.decoder(family)
    head = [5 + i % 50 for i in range(29)]
    given = [([*head, *prompt], rest) for prompt, _ in pairs(9) for _, rest in pairs(6)]
    with torch.inference_mode():
        expected = [alone(decoder, *pair) for pair in given]
    for row, wanted in zip(score(decoder, given), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4)


def test_a_prompt_is_read_once_for_all_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny.decoder("llama")
    read: list[int] = []
    hidden = decoder.hidden

    def counted(ids_BT: torch.Tensor, *rest: object) -> torch.Tensor:
        read.append(ids_BT.numel())
        return hidden(ids_BT, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "hidden", counted)
    head = list(range(100))
    labels = [[1], [2, 3], [4, 5, 6]]
    given = [([*head, 100 + row], label) for row in range(10) for label in labels]
    assert len(list(score(decoder, given))) == 30
    assert sum(read) == 100 + 10 * (1 + 1 + 2)


def test_nothing_to_score_is_no_error() -> None:
    decoder = tiny.decoder("llama")
    assert list(score(decoder, [])) == []
    assert list(score(decoder, [([1, 2], []), ([1, 2], [])])) == [(), ()]
