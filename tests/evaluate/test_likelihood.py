"""Perplexity and bits per byte, against log-probabilities worked out from whole sequences in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from ojak.chat import encode_chat
from ojak.engines.native import NativeEngine
from ojak.errors import InputRefused
from ojak.evaluate import likelihood as module
from ojak.evaluate.likelihood import Encoded, likelihood, ratio_interval
from ojak.records import Conversation, Document, Message, Preference

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def engine(family: str = "llama", **options: object) -> NativeEngine:
    return NativeEngine(replace(tiny.model(family, **options), chat_template=TEMPLATE))  # type: ignore[arg-type]


def nats(found: NativeEngine, ids: list[int]) -> list[float]:
    """Minus log p of each token but the first, from one pass over all of them."""
    logits = found.model.decoder(torch.tensor([ids]))[0].double()
    return (-logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]).tolist()


def chat(*texts: str) -> Conversation:
    turns: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return Conversation("c", turns)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_document_is_scored_whole(adds_bos: bool) -> None:
    found = engine(adds_bos=adds_bos)
    text = "Ravens and crows."
    ids = [*([tiny.BOS] if adds_bos else []), *text.encode()]
    result = likelihood(found, [Document("d", text)])
    expected = nats(found, ids)
    assert result.nats[0] == pytest.approx(math.fsum(expected), abs=1e-4)
    assert result.tokens == (len(expected),)
    assert result.bytes == (len(text) - (not adds_bos),)
    summary = result.summary()
    assert summary["perplexity"] == pytest.approx(math.exp(math.fsum(expected) / len(expected)), rel=1e-5)
    assert summary["bits_per_byte"] == pytest.approx(math.fsum(expected) / math.log(2) / result.bytes[0])


def test_of_a_conversation_the_answers_and_their_ends_count() -> None:
    found = engine(adds_bos=False)
    row = chat("Who?", "A crow.", "Sure?", "Yes.")
    ids, mask = encode_chat(TEMPLATE, found.model.tokenizer, row.messages)
    expected = [value for value, counts in zip(nats(found, ids), mask[1:], strict=True) if counts]
    result = likelihood(found, [row])
    assert result.tokens == (sum(mask),) == (len("A crow.") + len("Yes.") + 2,)
    assert result.nats[0] == pytest.approx(math.fsum(expected), abs=1e-4)
    assert result.bytes == (len("A crow.Yes."),)


def test_a_long_document_is_scored_in_windows_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WINDOW", 16)
    found = engine("mistral", adds_bos=False)
    text = "The quick brown fox jumps over the lazy dog, again and again."
    ids = list(text.encode())
    expected = nats(found, ids[:16])
    for start in range(16, len(ids), 8):
        expected += nats(found, ids[start - 8 : start + 8])[7:]
    result = likelihood(found, [Document("d", text)])
    assert result.tokens == (len(ids) - 1,) == (len(expected),)
    assert result.nats[0] == pytest.approx(math.fsum(expected), abs=1e-4)


@given(length=st.integers(2, 200), width=st.integers(4, 64), first=st.integers(1, 60))
def test_windows_hold_each_counted_token_once_after_half_a_window(
    length: int, width: int, first: int
) -> None:
    first = min(first, length - 1)
    row = Encoded(0, list(range(length)), [i >= first for i in range(length)], 1)
    scored: list[int] = []
    for before, after, counted in module._windows(row, width):
        assert before and list(before) + list(after) == list(range(before[0], after[-1] + 1))
        assert len(before) + len(after) <= max(width, length if first >= width else 0)
        assert not scored or len(before) >= width // 2
        scored += [token for token, counts in zip(after, counted, strict=True) if counts]
    assert scored == list(range(first, length))


def test_what_cannot_be_scored_is_counted_by_reason() -> None:
    rows = [
        Document("a", ""),
        chat("only asked"),
        Preference("p", [], [], []),
        chat("q", "x" * 600),
        chat("q", "with </s> inside"),
        chat("Who?", "A crow."),
    ]
    result = likelihood(engine(), rows)
    assert result.rows == (5,)
    assert result.skipped == {"empty": 1, "template": 2, "kind": 1, "too_long": 1}


def test_a_base_model_reads_documents_and_refuses_conversations() -> None:
    base = NativeEngine(tiny.model())
    assert likelihood(base, [Document("d", "text")]).rows == (0,)
    with pytest.raises(InputRefused, match="no chat template"):
        likelihood(base, [chat("a", "b")])


def test_the_interval_holds_the_ratio_and_is_a_point_for_equal_rows() -> None:
    import numpy as np

    value, low, high = ratio_interval(
        np.array([1.0, 5.0, 3.0]), np.array([2.0, 2.0, 2.0]), np.random.default_rng(0)
    )
    assert value == 1.5
    assert 0.5 <= low < 1.5 < high <= 2.5
    assert ratio_interval(np.full(9, 2.0), np.full(9, 4.0), np.random.default_rng(0)) == [0.5, 0.5, 0.5]
