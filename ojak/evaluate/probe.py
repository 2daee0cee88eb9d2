"""What a model knows by heart, with intervals: facts asked for without the text that states them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ojak.engines.base import Scored
from ojak.engines.native import NativeEngine
from ojak.evaluate.likelihood import ratio_interval
from ojak.judge.facts import Fact, Recalled, by_kind, recall
from ojak.records import Conversation

SAMPLES = 1000  # of the bootstrap
MEASURES = ("logprob", "exact", "accuracy")


def probe(engine: NativeEngine, facts: Sequence[Fact]) -> list[Recalled]:
    """What the model knows of each fact. Raises UsageError for a prompt longer than the model was made for."""
    tokenizer = engine.model.tokenizer
    return list(
        recall(facts, tokenizer, lambda pairs: engine.score_greedy(Scored(tuple(a), tuple(b)) for a, b in pairs))
    )  # fmt: skip


def summary(found: Sequence[Recalled], seed: int = 0) -> dict[str, Any]:
    """{kind: {"prompts", "facts", measure: [value, low, high]}}: 95 % of a bootstrap over facts.

    logprob: natural, of a token of the answer. exact: the share of answers that greedy decoding writes. accuracy: of
    those that are more probable than each of their distractors.
    """
    result: dict[str, Any] = {}
    for kind, each in by_kind(found).items():
        result[kind] = {"prompts": len(each), "facts": len({item.fact.id for item in each})}
        for name in MEASURES:
            above, below = columns([_value(item, name) for item in each], each)
            if below.sum():
                result[kind][name] = ratio_interval(above, below, np.random.default_rng(seed), SAMPLES)
    return result


def differences(found: Sequence[Recalled], other: Sequence[Recalled], seed: int) -> dict[str, list[float]]:
    """{"kind: measure": the first model's minus the second's, [value, low, high]}: a bootstrap over the same facts."""
    result: dict[str, list[float]] = {}
    pairs = list(zip(found, other, strict=True))
    for kind in by_kind(found):
        both = [(a, b) for a, b in pairs if a.fact.kind == kind]
        for name in MEASURES:
            # Two tokenizers cut an answer into different numbers of tokens: each mean first, then the difference.
            values = [(_mean(a, name), _mean(b, name)) for a, b in both]
            gaps = [None if a is None or b is None else (a - b, 1.0) for a, b in values]
            above, below = columns(gaps, [a for a, _ in both])
            if below.sum():
                result[f"{kind}: {name}"] = ratio_interval(above, below, np.random.default_rng(seed), SAMPLES)
    return result


def _value(found: Recalled, name: str) -> tuple[float, float] | None:
    """What a measure adds up for one prompt, and what the sum is divided by; None where it has no value."""
    if name == "logprob":
        return found.logprob, float(found.tokens)
    if name == "exact":
        return float(found.exact), 1.0
    return None if found.rank is None else (float(found.rank == 1), 1.0)


def _mean(found: Recalled, name: str) -> float | None:
    value = _value(found, name)
    return None if value is None else value[0] / value[1]


def columns(
    values: Sequence[tuple[float, float] | None], found: Sequence[Recalled]
) -> tuple[np.ndarray, np.ndarray]:
    """The sums over the prompts of each fact, float64[facts]: what is drawn again is a fact with all its prompts."""
    names = {name: place for place, name in enumerate(dict.fromkeys(each.fact.id for each in found))}
    sums = np.zeros((2, len(names)))
    for value, each in zip(values, found, strict=True):
        if value is not None:
            sums[:, names[each.fact.id]] += value
    kept = sums[:, sums[1] > 0]
    return kept[0], kept[1]


def rows(found: Sequence[Recalled]) -> Iterator[Conversation]:
    """Each prompt with the right answer, and what the model made of it as scores."""
    for place, each in enumerate(found):
        scores: dict[str, Any] = {"logprob": each.logprob, "exact": float(each.exact), "tokens": each.tokens}
        scores |= {} if each.rank is None else {"rank": each.rank}
        yield Conversation(
            f"probe-{place:07d}",
            [
                {"role": "user", "content": each.fact.prompt},
                {"role": "assistant", "content": each.fact.answer},
            ],
            meta={"fact": each.fact.id, "kind": each.fact.kind, "reference": True},
            scores=scores,
        )
