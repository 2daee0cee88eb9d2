"""Curation as a whole: every row is accounted for, the first rule that drops a row names it, nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_ins import ANSWER, curate, kept, reasons, recipe_file, row, source, tagged

from ojak.artifact import Artifact, publish, verify
from ojak.curate import run, shards
from ojak.curate.config import CurateConfig
from ojak.curate.explain import explain_row
from ojak.curate.run import curate_data, summary
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.records import Conversation, Document, Message


def sound(artifact: Artifact) -> None:
    """What holds of every curation."""
    verify(artifact.path)
    counts, funnel = artifact.counts, artifact.stats["funnel"]
    assert counts["rows"] == counts["accepted"] + sum(counts["rejected"].values())
    assert sum(step["rejected"] for step in funnel) == sum(counts["rejected"].values())
    assert funnel[0]["in"] == counts["rows"] if funnel else True
    for before, after in pairwise(funnel):
        assert after["in"] == before["in"] - before["rejected"]
    assert not list(artifact.path.glob(".curate-*"))
    assert Counter(reasons(artifact).values()) == counts["rejected"]


# ----------------------------------------------------------------------------------------------------- order, funnel


def test_the_first_rule_that_drops_a_row_names_it(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, response="I can't help with that."),
        row(2, response="I can't help with that, as an AI language model."),
        row(3, response="As an AI language model, I like tea."),
    ]
    one = curate(tmp_path, rows, "[{no_refusal: }, {no_boilerplate: }]")
    assert reasons(one) == {1: "no_refusal", 2: "no_refusal", 3: "no_boilerplate"}
    other = curate(tmp_path, rows, "[{no_boilerplate: }, {no_refusal: }]", out="other")
    assert reasons(other) == {1: "no_refusal", 2: "no_boilerplate", 3: "no_boilerplate"}
    assert kept(one) == kept(other) == [0]
    assert one.stats["funnel"] == [
        {"rule": "no_refusal", "in": 4, "rejected": 2},
        {"rule": "no_boilerplate", "in": 2, "rejected": 1},
    ]
    sound(one)
    sound(other)


def test_rows_keep_their_turns_and_gain_scores(tmp_path: Path) -> None:
    artifact = curate(
        tmp_path, [row(0, meta={"seed": 7, "tokens": {"instruction": 9, "response": 4}})], "[{no_refusal: }]"
    )
    (record,) = artifact.records()
    assert isinstance(record, Conversation)
    assert record.messages == row(0).messages
    assert record.scores["response_chars"] == len(ANSWER)
    assert record.scores["response_words"] == len(ANSWER.split())
    assert (record.scores["instruction_tokens"], record.scores["response_tokens"]) == (9, 4)
    assert record.meta["seed"] == 7
    assert record.meta["curate"] == {"values": {"no_refusal": False}, "failed": [], "reason": None, "rank": 1}


RULE_POOL = (
    ("{length: {of: response, min: 30}}", lambda r: len(r[1]) >= 30),
    ("{no_refusal: }", lambda r: "can't help" not in r[1]),
    ("{instruction_not_ending_with: {endings: [':']}}", lambda r: not r[0].endswith(":")),
    ("{max_newlines: {most: 1}}", lambda r: r[0].count("\n") <= 1),
    ("{no_boilerplate: }", lambda r: "As an AI" not in r[1]),
)
NAMES = ("response_chars", "no_refusal", "instruction_not_ending_with", "max_newlines", "no_boilerplate")
TEXTS = st.tuples(
    st.sampled_from(["Tell me of tides", "Do this:", "a\nb\nc", "Tell me of trees", "Sum up:\n\n:"]),
    st.sampled_from([ANSWER, "Short.", "I can't help with that.", "As an AI language model, I can't help with that at all."]),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(TEXTS, min_size=1, max_size=12),
    st.permutations(range(5)),
    st.integers(0, 5),
    st.booleans(),
    st.none() | st.integers(1, 6),
)
def test_the_funnel_sums_and_matches_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, texts: Any, order: list[int], number: int, exact: bool, keep: int | None
) -> None:  # fmt: skip
    chosen = order[:number]
    rules = [RULE_POOL[i][0] for i in chosen] + (["{no_duplicates: {kind: exact}}"] if exact else [])
    rows = [row(i, a, b) for i, (a, b) in enumerate(texts)]
    artifact = curate(
        tmp_path_factory.mktemp("c"), rows, f"[{', '.join(rules)}]", "pick: {by: longest}", keep=keep
    )
    expected: dict[int, str] = {}
    seen: set[str] = set()
    for i, pair in enumerate(texts):
        reason = next((NAMES[k] for k in chosen if not RULE_POOL[k][1](pair)), None)
        plain = " ".join(pair[0].replace(":", " ").split()).lower()
        if reason is None and exact and plain in seen:
            reason = "no_duplicates_exact"
        if reason is None:
            seen.add(plain)
        else:
            expected[i] = reason
    left = sorted((i for i in range(len(texts)) if i not in expected), key=lambda i: -len(texts[i][1]))
    expected |= {i: "not_picked" for i in (left[keep:] if keep else [])}
    assert reasons(artifact) == expected
    assert kept(artifact) == sorted(left[:keep] if keep else left)
    sound(artifact)


# ------------------------------------------------------------------------------------------------------------ copies


def test_copies_are_looked_for_among_rows_that_came_that_far(tmp_path: Path) -> None:
    rows = [
        row(0, "Tell me of the tides.", "I can't help with that."),
        row(1, "Tell me of the tides."),
        row(2, "tell me of the tides"),
    ]
    artifact = curate(tmp_path, rows, "[{no_refusal: }, {no_duplicates: {kind: exact}}]")
    assert (kept(artifact), reasons(artifact)) == ([1], {0: "no_refusal", 2: "no_duplicates_exact"})
    (copy,) = [r for r in artifact.rejected() if r.reason == "no_duplicates_exact"]
    assert copy.meta["curate"]["values"]["no_duplicates_exact"] == {"row": 1, "id": rows[1].id}
    other = curate(tmp_path, rows, "[{no_duplicates: {kind: exact}}, {no_refusal: }]", out="b")
    assert (kept(other), reasons(other)) == (
        [],
        {0: "no_refusal", 1: "no_duplicates_exact", 2: "no_duplicates_exact"},
    )
    sound(artifact)
    sound(other)


def test_near_copies_and_what_is_compared(tmp_path: Path) -> None:
    rows = [
        row(0, "How do I repair the flat tyre of a bicycle on the road?", "Patch it, then pump it."),
        row(1, "How do I repair the flat tyre of my bicycle on the road?", "Call a friend with a car."),
        row(2, "Name three rivers in Africa.", "Patch it, then pump it."),
    ]
    assert reasons(curate(tmp_path, rows, "[{no_duplicates: {kind: near}}]")) == {1: "no_duplicates_near"}
    of = "[{no_duplicates: {kind: exact, of: response}}]"
    assert reasons(curate(tmp_path, rows, of, out="b")) == {2: "no_duplicates_exact_response"}
    assert reasons(curate(tmp_path, rows, "[{no_duplicates: {kind: exact, of: pair}}]", out="c")) == {}


def test_neighbours_by_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_embedder(monkeypatch)
    rows = [row(0, "abc abc"), row(1, "xyz"), row(2, "abc abc"), row(3, "mnop qrst"), row(4, "xyzz")]
    far = curate(tmp_path, rows, "[{min_neighbor_distance: {above: 0}}]")
    assert reasons(far) == {
        0: "min_neighbor_distance",
        2: "min_neighbor_distance",
    }  # both copies, as the table says
    first = curate(tmp_path, rows, "[{no_earlier_neighbor: {within: 0.2}}]", out="b")
    assert reasons(first) == {2: "no_earlier_neighbor", 4: "no_earlier_neighbor"}
    distances = {r.id: r.scores["min_neighbor_distance"] for r in far.records()}  # pyright: ignore[reportAttributeAccessIssue]
    assert distances[rows[1].id] == distances[rows[4].id] == pytest.approx(1 - 4 / np.sqrt(18), abs=1e-5)
    sound(far)


# ---------------------------------------------------------------------------------------------- what is not applied


def test_rules_without_values_are_named_and_the_others_act(tmp_path: Path) -> None:
    rows = [row(0), row(1, response="I can't help with that.")]
    rules = "[{min_tag: {tag: difficulty, value: easy}}, {no_refusal: }, {min_score: {score: reward_difference, above: 0}}]"
    artifact = curate(tmp_path, rows, rules)
    assert set(artifact.stats["not_applied"]) == {"min_difficulty", "min_reward_difference"}
    assert "no model was named" in artifact.stats["not_applied"]["min_difficulty"]
    assert reasons(artifact) == {1: "no_refusal"}
    sound(artifact)


@pytest.mark.parametrize("usable", [True, False, None])
@pytest.mark.parametrize("anyway", [True, False])
def test_a_judge_filters_only_if_it_is_trusted(
    usable: bool | None, anyway: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.use_judge(monkeypatch, usable=usable)
    rows = [row(0, "Prove that there is no largest prime."), row(1)]
    rule = "[{min_tag: {tag: difficulty, value: medium}}]"
    artifact = curate(tmp_path, rows, rule, with_engine=ScriptedEngine(), trust_anyway=anyway)
    votes = anyway or usable
    assert reasons(artifact) == ({1: "min_difficulty"} if votes else {})
    assert bool(artifact.stats["not_applied"]) is not votes
    assert next(r.tags for r in artifact.records()) == {"difficulty": "hard"}  # pyright: ignore[reportAttributeAccessIssue]
    if usable is None and not anyway:
        assert "has not been calibrated" in artifact.stats["not_applied"]["min_difficulty"]
    sound(artifact)


def test_tags_that_came_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    rule = "[{min_tag: {tag: difficulty, value: medium}}]"
    rows = [tagged(0, difficulty="hard"), tagged(1, difficulty="easy")]
    assert reasons(curate(tmp_path, rows, rule)) == {1: "min_difficulty"}
    assert stand_ins.Tagger.asked == 0
    unknown = curate(tmp_path, [tagged(0, by=None, difficulty="hard"), rows[1]], rule, out="b")
    assert "nobody knows" in unknown.stats["not_applied"]["min_difficulty"]
    given = curate(tmp_path, [*rows, row(2)], rule, out="c", with_engine=ScriptedEngine())
    assert (reasons(given), stand_ins.Tagger.asked) == ({1: "min_difficulty", 2: "min_difficulty"}, 1)


def test_rows_without_a_value_are_dropped_as_such_up_to_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    rule = "[{min_tag: {tag: difficulty, value: medium}}]"
    rows = [tagged(i, difficulty="hard") for i in range(8)] + [tagged(8, difficulty="unparsed"), row(9)]
    artifact = curate(tmp_path, rows, rule)
    assert reasons(artifact) == {8: "min_difficulty_missing", 9: "min_difficulty_missing"}
    sound(artifact)
    many = curate(tmp_path, [*rows, row(10)], rule, out="b")
    assert many.stats["not_applied"] == {
        "min_difficulty": "27% of the rows have no difficulty, more than 20%; no model was named for it (--model)"
    }
    assert reasons(curate(tmp_path, [*rows, row(10)], rule, "max_missing: 0.5", out="c")).keys() == {8, 9, 10}


def test_strict_refuses_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=None)
    for engine in (None, ScriptedEngine()):
        with pytest.raises(UsageError, match="1 of the recipe's rules cannot be applied: min_difficulty"):
            curate(
                tmp_path,
                [row(0)],
                "[{min_tag: {tag: difficulty, value: easy}}]",
                out=f"o{int(engine is None)}",
                strict=True,
                with_engine=engine,
            )
        assert not (tmp_path / f"o{int(engine is None)}").exists()
    assert stand_ins.Tagger.asked == 0
    assert kept(curate(tmp_path, [row(0)], "[{no_refusal: }]", strict=True)) == [0]


def test_strict_refuses_what_shows_only_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PEEK_ROWS", 2)
    stand_ins.use_judge(monkeypatch, usable=True)
    rows = [tagged(0, difficulty="hard"), tagged(1, difficulty="hard"), row(2), row(3)]
    with pytest.raises(UsageError, match="cannot be applied"):
        curate(tmp_path, rows, "[{min_tag: {tag: difficulty, value: easy}}]", strict=True)
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_engine_that_cannot_read_probabilities(tmp_path: Path) -> None:
    artifact = curate(
        tmp_path,
        [row(0)],
        "[{min_score: {score: instruction_gain, above: 0}}]",
        with_engine=stand_ins.Blind(),
    )
    assert "lacks: scores" in artifact.stats["not_applied"]["min_instruction_gain"]


def test_an_embedder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ojak.similarity import embedding

    class Missing:
        @classmethod
        def open(cls) -> None:
            raise ImportError("No module named 'sentence_transformers'", name="sentence_transformers")

    monkeypatch.setattr(embedding, "Embedder", Missing)
    artifact = curate(tmp_path, [row(0)], "[{min_neighbor_distance: {above: 0}}]")
    assert artifact.stats["not_applied"] == {
        "min_neighbor_distance": "sentence_transformers is not installed: pip install 'ojak[embed]'"
    }


# -------------------------------------------------------------------------------------------------------------- pick


def lengths(numbers: list[int]) -> list[Conversation]:
    return [row(i, response="x" * n) for i, n in enumerate(numbers)]


def test_the_longest_are_kept_in_their_order(tmp_path: Path) -> None:
    pick = "pick: {by: longest, number: 3, of: 6}"
    artifact = curate(tmp_path, lengths([5, 9, 7, 9, 1, 7]), "[]", pick)
    assert kept(artifact) == [1, 2, 3]
    assert [r.meta["curate"]["rank"] for r in artifact.records()] == [1, 3, 2]
    assert kept(curate(tmp_path, lengths([5, 9, 7, 9, 1, 7]), "[]", pick, out="b", keep=1)) == [1]
    assert kept(curate(tmp_path, lengths([5, 9]), "[]", pick, out="c", keep=10)) == [0, 1]
    assert artifact.stats["response_chars"] == {
        "in": {"p10": 1, "p50": 7, "p90": 9},
        "kept": {"p10": 7, "p50": 9, "p90": 9},
    }
    sound(artifact)


def test_a_shuffle_is_that_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUCKET_ROWS", 3)
    numbers = [5, 9, 7, 8, 1, 6, 2, 3, 4, 10]
    artifact = curate(tmp_path, lengths(numbers), "[]", "pick: {by: longest, number: 8, shuffle: 42}")
    ranked = sorted(range(10), key=lambda i: -numbers[i])[:8]
    expected = [ranked[i] for i in np.random.default_rng(42).permutation(8)]
    assert kept(artifact) == expected != ranked
    sound(artifact)


def test_a_draw_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rows = lengths([1] * 30)
    found = [
        kept(curate(tmp_path, rows, "[]", f"pick: {{by: random, number: 5, seed: {s}}}", out=f"o{i}"))
        for i, s in enumerate((1, 1, 2))
    ]
    assert found[0] == found[1] != found[2]
    assert [len(set(each)) for each in found] == [5, 5, 5]


SHARE = "[{tag_share: {tag: difficulty, groups: [{values: [easy], share: 0.5}, {values: [medium, hard], share: 0.5}]}}]"


def test_shares_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    labels = ["easy", "easy", "easy", "medium", "hard", "very easy", "easy", "hard"]
    rows = [tagged(i, difficulty=label, response="x" * (20 - i)) for i, label in enumerate(labels)]
    artifact = curate(tmp_path, rows, SHARE, "pick: {by: longest, number: 4}")
    assert kept(artifact) == [0, 1, 3, 4]
    assert reasons(artifact)[5] == reasons(artifact)[2] == reasons(artifact)[7] == "difficulty_share"
    sound(artifact)
    short = curate(tmp_path, rows[:3] + rows[4:5], SHARE, "pick: {by: longest, number: 4}", out="b")
    assert kept(short) == [0, 1, 4]  # the places of a group that is too small stay empty
    sound(short)


def test_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    rows = [
        tagged(i, task_category="Math" if i < 6 else "Others", response="x" * (20 - i)) for i in range(10)
    ]
    more = "quotas: {tag: task_category, most: {Math: 0.25}}\npick: {by: longest, number: 4}"
    artifact = curate(tmp_path, rows, "[]", more)
    assert (kept(artifact), reasons(artifact)[1], reasons(artifact)[9]) == (
        [0, 6, 7, 8],
        "over_quota",
        "not_picked",
    )
    sound(artifact)
    count = curate(tmp_path, rows, "[]", "quotas: {tag: task_category, most: {Math: 2}}", out="b")
    assert kept(count) == [0, 1, 6, 7, 8, 9]
    stand_ins.use_judge(monkeypatch, usable=False)
    free = curate(tmp_path, rows, "[]", more, out="c")
    assert kept(free) == [0, 1, 2, 3]
    assert set(free.stats["not_applied"]) == {"quotas"}


# ----------------------------------------------------------------------------------------------------- other findings


def test_personal_data_test_sets_newlines_and_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    test_set = tmp_path / "test.jsonl"
    leak = "a train leaves the station at noon and travels east at sixty miles an hour"
    test_set.write_text(
        json.dumps({"question_id": 1, "turns": [f"Suppose {leak} today", "And then?"]}) + "\n", "utf-8"
    )
    rows = [
        row(0),
        row(1, response="Write to ada.lovelace@example.org today."),
        row(2, f"Suppose {leak} for me, will you?"),
        row(3, "a\nb\nc\nd\ne\nf of it"),
        row(4, "Das ist nicht gut, sagt man."),
    ]
    rules = f"[{{no_personal_data: }}, {{no_contamination: {{against: ['{test_set}'], n: 8}}}}, {{max_newlines: {{most: 4}}}}, {{language: {{values: [en]}}}}]"
    artifact = curate(tmp_path, rows, rules)
    assert reasons(artifact) == {
        1: "no_personal_data",
        2: "no_contamination",
        3: "max_newlines",
        4: "language",
    }
    (leaked,) = [r for r in artifact.rejected() if r.reason == "no_personal_data"]
    assert "ada" not in json.dumps(leaked.meta)
    sound(artifact)


def test_newlines_are_left_alone_in_some_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    lines = "x\n" * 9 + "do it"
    rows = [
        row(i, lines, tags={"task_category": label}, meta={"judge": stand_ins.JUDGE})
        for i, label in enumerate(["Coding & Debugging", "Math"])
    ]
    rule = "[{max_newlines: {most: 4, except: {tag: task_category, values: [Coding & Debugging]}}}]"
    assert reasons(curate(tmp_path, rows, rule)) == {1: "max_newlines"}


def test_a_test_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="test set"):
        curate(tmp_path, [row(0)], "[{no_contamination: {against: [none.jsonl]}}]")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- where rows come from


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    rows = [
        {
            "instruction": f"Name {n} things",
            "input": "",
            "output": ANSWER if n % 2 else "I can't help with that.",
        }
        for n in range(6)
    ]
    path.write_text(json.dumps(rows), "utf-8")
    artifact = curate_data(
        path, tmp_path / "out", CurateConfig(recipe=recipe_file(tmp_path, "[{no_refusal: }]"))
    )
    assert (artifact.counts["rows"], artifact.counts["accepted"]) == (6, 3)
    assert artifact.manifest["inputs"][0]["path"] == "../alpaca.json"
    sound(artifact)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = curate(tmp_path, [row(0)], "[]")
    config = CurateConfig(recipe=recipe_file(tmp_path, "[]"))
    with pytest.raises(TargetExists):
        curate_data(tmp_path / "in-out", tmp_path / "out", config)
    with pytest.raises(TargetExists):
        curate_data(tmp_path / "in-out", tmp_path / "in-out", config)
    assert Artifact.open(tmp_path / "out") == made
    assert verify(tmp_path / "in-out")


def test_sources_that_are_none(tmp_path: Path) -> None:
    config = CurateConfig(recipe=recipe_file(tmp_path, "[]"))
    publish(tmp_path / "empty", kind="magpie", records=[], config={})
    publish(tmp_path / "documents", kind="corpus", records=[Document("1", "x")], config={})
    for name, match in (("none", "is not there"), ("empty", "holds no rows"), ("documents", "is a Document")):
        with pytest.raises(InputRefused, match=match):
            curate_data(tmp_path / name, tmp_path / "out", config)
        assert not (tmp_path / "out/manifest.json").exists()


def test_turns_that_are_missing(tmp_path: Path) -> None:
    rows = [Conversation("0", []), Conversation("1", [Message(role="user", content="Why?")]), row(2)]
    artifact = curate(tmp_path, rows, "[{length: {of: response, min: 1}}, {no_duplicates: {kind: near}}]")
    assert kept(artifact) == [2]
    sound(artifact)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.use_judge(monkeypatch, usable=True)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 3)
    made = source(
        tmp_path, [row(i, f"Prove that {i} is odd or even, or neither of both.") for i in range(10)]
    )
    config = CurateConfig(recipe=recipe_file(tmp_path, "[{min_tag: {tag: difficulty, value: easy}}]"))

    class Dies(stand_ins.Tagger):
        def tag(self, conversations: Any) -> Any:
            for number, item in enumerate(super().tag(conversations)):
                if stand_ins.Tagger.asked == 8 and number == 1:
                    raise KeyboardInterrupt
                yield item

    import ojak.judge

    monkeypatch.setattr(ojak.judge, "Tagger", Dies)
    with pytest.raises(KeyboardInterrupt):
        curate_data(made, tmp_path / "out", config, engine=ScriptedEngine())
    assert not (tmp_path / "out/manifest.json").exists()
    stand_ins.use_judge(monkeypatch, usable=True)
    said: list[str] = []
    artifact = curate_data(made, tmp_path / "out", config, engine=ScriptedEngine(), notify=said.append)
    assert stand_ins.Tagger.asked == 4  # two shards of three were whole
    assert said == ["6 rows were annotated before; going on after them"]
    whole = curate_data(made, tmp_path / "whole", config, engine=ScriptedEngine())
    assert [f["sha256"] for f in whole.files if f["rows"]] == [
        f["sha256"] for f in artifact.files if f["rows"]
    ]
    sound(artifact)


def test_shards_of_other_settings_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(tmp_path, [row(i) for i in range(5)])
    monkeypatch.setattr(run, "decide", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        curate_data(made, tmp_path / "out", CurateConfig(recipe=recipe_file(tmp_path, "[{no_refusal: }]")))
    monkeypatch.undo()
    said: list[str] = []
    config = CurateConfig(recipe=recipe_file(tmp_path, "[{valid_format: }]"))
    sound(curate_data(made, tmp_path / "out", config, notify=said.append))
    assert said == []


def test_the_summary(tmp_path: Path) -> None:
    facts = summary(curate(tmp_path, [row(0), row(1, response="")], "[{length: {of: response, min: 1}}]"))
    assert (facts["rows_in"], facts["kept"], facts["rejected"], facts["not_applied"]) == (
        2,
        1,
        {"response_chars": 1},
        {},
    )


# ------------------------------------------------------------------------------------------------------------ scale


STREAM = """
import json, random, resource, sys
from pathlib import Path
from ojak.artifact import publish
from ojak.curate.config import CurateConfig
from ojak.curate.run import curate_data
from stand_ins import row

number, draw, folder = 20_000, random.Random(7), Path(sys.argv[1])
words = [f"w{i}" for i in range(5_000)]
answers = [" ".join(draw.choices(words, k=170)) for _ in range(500)]

def rows():
    for i in range(number):
        told = i - (i % 100 == 99)
        yield row(i, f"Describe {told} {words[told % 5000]}", answers[i % 500])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

publish(folder / "in", kind="magpie", records=rows(), config={})
before = peak()
artifact = curate_data(folder / "in", folder / "out", CurateConfig(recipe=str(folder / "r.yaml")))
print(json.dumps({"counts": artifact.counts, "grown": peak() - before}))
"""


@pytest.mark.slow
def test_twenty_thousand_rows_stream(tmp_path: Path) -> None:
    """Memory follows the size of a block: 20,000 rows of 1,000 characters take 80 MB and more as Python objects."""
    rules = "[{no_refusal: }, {length: {of: response, min: 100}}, {no_duplicates: {kind: exact}}]"
    recipe_file(tmp_path, rules, "pick: {by: longest, number: 3, of: 10}", name="r")
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": here},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counts"]["rejected"] == {"no_duplicates_exact": 200, "not_picked": 20_000 - 200 - 6000}
    assert found["grown"] < 40e6
    sound(Artifact.open(tmp_path / "out"))


# ---------------------------------------------------------------------------------------------------- hostile rows


@pytest.mark.parametrize("evil", ["9", True, None, [1], {"a": 1}, 10**400, -1e308])
def test_values_that_rows_bring_may_be_anything(evil: Any, tmp_path: Path) -> None:
    names = ("instruction_tokens", "quality", "reward_difference")
    meta = {"tokens": {"instruction": evil}, "curate": evil, "judge": evil, "tags": evil}
    rows = [row(0, scores=dict.fromkeys(names, evil), tags={"difficulty": evil}, meta=meta), row(1)]
    rules = (
        "[{length: {of: instruction, unit: tokens, min: 5}}, {min_score: {score: quality, above: 0}}, "
        "{tag_in: {tag: difficulty, values: [easy]}}, {min_score: {score: reward_difference, above: 0}}]"
    )
    artifact = curate(tmp_path, rows, rules, "max_missing: 1", trust_anyway=True)
    sound(artifact)
    for record in rows:
        assert explain_row(tmp_path / "out", record.id)["history"]


def test_notes_of_a_strange_curation_are_read(tmp_path: Path) -> None:
    notes = {"values": [1], "failed": 3, "reason": {}, "rank": "x"}
    config = {"recipe": {"version": 1, "name": "x", "rules": [{"no_refusal": None}]}}
    publish(
        tmp_path / "a",
        kind="curate",
        records=[row(0, meta={"curate": notes})],
        config=config,
        stats={"not_applied": 3},
    )
    (step,) = explain_row(tmp_path / "a", row(0).id)["history"]
    assert step["rules"][0]["verdict"] == "no value"
    publish(tmp_path / "b", kind="curate", records=[row(0, meta={"curate": notes})], config={"recipe": [1]})
    with pytest.raises(UsageError, match="cannot be used"):
        explain_row(tmp_path / "b", row(0).id)


def test_a_guard_model_says_what_is_safe(tmp_path: Path) -> None:
    guard = ScriptedEngine(lambda request: "unsafe\nS9" if "number 1 " in str(request.prompt) else "safe")
    made = source(tmp_path, [row(n) for n in range(3)])
    rules = recipe_file(tmp_path, "[{tag_in: {tag: safety, values: [safe]}}]")
    config = CurateConfig(recipe=rules, guard="scripted")
    artifact = curate_data(made, tmp_path / "out", config, guard_engine=guard)
    sound(artifact)
    assert kept(artifact) == [0, 2]
    assert {
        record.tags["safety_by"] for record in artifact.records() if isinstance(record, Conversation)
    } == {"guard"}
    tags = next(each for each in artifact.stats["annotators"] if "tags" in each)
    assert tags["guard"]["engine"] == "scripted"
    by_rules = curate_data(made, tmp_path / "rules", CurateConfig(recipe=rules))
    assert kept(by_rules) == [0, 1, 2]


def test_addresses_of_servers_are_kept_without_passwords(tmp_path: Path) -> None:
    address = "http://user:hunter2@127.0.0.1:9/v1?key=hunter2"
    artifact = curate(tmp_path, [row(0)], "[{no_refusal: }]", guard_url=address, reward_base_url=address)
    assert (
        artifact.manifest["config"]["guard_url"]
        == artifact.manifest["config"]["reward_base_url"]
        == "http://127.0.0.1:9"
    )
    assert not [path for path in artifact.path.glob("*.*") if b"hunter2" in path.read_bytes()]


def test_an_artifact_gets_no_folder_among_its_files(tmp_path: Path) -> None:
    made = curate(tmp_path, [row(0)], "[{no_refusal: }]")
    with pytest.raises(UsageError, match="lies in the artifact"):
        curate_data(made.path, made.path / "data" / "in", CurateConfig())
    with pytest.raises(UsageError, match="lies in the artifact"):
        publish(made.path / "rejected" / "a" / "b", kind="magpie", records=[], config={})
    verify(made.path)
