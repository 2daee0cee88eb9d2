"""Filter recipes: the published ones as they were published, and what anybody may write, read or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import recipe_file

from ojak.curate.filters import RULES
from ojak.curate.recipe import FilterRecipe, from_json, load_recipe, presets
from ojak.errors import UsageError

AIR, PRO = 3_000_000, 1_000_000
# Xu et al. 2024, table 5, column by column; "!" stands for "above". The last column: how many of how many.
TABLE: dict[str, tuple[str, str, str, str, str, tuple[int, int] | None]] = {
    # quality, difficulty, reward, reward difference, pick, number of rows
    "air-300k": ("good", "medium", "", ">0", "longest", (300_000, AIR)),
    "pro-300k": ("average", "", ">-12", "", "longest", (300_000, PRO)),
    "pro-300k-2": ("good", "easy", ">-12", "", "longest", (300_000, PRO)),
    "pro-300k-3": ("", "", ">-12", "", "longest", (300_000, PRO)),
    "pro-300k-4": ("good", "easy", "", ">0", "longest", (300_000, PRO)),
    "pro-338k-5": ("good", "easy", ">-12", "", "all", None),
    "pro-200k-6": ("", "half", ">-12", "", "longest", (200_000, PRO)),
}


def stated(recipe: FilterRecipe) -> dict[str, dict[str, Any]]:
    """Rule name -> its settings, as the recipe writes them."""
    return {rule.name: next(iter(rule.resolved().values())) for rule in recipe.rules}


@pytest.mark.parametrize("name", TABLE)
def test_presets_are_those_of_the_paper(name: str) -> None:
    quality, difficulty, reward, difference, by, number = TABLE[name]
    recipe = load_recipe(name)
    expected: dict[str, Any] = {"min_neighbor_distance": {"above": 0}}
    if quality:
        expected["min_input_quality"] = {"tag": "input_quality", "value": quality}
    if difficulty == "half":
        easy, above = (
            {"values": ["easy"], "share": 0.5},
            {"values": ["medium", "hard", "very hard"], "share": 0.5},
        )
        expected["difficulty_share"] = {"tag": "difficulty", "groups": [easy, above]}
    elif difficulty:
        expected["min_difficulty"] = {"tag": "difficulty", "value": difficulty}
    if reward:
        expected["min_reward"] = {"score": "reward", "above": float(reward[1:])}
    if difference:
        expected["min_reward_difference"] = {"score": "reward_difference", "above": 0.0}
    assert stated(recipe) == expected
    assert recipe.pick.by == by
    assert ((recipe.pick.number, recipe.pick.of) if number else None) == number
    assert recipe.pick.shuffle is None and recipe.quotas is None
    assert "2406.08464" in recipe.source


def test_the_preset_of_the_notebook() -> None:
    recipe = load_recipe("qwen2-pro-300k")
    assert stated(recipe) == {
        "input_quality_in": {"tag": "input_quality", "values": ["good", "excellent"]},
        "min_reward": {"score": "reward", "above": -10.0},
        "instruction_not_ending_with": {},
        "no_earlier_neighbor": {"within": 0.025},
    }
    assert recipe.pick.model_dump() == {
        "by": "longest",
        "number": 300_000,
        "of": 1_000_000,
        "seed": 0,
        "shuffle": 42,
    }


def test_the_default_asks_no_judge_and_no_model() -> None:
    recipe = load_recipe("default")
    assert not any(rule.judged for rule in recipe.rules)
    assert not {"scores.perplexity", "scores.instruction_gain", "scores.min_neighbor_distance"} & set(
        recipe.needs
    )
    assert presets() == sorted([*TABLE, "qwen2-pro-300k", "default"])


@pytest.mark.parametrize("name", presets())
def test_a_resolved_recipe_is_the_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert from_json(recipe.resolved(), "again") == recipe


@pytest.mark.parametrize(
    ("rows", "name", "expected"),
    [(3_000_000, "air-300k", 300_000), (1_000_000, "pro-200k-6", 200_000), (300, "pro-300k", 90), (1, "air-300k", 1),
     (25, "air-300k", 3), (300, "pro-338k-5", None)],
)  # fmt: skip
def test_the_number_kept_scales(rows: int, name: str, expected: int | None) -> None:
    assert load_recipe(name).pick.rows(rows) == expected


def read(tmp_path: Path, text: str) -> FilterRecipe:
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    return load_recipe(path)


HEAD = "version: 1\nname: x\nrules: "


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", "no filter recipe"),
        ("version: 2\nname: x\nrules: []", r"r.yaml:1:1: version cannot be 2"),
        ("version: 1\nname: ../x\nrules: []", "name cannot be"),
        ("version: 1\nname: x", "rules is missing"),
        (HEAD + "[]\nfilters: []", "there is no setting 'filters'"),
        (HEAD + "[{min_tags: {}}]", r"r.yaml:3:\d+: there is no rule 'min_tags'; did you mean 'min_tag'"),
        (HEAD + "[{no_refusal: , no_boilerplate: }]", "each item of `rules` is one rule"),
        (HEAD + "[{}]", "each item of `rules` is one rule"),
        (HEAD + "[no_refusal]", "rules"),
        (HEAD + "[{no_refusal: 3}]", "takes settings"),
        (HEAD + "[{no_refusal: {self: 1}}]", "there is no setting"),
        (HEAD + "[{min_tag: {tag: difficulty, value: heavy}}]", "difficulty has the labels very easy, easy"),
        (HEAD + "[{min_tag: {tag: task_category, value: Math}}]", "only these tags have an order"),
        (HEAD + "[{min_tag: {tag: ../x, value: easy}}]", "tag"),
        (HEAD + "[{min_score: {score: reward}}]", "`above` or `at_least`"),
        (HEAD + "[{min_score: {score: reward, above: .inf}}]", "above"),
        (HEAD + "[{min_score: {score: reward, above: 1e999}}]", "finite"),
        (HEAD + "[{length: {of: response, min: 9, max: 3}}]", "`min` is more than `max`"),
        (HEAD + "[{length: {of: system, min: 9}}]", "of cannot be 'system'"),
        (HEAD + "[{max_newlines: {most: -1}}]", "most cannot be -1"),
        (HEAD + "[{max_newlines: {most: 10, except: {tag: x}}}]", "values is missing"),
        (HEAD + "[{no_duplicates: {kind: fuzzy}}]", "kind cannot be 'fuzzy'"),
        (HEAD + "[{no_duplicates: {kind: near, threshold: 0}}]", "threshold cannot be 0"),
        (HEAD + "[{language: {values: [English]}}]", "values"),
        (HEAD + "[{no_contamination: {against: []}}]", "against"),
        (HEAD + "[{tag_share: {tag: d, groups: [{values: [a], share: 0.6}, {values: [b], share: 0.6}]}}]", "more than 1"),
        (HEAD + "[{tag_share: {tag: d, groups: [{values: [a, a], share: 0.6}]}}]", "in two groups"),
        (HEAD + "[{no_refusal: }, {no_refusal: }]", "2 rules would drop rows as 'no_refusal'"),
        (HEAD + "[]\npick: {by: shortest}", "by cannot be 'shortest'"),
        (HEAD + "[]\npick: {number: 5, of: 4}", "at most `of`"),
        (HEAD + "[]\nquotas: {tag: t, most: {Math: 0}}", "most"),
        (HEAD + "[]\nmax_missing: 2", "max_missing"),
        (HEAD + "!!python/object/apply:os.system ['true']", "uses the tag"),
        (HEAD + "[]\nrules: []", "twice"),
        (HEAD + "[" + "[" * 40 + "]" * 41, "nested deeper"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{i}: &c{i} [*b, *b]\n" for i in range(9)), "no setting|grows|cannot be used"),
        (HEAD + "[" + "{no_refusal: }," * 101 + "]", "at most 100"),
        (HEAD + "'" + "x" * 2_000_000 + "'", "too big"),
    ],
    ids=lambda text: repr(text[:60]),
)  # fmt: skip
def test_what_is_refused(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        read(tmp_path, text)
    assert len(str(caught.value)) < 3000


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = (
        HEAD + "\n  - min_tag: {tag: difficulty}\n  - nonsense:\n  - length: {of: x, min: 1}\npick: {by: y}\n"
    )
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[1] for line in lines] == ["4", "5", "6", "7"]


@pytest.mark.parametrize("name", ["nonsense", "", "..", "air300k", "air-300k\n"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match="there is no recipe"):
        load_recipe(name)


def test_a_path_is_no_preset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load_recipe(tmp_path / "air-300k.yaml")
    assert load_recipe(recipe_file(tmp_path, "[]", name="a")).name == "a"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["tag", "value", "x", "self"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from([*RULES, "x"]), VALUES, max_size=2), max_size=3), VALUES, VALUES
)
def test_any_values_are_read_or_refused(rules: Any, pick: Any, quotas: Any) -> None:
    try:
        found = from_json({"version": 1, "name": "x", "rules": rules, "pick": pick, "quotas": quotas}, "m")
    except UsageError:
        return
    assert from_json(found.resolved(), "again") == found
