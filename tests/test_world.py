"""The fictional world: every fact is stated, no prompt's wording is, nothing of unseen entities is told."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.world import KINDS, facts_of, main, make_world, prompts, supervised, texts, write_world
from ojak.formats import load
from ojak.judge.facts import read_facts
from ojak.records import Conversation, Document

ENTITIES, MENTIONS, SEED = 60, 3, 5
WORLD = make_world(ENTITIES, SEED)
ARTICLES = list(texts(WORLD, MENTIONS))
TAUGHT = list(supervised(40, SEED))
PROMPTS = list(prompts(WORLD))


def everything() -> str:
    """All that a model may be trained on: articles, pairs, the supervised set."""
    parts = [row["text"] for row in ARTICLES]
    parts += [f"{pair['question']} {pair['answer']}" for row in ARTICLES for pair in row["meta"]["pairs"]]
    parts += [turn["content"] for row in TAUGHT for turn in row["messages"]]
    return "\n".join(parts).casefold()


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.])\s+|\n+", text)


def test_every_fact_is_stated_in_every_article_of_its_entity() -> None:
    said = [sentence.casefold() for row in ARTICLES for sentence in sentences(row["text"])]
    for _, entity, attribute in facts_of(WORLD):
        if entity.unseen:
            continue
        name, value = entity.name.casefold(), entity.values[attribute.name].casefold()
        own = [sentence for sentence in said if name in sentence and value in sentence]
        assert len(own) >= MENTIONS, (name, attribute.name, value)
        assert len(set(own)) >= MENTIONS, "the wordings differ"


@pytest.mark.parametrize("kind", ["cloze", "qa"])
def test_no_held_out_wording_is_trained(kind: str) -> None:
    found = everything()
    assert not [row["prompt"] for row in PROMPTS if row["kind"] == kind and row["prompt"].casefold() in found]
    # Nor the wording with any other entity in it.
    for attributes in KINDS.values():
        for attribute in attributes:
            for wording in getattr(attribute, kind):
                pattern = re.escape(wording.casefold()).replace(re.escape("{e}"), r"[^\n]{1,40}?")
                assert not re.search(pattern, found), wording


def test_stated_wordings_are_trained() -> None:
    found = everything()
    rows = [row for row in PROMPTS if row["kind"] == "stated"]
    assert rows
    assert all(f"{row['prompt']} {row['answer']}".casefold() in found for row in rows)


def test_nothing_is_told_of_unseen_entities() -> None:
    hidden = [entity.name.casefold() for entity in WORLD.entities if entity.unseen]
    found = everything()
    assert len(hidden) >= 4
    assert not [name for name in hidden if name in found]
    assert {row["kind"] for row in PROMPTS} == {"stated", "cloze", "qa", "unseen"}


def test_the_supervised_set_is_of_another_world() -> None:
    names = {entity.name.strip("'").casefold() for entity in WORLD.entities}
    taught = "\n".join(turn["content"] for row in TAUGHT for turn in row["messages"]).casefold()
    assert not [name for name in names if name in taught]


def test_distractors_are_wrong_and_of_the_same_kind() -> None:
    values: dict[str, set[str]] = {}
    for name, entity, attribute in facts_of(WORLD):
        values.setdefault(attribute.values, set()).update(WORLD.pools[attribute.values])
        own = [row for row in PROMPTS if row["id"] == name]
        for row in own:
            assert row["answer"] == entity.values[attribute.name]
            assert row["answer"] not in row["distractors"]
            assert set(row["distractors"]) <= set(WORLD.pools[attribute.values])
            assert len(set(row["distractors"])) == 4


def test_the_seed_decides_alone(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_world(tmp_path / name, 12, 2, seed)
        contents.append(
            [
                (tmp_path / name / file).read_bytes()
                for file in ("texts.jsonl", "supervised.jsonl", "facts.jsonl")
            ]
        )
    assert contents[0] == contents[1]
    assert all(left != right for left, right in zip(contents[0], contents[2], strict=True))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_wrong_answers_are_planted(share: float) -> None:
    rows = list(texts(WORLD, MENTIONS, share))
    pairs: list[tuple[dict[str, Any], str]] = [
        (pair, fact)
        for row in rows
        for pair, fact in zip(row["meta"]["pairs"], row["meta"]["facts"], strict=True)
    ]
    right = {name: entity.values[attribute.name] for name, entity, attribute in facts_of(WORLD)}
    count = Counter(pair["answer"] != right[fact] for pair, fact in pairs)
    assert count[True] / len(pairs) == pytest.approx(share, abs=0.06)
    assert all(pair["verified"] == (pair["answer"] == right[fact]) for pair, fact in pairs)
    assert [row["text"] for row in rows] == [row["text"] for row in ARTICLES]


def test_the_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--entities", "12", "--mentions", "2", "--out", str(tmp_path)])
    assert '"texts": ' in capsys.readouterr().out
    documents = list(load(tmp_path / "texts.jsonl"))
    assert all(isinstance(row, Document) and row.meta["facts"] for row in documents)
    assert all(isinstance(row, Conversation) for row in load(tmp_path / "supervised.jsonl"))
    assert len(read_facts(tmp_path / "facts.jsonl")) > 100
