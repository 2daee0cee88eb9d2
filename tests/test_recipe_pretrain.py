"""`recipes/instruct-pretrain.yaml`: what its stages read, and the parts between corpus and training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ojak import recipe
from ojak._recipe_run import plan, run
from ojak.artifact import Artifact, publish
from ojak.corpus.shipped import ShippedConfig, write_shipped
from ojak.errors import TargetExists, UsageError
from ojak.evaluate.arms import Rowwise
from ojak.evaluate.comparison import figures_of
from ojak.formats import load
from ojak.judge.facts import read_facts
from ojak.records import Conversation, Document, Message
from ojak.stages import BY_NAME, Job
from ojak.stages.pretraining import located, stages_named
from ojak.train.mix_config import MixArmsConfig
from ojak.train.scratch import ScratchConfig

PATH = Path(__file__).parent.parent / "recipes" / "instruct-pretrain.yaml"


@pytest.mark.parametrize("sets", [[], ["scale=smoke"], ["data=world/texts.jsonl", "facts=world/facts.jsonl"]])
def test_the_recipe_is_sound(sets: list[str]) -> None:
    reads = {item.stage.name: item.reads for item in recipe.load(PATH, sets=sets).chosen}
    assert reads["pretrain-mix"] == ("texts", "corpus", "augment", "scratch")
    probed = ("texts",) if "facts=world/facts.jsonl" not in sets else ()
    assert reads["train"] == (*probed, "scratch", "pretrain-mix")
    assert reads["evaluate"] == (*probed, "pretrain-mix", "train")


def test_results_are_named_in_settings() -> None:
    inputs = {"texts": Path("run/texts"), "scratch": Path("run/scratch")}
    assert located("@texts/facts", inputs) == "run/texts/facts.jsonl"
    assert located("@texts/supervised:0.5", inputs) == "run/texts/supervised.jsonl:0.5"
    assert located("@scratch", inputs) == "run/scratch/model"
    assert located("smollm2-135m-instruct", inputs) == "smollm2-135m-instruct"
    assert stages_named("@scratch", None, "@texts/facts", "x") == {"scratch", "texts"}
    with pytest.raises(UsageError, match="no stage before"):
        located("@scratch", {})


def test_the_texts_of_python(folder: Path) -> None:
    made = write_shipped(folder / "a", ShippedConfig(limit=40, facts=10))
    write_shipped(folder / "b", ShippedConfig(limit=40, facts=10))
    for name, found in made.stats.items():
        if name.endswith(".jsonl"):
            assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
            assert found["rows"] == len((folder / "a" / name).read_text("utf-8").splitlines())
    documents = list(load(folder / "a/texts.jsonl"))
    texts = [record.text for record in documents if isinstance(record, Document)]
    assert len(texts) == len(documents) == 40
    facts = read_facts(folder / "a/facts.jsonl")
    everything = " ".join(" ".join(texts).split())
    assert facts
    assert all(fact.answer in everything for fact in facts), "what is asked for stands in a text"
    assert not [fact.prompt for fact in facts if fact.prompt.splitlines()[0] in everything]
    assert all(fact.answer not in fact.distractors for fact in facts)


def test_from_a_corpus_to_arms(folder: Path) -> None:
    texts = [Document(f"d{i}", f"text {i} is about the number {i} and no other", meta={}) for i in range(60)]
    inputs = {"corpus": publish(folder / "corpus", kind="corpus", records=texts, config={}).path}
    sizes = ScratchConfig(vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    BY_NAME["scratch"].run(Job(sizes, folder / "scratch", inputs))
    inputs["scratch"] = folder / "scratch"
    Path("chats.jsonl").write_text(json.dumps({"messages": [Message(role="user", content="q")]}) + "\n")
    config = MixArmsConfig(
        tokens=600,
        tokenizer="@scratch",
        held_out=0.1,
        arms={"vanilla": None, "mix": {"mix_data": "chats.jsonl"}},
    )
    facts = BY_NAME["pretrain-mix"].run(Job(config, folder / "mix", inputs)).facts
    assert set(facts["arms"]) == {"vanilla", "mix"}
    assert all(590 < arm["tokens"] <= 600 for arm in facts["arms"].values())


def test_a_comparison_has_what_was_known_by_heart(folder: Path) -> None:
    def row(number: int, fact: str, rank: int) -> Conversation:
        scores = {"logprob": -2.0 * number, "exact": 1.0, "tokens": 2, "rank": rank}
        turns = [Message(role="user", content="p"), Message(role="assistant", content="a")]
        return Conversation(f"probe-{number}", turns, meta={"fact": fact, "kind": "qa"}, scores=scores)

    publish(
        folder / "out", kind="evaluate", records=[row(1, "f", 1), row(2, "f", 2), row(3, "g", 1)], config={}
    )
    figures = figures_of(folder / "out")
    assert set(figures) == {"probe_qa_logprob", "probe_qa_exact", "probe_qa_accuracy"}
    assert figures["probe_qa_logprob"] == Rowwise(("f", "g"), (-6.0, -6.0), (4.0, 2.0))
    assert figures["probe_qa_accuracy"] == Rowwise(("f", "g"), (1.0, 1.0), (2.0, 1.0))


@pytest.mark.slow
def test_the_smoke_scale_runs(folder: Path) -> None:
    """From raw text to the report; run again, nothing is left to do."""
    pytest.importorskip("datatrove")
    pytest.importorskip("lxml_html_clean")
    made = recipe.load(PATH, out=folder / "run", sets=["scale=smoke", "corpus.workers=1"])
    try:
        done = run(made)
    except UsageError as error:  # what reads documents says itself which of its libraries is missing
        pytest.skip(str(error))
    assert [each.name for each in done] == [item.stage.name for item in made.chosen]
    arms = Artifact.open(folder / "run/pretrain-mix").stats["arms"]
    assert set(arms) == {"vanilla", "mix", "instruct"}
    assert all(8_000 - 512 < arm["tokens"] <= 8_000 for arm in arms.values())
    found = Artifact.open(folder / "run/evaluate").stats
    assert {"bits_per_byte", "val_loss", "probe_help_logprob", "probe_help_accuracy"} <= set(found["metrics"])
    assert set(found["arms"]) == set(arms)
    assert all(len(found["arms"][arm]["val_loss"]["values"]) == 3 for arm in arms)
    assert (folder / "run/report/index.html").is_file()
    assert not [step for step in plan(made) if step.reasons]


CHANGING = """
version: 1
name: changing
stages:
  corpus: {paths: [raw], profile: none, workers: 1}
  augment: {synthesizer: rules}
"""


def test_a_changed_file_is_a_reason(folder: Path) -> None:
    (folder / "raw").mkdir()
    (folder / "raw/a.txt").write_text(
        "Mount Elber is a mountain in the far north. It is 3,214 metres high.\n"
    )
    (folder / "recipe.yaml").write_text(CHANGING)
    made = recipe.load(folder / "recipe.yaml", out=folder / "run")
    run(made)
    assert not [step.reasons for step in plan(made) if step.reasons]
    (folder / "raw/b.txt").write_text(
        "The town of Arlo lies at its foot. It was founded in 1850 by miners.\n"
    )
    reasons = {step.chosen.stage.name: step.reasons for step in plan(made)}
    assert reasons == {"corpus": ("raw has changed",), "augment": ("corpus runs first",)}
    with pytest.raises(TargetExists):  # what is there is not lost unasked
        run(made)
    run(made, overwrite=True)
    assert Artifact.open(folder / "run/corpus").counts["accepted"] == 2


def test_files_that_settings_name_are_watched(folder: Path) -> None:
    for name in ("facts", "chats", "docs", "scored"):
        Path(f"{name}.jsonl").write_text('{"text": "a"}\n')
    settings = {
        "corpus": {"paths": ["docs.jsonl", "@texts"], "educational": "scored.jsonl"},
        "augment": {"data": "docs.jsonl"},
        "pretrain-mix": {
            "tokens": 9,
            "replay": "docs.jsonl:0.5",
            "arms": {"mix": {"mix_data": "chats.jsonl"}, "vanilla": None},
        },
        "evaluate": {"probe": "facts.jsonl"},
    }
    read = {
        name: BY_NAME[name].files(BY_NAME[name].settings()(**values)) for name, values in settings.items()
    }
    assert {name: set(found) for name, found in read.items()} == {
        "corpus": {"docs.jsonl", "scored.jsonl"},
        "augment": {"docs.jsonl"},
        "pretrain-mix": {"docs.jsonl:0.5", "chats.jsonl"},
        "evaluate": {"facts.jsonl"},
    }
    assert all(digest for found in read.values() for digest in found.values())
    settings["evaluate"]["probe"] = "@texts/facts"
    own = BY_NAME["evaluate"].settings()(**settings["evaluate"])
    assert BY_NAME["evaluate"].files(own) == {}, "a result of a stage is an input, and is told as one"
