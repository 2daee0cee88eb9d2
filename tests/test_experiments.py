"""The drivers of the experiments: what they make is what they say, and their recipes are sound."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from experiments import continual, real, three_arms
from experiments.pairs import checked, given, pairs_of, planted
from experiments.synthesizer import counted, told
from experiments.world import make_world, texts
from ojak import recipe
from ojak.artifact import Artifact, publish
from ojak.augment.pairs import Pair
from ojak.augment.run import augment_data
from ojak.judge.facts import read_facts
from ojak.records import Document

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
ROWS = list(texts(make_world(12, 0), 2))


def pairs(artifact: Artifact) -> dict[tuple[str, int], Pair]:
    records = (record for record in artifact.records() if isinstance(record, Document))
    return {(each.id, n): pair for each in records for n, pair in enumerate(pairs_of(each))}


@pytest.fixture
def right(tmp_path: Path) -> Path:
    """An augmented world, with its own pairs."""
    documents = [Document(row["id"], row["text"]) for row in ROWS]
    made = publish(tmp_path / "corpus", kind="corpus", records=documents, config={})
    augment_data(made, tmp_path / "rules")
    return given(tmp_path / "rules", tmp_path / "right", ROWS).path


def test_wrong_answers_are_planted_and_nothing_else_changes(right: Path, tmp_path: Path) -> None:
    before = pairs(Artifact.open(right))
    made = {share: pairs(planted(right, tmp_path / f"w{share}", share)) for share in (0.1, 0.5)}
    wrong = {
        share: {key for key, pair in found.items() if pair.verified is False} for share, found in made.items()
    }
    assert wrong[0.1] < wrong[0.5]
    assert len(wrong[0.5]) == pytest.approx(0.5 * len(before), abs=0.15 * len(before))
    values: dict[str, set[str]] = {}
    for pair in before.values():
        values.setdefault(pair.source, set()).add(pair.answer)
    for key, pair in made[0.5].items():
        assert pair.question == before[key].question
        assert (pair.answer == before[key].answer) is (key not in wrong[0.5])
        assert pair.answer in values[pair.source], "it is of the right kind"
    for record in Artifact.open(tmp_path / "w0.5").records():
        assert isinstance(record, Document)
        assert all(pair.answer in record.meta["augmented"] for pair in pairs_of(record))
    shared = [
        record.meta["augmented"] for record in Artifact.open(right).records() if isinstance(record, Document)
    ]
    same = [record.meta["augmented"] for record in planted(right, tmp_path / "w0", 0.0).records() if isinstance(record, Document)]  # fmt: skip
    assert same == shared, "the templates are those that there were"
    left = pairs(checked(tmp_path / "w0.5", tmp_path / "checked"))
    assert sum(pair.verified is False for pair in left.values()) < 0.1 * len(wrong[0.5])
    assert len(left) > 0.8 * (len(before) - len(wrong[0.5]))


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("three-arms", ["world=w", "real=r"]),
        ("three-arms-finetune", ["world=w", "arms=a"]),
        ("continual", ["domain=d", "general=g"]),
    ],
)
def test_the_recipes_are_sound(
    name: str, sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"w": ("texts", "supervised", "facts", "tasks"), "r": ("texts", "held_out"), "d": ("texts", "held_out", "facts"), "g": ("texts", "held_out")}  # fmt: skip
    for folder, names in files.items():
        (tmp_path / folder).mkdir()
        for each in names:
            (tmp_path / folder / f"{each}.jsonl").write_text('{"text": "a", "prompt": "a", "answer": "b"}\n')
    scales = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text("utf-8")).get("scales", {})
    for scale in ([], *([f"scale={each}"] for each in scales)):
        recipe.load(EXPERIMENTS / f"{name}.yaml", sets=[*sets, *scale])


def wiki(path: Path) -> Path:
    articles = [" ".join(f"Article {n} has a sentence number {k}." for k in range(120)) for n in range(10)]
    path.write_bytes(gzip.compress("\n".join(articles).encode()))
    return path


def test_no_article_is_learnt_from_and_measured_on(tmp_path: Path) -> None:
    counts = real.write_wiki(wiki(tmp_path / "wiki.gz"), tmp_path / "out", 0.2, 0, most=9)
    rows = {name: [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text("utf-8").splitlines()] for name in counts}  # fmt: skip
    assert len(rows["texts"]) == 9 and len(rows["held_out"]) > 2
    articles = {name: {row["article"] for row in each} for name, each in rows.items()}
    assert not articles["texts"] & articles["held_out"] and len(articles["held_out"]) == 2
    assert all(len(row["text"]) <= real.PIECE and row["text"].endswith(".") for row in rows["texts"])
    each = {"CONTEXTS": ["A was given.", "B fell ill."], "QUESTION": "Does A help B?", "LONG_ANSWER": "A does.", "final_decision": "yes"}  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps({str(n): each for n in range(5)}))
    assert real.write_pubmedqa(tmp_path / "qa.json", tmp_path / "qa", 0.2, 0) == {
        "texts": 4,
        "held_out": 1,
        "facts": 5,
    }
    facts = read_facts(tmp_path / "qa/facts.jsonl")
    assert sorted(fact.kind for fact in facts) == ["closed"] * 4 + ["open"]
    assert all(
        ("A was given." in fact.prompt) is (fact.kind == "open") and "A does." not in fact.prompt
        for fact in facts
    )


def stopped(ran: list[tuple[Path, list[str]]]) -> Callable[..., object]:
    """In the place of running a recipe."""

    def run(path: Path, _out: Path, sets: list[str], *_rest: object, **_named: object) -> object:
        ran.append((path, sets))
        raise KeyboardInterrupt

    return run


@pytest.mark.parametrize("factor", ["ratio", "wrong", "makers"])
def test_a_factor_is_a_recipe_that_loads(
    factor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    ran: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(three_arms, "run_recipe", stopped(ran))
    words = [factor, "--real", str(wiki(tmp_path / "wiki.gz")), "--out", str(tmp_path / "out"), "--entities", "8", "--mentions", "2", "--pieces", "4"]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        three_arms.main(words)
    made = recipe.load(ran[0][0], out=tmp_path / "run", sets=ran[0][1])
    settings = {item.stage.name: item.resolved() for item in made.chosen}
    assert list(settings["pretrain-mix"]["arms"]) == list(settings["train"]["arms"])
    assert len(settings["train"]["arms"]) >= 3
    with pytest.raises(SystemExit, match="other sizes"):
        three_arms.main([*words[:-1], "5"])


def test_remedies_are_parts_and_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    ran: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(continual, "run_recipe", stopped(ran))
    each = {"CONTEXTS": ["A was given to all of them in spring."], "QUESTION": "Q?", "LONG_ANSWER": "A does.", "final_decision": "no"}  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps({str(n): {**each, "CONTEXTS": [f"Text {n} says that A helps B.", "* x"[: n % 2 * 3]]} for n in range(20)}))  # fmt: skip
    words = ["pubmedqa", "--factor", "remedies", "--domain", str(tmp_path / "qa.json"), "--general", str(wiki(tmp_path / "wiki.gz")), "--out", str(tmp_path / "out")]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        continual.main(words)
    made = recipe.load(ran[0][0], out=tmp_path / "run", sets=ran[0][1])
    arms = {item.stage.name: item.resolved() for item in made.chosen}["pretrain-mix"]["arms"]
    assert list(arms) == ["once", "subset", "best", "mixture"]
    for name in ("subset", "best"):
        assert 3 <= Artifact.open(arms[name]["data"]).counts["accepted"] <= 5


def test_pairs_are_measured_by_text(tmp_path: Path) -> None:
    documents = [Document(row["id"], row["text"]) for row in ROWS[:6]]
    made = publish(tmp_path / "in", kind="corpus", records=documents, config={})
    found = told(counted(augment_data(made, tmp_path / "out")))
    assert found["valid"][0] <= 1 and found["supported"] == [1.0, 1.0, 1.0]
    assert all(low <= value <= high for value, low, high in found.values())
