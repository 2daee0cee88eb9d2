"""`ojak evaluate --probe`: kinds, intervals over facts, two models on the same facts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from ojak.artifact import verify
from ojak.cli.app import app
from ojak.evaluate.probe import columns, differences, summary
from ojak.judge.facts import Fact, Recalled


def known(name: str, logprob: float, rank: int, kind: str = "qa", tokens: int = 2) -> Recalled:
    return Recalled(Fact(name, "p", "a", ("b",), kind), logprob, tokens, rank == 1, rank)


def test_intervals_are_over_facts_not_prompts() -> None:
    """Ten prompts of one fact say no more than one: their interval is as wide as without the repetition."""
    once = [known(f"f{i}", -1.0 - i, 1 + i % 2) for i in range(20)]
    often = [each for each in once for _ in range(10)]
    for name in ("logprob", "exact", "accuracy"):
        assert summary(once)["qa"][name] == pytest.approx(summary(often)["qa"][name])
    assert (summary(often)["qa"]["prompts"], summary(often)["qa"]["facts"]) == (200, 20)
    value, low, high = summary(once)["qa"]["accuracy"]
    assert (value, low < 0.5 < high) == (0.5, True)


def test_a_measure_is_the_mean_over_tokens_and_shares() -> None:
    found = [known("a", -2.0, 1), known("b", -9.0, 2, tokens=3), known("c", -1.0, 1, kind="cloze")]
    qa = summary(found)["qa"]
    assert qa["logprob"][0] == pytest.approx(-11 / 5)
    assert (qa["exact"][0], qa["accuracy"][0], qa["facts"]) == (0.5, 0.5, 2)
    assert summary(found)["cloze"]["prompts"] == 1
    without = [Recalled(Fact("a", "p", "a"), -1.0, 1, False, None)]
    assert "accuracy" not in summary(without)["fact"]


def test_differences_are_paired() -> None:
    """Facts differ far more among themselves than the two models do on each: only pairing sees it."""
    random = np.random.default_rng(0)
    base = [known(f"f{i}", float(value), 2) for i, value in enumerate(random.normal(-40, 20, 50))]
    better = [known(each.fact.id, each.logprob + 1, 2) for each in base]
    value, low, high = differences(better, base, 0)["qa: logprob"]
    assert (value, low, high) == pytest.approx((0.5, 0.5, 0.5))
    assert differences(better, base, 0)["qa: exact"] == [0, 0, 0]


def test_columns_sum_by_fact() -> None:
    found = [known("a", -1, 1), known("b", -1, 1), known("a", -1, 1)]
    above, below = columns([(1.0, 2.0), None, (3.0, 4.0)], found)
    assert (above.tolist(), below.tolist()) == ([4.0], [6.0])


def test_the_verb(folder: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        tiny.model(seed=seed).save(folder / name)
    rows = [
        {"id": i, "prompt": f"The {i} is", "answer": str(i * 7), "distractors": ["x", "yy"], "kind": kind}
        for i in range(6)
        for kind in ("cloze", "qa")
    ]
    Path("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = CliRunner().invoke(
        app, ["evaluate", "one", "--probe", "facts.jsonl", "--against", "two", "--out", "out", "--json"]
    )
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert set(found["probe"]) == {"cloze", "qa"}
    assert found["probe"]["qa"]["prompts"] == 6
    mine, other = (each["probe"]["qa"]["logprob"][0] for each in (found, found["against"]))
    assert mine != other
    assert found["difference"]["qa: accuracy"][1] <= found["difference"]["qa: accuracy"][0]
    kept = list(verify("out").records())
    assert len(kept) == 12
    assert {"logprob", "exact", "rank", "tokens"} <= kept[0].scores.keys()  # type: ignore[union-attr]
    shown = CliRunner().invoke(app, ["evaluate", "one", "--probe", "facts.jsonl"])
    assert "probe: qa: accuracy" in shown.stdout
    assert CliRunner().invoke(app, ["evaluate", "one", "--probe", "absent.jsonl"]).exit_code == 2
