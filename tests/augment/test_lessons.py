"""Sets of texts with questions as training data of a synthesizer: every published form, and what is left out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_run
from typer.testing import CliRunner

from ojak.artifact import publish
from ojak.augment import lessons
from ojak.augment.dialects import PUBLISHED, speak
from ojak.augment.lessons import make_lessons
from ojak.augment.pairs import Pair
from ojak.augment.prompts import read_prompt
from ojak.augment.sources import Grounds, read_grounds
from ojak.augment.tagged import parse
from ojak.cli.app import app
from ojak.engines.native import NativeEngine
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.model.load import load_model
from ojak.records import Conversation, Document
from ojak.train.encode import Encoder, Encoding
from ojak.train.styles import style_template

SQUAD = {
    "version": "1.1",
    "data": [{"title": "T", "paragraphs": [{"context": "Ann ran to Rome.", "qas": [
        {"id": "1", "question": "Who ran?", "answers": [{"answer_start": 0, "text": "Ann"}]},
        {"id": "2", "question": "Where to?", "answers": [{"answer_start": 11, "text": "Rome"}]},
        {"id": "3", "question": "Why?", "answers": [], "is_impossible": True},
    ]}]}],
}  # fmt: skip
TATQA = [{
    "table": {"uid": "t", "table": [["", "2019"], ["Sales", "5"]]},
    "paragraphs": [{"uid": "b", "order": 2, "text": "Second."}, {"uid": "a", "order": 1, "text": "First."}],
    "questions": [
        {"question": "Sales?", "answer": 5, "scale": "million"},
        {"question": "Growth?", "answer": "3", "scale": "percent"},
        {"question": "Which?", "answer": ["a", "b"], "scale": ""},
    ],
}]  # fmt: skip
PUBMEDQA = {"123": {
    "QUESTION": "Does A help B?", "CONTEXTS": ["A was given.", "B was seen."], "LONG_ANSWER": "A helps B.",
    "final_decision": "yes",
}}  # fmt: skip
ROWS = [
    {"context": "Bo sat.", "pairs": [{"question": "Who sat?", "answer": "Bo"}]},
    {
        "context": "Bo sat.",
        "pairs": [{"question": "Did Bo stand?", "answer": "no", "options": ["yes", "no"]}],
    },
]


def write(path: Path, value: Any, *, lines: bool = False) -> Path:
    text = "\n".join(json.dumps(row) for row in value) if lines else json.dumps(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def grounds(path: Path) -> tuple[dict[str, dict[str, list[Pair]]], Counter[str]]:
    skipped: Counter[str] = Counter()
    return {each.name: each.pairs for each in read_grounds(path, skipped)}, skipped


def test_squad(tmp_path: Path) -> None:
    found, skipped = grounds(write(tmp_path / "x.en.json.gz", SQUAD))
    assert found == {"x": {"Ann ran to Rome.": [Pair("Who ran?", "Ann"), Pair("Where to?", "Rome")]}}
    assert skipped == {"no_answer": 1}


def test_tatqa_and_pubmedqa(tmp_path: Path) -> None:
    found, _ = grounds(write(tmp_path / "tatqa.json", TATQA))
    assert found["tatqa"] == {
        " | 2019\nSales | 5\n\nFirst.\n\nSecond.".strip(): [
            Pair("Sales?", "5 million"), Pair("Growth?", "3%"), Pair("Which?", "a; b"),
        ]
    }  # fmt: skip
    found, _ = grounds(write(tmp_path / "pubmedqa.json", PUBMEDQA))
    assert found["pubmedqa"] == {
        "A was given.\nB was seen.": [
            Pair("Does A help B?", "yes", ("yes", "no", "maybe")), Pair("Does A help B? Explain.", "A helps B."),
        ]
    }  # fmt: skip


def test_lines_of_contexts_and_augmented_documents(tmp_path: Path) -> None:
    expected = [Pair("Who sat?", "Bo"), Pair("Did Bo stand?", "no", ("yes", "no"))]
    found, _ = grounds(write(tmp_path / "rows.jsonl", ROWS, lines=True))
    assert found == {"rows": {"Bo sat.": expected}}
    meta = {"pairs": [pair.to_json() for pair in expected]}
    made = publish(
        tmp_path / "made",
        kind="augment",
        config={},
        records=[Document("a", "Bo sat.", "", meta), Document("b", "x")],
    )
    found, skipped = grounds(made.path)
    assert found == {"made": {"Bo sat.": expected}} and skipped == {"no_pairs": 1}


def test_a_folder_of_sets(tmp_path: Path) -> None:
    write(tmp_path / "all/one/a.jsonl", ROWS, lines=True)
    write(tmp_path / "all/two.json", SQUAD)
    found, _ = grounds(tmp_path / "all")
    assert sorted(found) == ["one/a", "two"]


@pytest.mark.parametrize(
    ("prompt", "completion", "context", "pair"),
    [
        ('Question: "who?"\n\nContext: "Ann ran."\n\nAnswer:\n', "Ann<|endoftext|>", "Ann ran.", Pair("Who?", "Ann")),
        ("Given the following context:\n\nAnn ran.\n\nanswer the following question:\n\nWho?\n", "Ann", "Ann ran.",
         Pair("Who?", "Ann")),
        ("Answer the following question given this paragraph: \n\nAnn ran.\n\n\nQ: Who?\n\n Choices:\n\n- Bo\n\n- Ann"
         "\n\nA:\n", "Ann", "Ann ran.", Pair("Who?", "Ann", ("Bo", "Ann"))),
        ("Based on the context and the answer, generate a question. \n\nContext: Ann ran.\n\nAnswer:\n\nAnn\n", "Who?",
         "Ann ran.", Pair("Who?", "Ann")),
        ("Dialogue:\n\nM: Hi.\n\nW: Oh.\n\nQuestion: Who? \n\n- M.\n\n- W.\n", "W.", "M: Hi.\n\nW: Oh.",
         Pair("Who?", "W.", ("M.", "W."))),
    ],
)  # fmt: skip
def test_flattened_prompts(prompt: str, completion: str, context: str, pair: Pair) -> None:
    assert read_prompt(prompt, completion) == (context, pair)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("hostile", ["- x " * 50_000, "- \n" * 50_000, "Q: " * 50_000, "\n\n" * 50_000])
def test_hostile_prompts_take_no_time(hostile: str) -> None:
    for head in (
        "Dialogue:\n\nx\n\nQuestion: q\n\n",
        "Information:\n\nx\n\n\n\nWhat object entity x\n\nChoices:\n",
        "x",
    ):
        read_prompt(head + hostile + "!", "a")


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    for name, value in {"a.json": {"x": 1}, "b.json": [], "c.json": {"data": [{"paragraphs": 1}]}}.items():
        with pytest.raises(InputRefused):
            grounds(write(tmp_path / name, value))
    (tmp_path / "d.jsonl").write_text("{]", "utf-8")
    with pytest.raises(InputRefused, match="neither JSON nor JSON lines"):
        grounds(tmp_path / "d.jsonl")
    with pytest.raises(UsageError, match="nothing at"):
        grounds(tmp_path / "none")


def test_lessons_hold_examples_of_one_set_and_nothing_is_lost_uncounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "MOST_EXAMPLES", 6)
    rows = [
        {
            "context": f"Text {n}.",
            "pairs": [{"question": f"Q{k}?", "answer": f"A{k}"} for k in range(n % 3 + 1)],
        }
        for n in range(10)
    ]
    rows += [{"context": "bad <CON>", "pairs": [{"question": "a", "answer": "b"}]}]
    rows += [
        {
            "context": "Text 0.",
            "pairs": [{"question": "q0?", "answer": "again"}, {"question": "<ANS>", "answer": "b"}],
        }
    ]
    paths = [write(tmp_path / "one.jsonl", rows, lines=True), write(tmp_path / "two.json", SQUAD)]
    made = make_lessons(paths, tmp_path / "out", shots=4)
    assert made.stats["skipped"] == {
        "beyond_the_cap": 4, "duplicate_question": 1, "no_answer": 1, "tags_inside": 1, "unusable_context": 1,
    }  # fmt: skip
    assert made.stats["sets"] == {"one": {"contexts": 6, "pairs": 15}, "two": {"contexts": 1, "pairs": 2}}
    found = [record for record in made.records() if isinstance(record, Conversation)]
    assert [(record.source, len(record.messages)) for record in found] == [("one", 8), ("one", 4), ("two", 2)]
    for record in found:
        said = [parse(turn["content"]) for turn in record.messages[1::2]]
        assert sum(len(each.pairs) for each in said) == record.meta["pairs"]
        assert not any(each.discarded for each in said)
    assert make_lessons(paths, tmp_path / "out", shots=4).manifest == made.manifest, "it is there already"
    with pytest.raises(TargetExists, match="other data or settings"):
        make_lessons(paths, tmp_path / "out", shots=1)
    assert make_lessons(paths, tmp_path / "single", shots=1).counts["accepted"] == 7


def test_the_order_of_a_set_follows_from_its_texts(tmp_path: Path) -> None:
    rows = [{"context": f"Text {n}.", "pairs": [{"question": "a", "answer": "b"}]} for n in range(9)]
    found = [
        [record.messages for record in make_lessons(
            [write(tmp_path / f"{n}/set.jsonl", each, lines=True)], tmp_path / f"out{n}"
        ).records() if isinstance(record, Conversation)]
        for n, each in enumerate((rows, rows[::-1]))
    ]  # fmt: skip
    assert found[0] == found[1]


def test_loss_is_on_the_pairs_alone(tmp_path: Path) -> None:
    made = make_lessons([write(tmp_path / "two.json", SQUAD)], tmp_path / "out")
    tokenizer = tiny.tokenizer()
    encoder = Encoder(tokenizer, Encoding("finetune", style_template("synthesizer", tokenizer, None)))
    (row,) = encoder.rows(made.records())
    assert tokenizer.decode(row.ids.tolist()) == (
        "<s> <CON> Ann ran to Rome. </CON>\n\n<QUE> Who ran? <ANS> Ann </END>\n\n<QUE> Where to? <ANS> Rome </END></s>"
    )
    assert tokenizer.decode(row.ids[row.mask].tolist()) == (
        "<QUE> Who ran? <ANS> Ann </END>\n\n<QUE> Where to? <ANS> Rome </END></s>"
    )


def test_training_makes_a_model_that_is_known_as_a_synthesizer(tmp_path: Path) -> None:
    data = write(tmp_path / "two.json", SQUAD)
    model = tiny_run.model(tmp_path)
    words = [
        "train", "synthesizer", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "out"), "--json",
        "--epochs", "2", "--set", "dtype=float32", "--set", "peak_flops=1e12", "--max-len", "400",
    ]  # fmt: skip
    first, result = (
        CliRunner().invoke(app, words) for _ in range(2)
    )  # the second time it finds the finished run
    assert first.exit_code == result.exit_code == 0, first.output
    assert json.loads(result.stdout)["steps"] == 2
    dialect, prefix = speak(NativeEngine(load_model(tmp_path / "out" / "model")), 2, "auto")
    assert dialect is PUBLISHED
    assert prefix.text(["A", "B", "C"]) == " <CON> A </CON>\n\nB</s> <CON> C </CON>\n\n"


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "two.json", SQUAD)
    words = ["train", "synthesizer", "--model", str(tiny_run.model(tmp_path)), "--data", str(data)]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--dry-run", "--json"])
    assert result.exit_code in (0, 5), result.output
    assert not (tmp_path / "out").exists()


def test_grounds_gather_pairs_under_their_context() -> None:
    found = Grounds("x")
    found.add(" a ", [Pair("1", "2")])
    found.add("a", [Pair("3", "4")])
    assert list(found.pairs) == ["a"] and len(found.pairs["a"]) == 2
