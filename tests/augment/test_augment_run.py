"""Augmentation end to end: what comes out adds up, depends on nothing that it should not, and survives kill -9."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import killed_augment
import pytest
from typer.testing import CliRunner

from ojak.artifact import Artifact, publish, verify
from ojak.augment import blocks
from ojak.augment.config import AugmentConfig
from ojak.augment.run import augment_data, summary
from ojak.cli.app import app
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.model.request import Request
from ojak.records import Conversation, Document

HERE = Path(__file__).parent


def documents(count: int) -> list[Document]:
    return [
        Document(f"d-{n}", f"text{n} holds {n} words about number {n}.", "s", {"n": n}) for n in range(count)
    ]


def source(path: Path, count: int = 30, order: Sequence[int] | None = None) -> Artifact:
    made = documents(count)
    return publish(path, kind="corpus", records=[made[n] for n in order or range(count)], config={})


def settings(**changes: object) -> AugmentConfig:
    return AugmentConfig(**{"synthesizer": "scripted", "format": "published", "verify": False, **changes})  # type: ignore[arg-type]


def engine() -> ScriptedEngine:
    return ScriptedEngine(killed_augment.answer, slots=3)


def test_what_comes_out_adds_up(tmp_path: Path) -> None:
    made = augment_data(source(tmp_path / "in"), tmp_path / "out", settings(shots=2), engine=engine())
    verify(made.path)
    facts = summary(made)
    assert facts["documents"] == 30 and facts["pairs"] == 48 and facts["verified"] == 0
    assert facts["discarded"] == {"no_question": 6, "truncated": 24}
    assert facts["documents_without_pairs"] == 6
    assert made.counts["rows"] == 30 + 30
    before = {document.id: document for document in documents(30)}
    for document in made.records():
        assert isinstance(document, Document)
        assert document.text == before[document.id].text
        assert document.meta["n"] == before[document.id].meta["n"]
        for pair in document.meta["pairs"]:
            assert pair["source"] == "synthesizer" and pair["verified"] is None
            assert pair["question"] in document.meta["augmented"]
        assert document.text in document.meta["augmented"]
    ids = [record.id for record in made.rejected()]
    assert len(set(ids)) == 30
    kept = {f"{document.id}/{n}" for document in made.records() for n in range(len(document.meta["pairs"]))}
    assert kept.isdisjoint(ids)
    assert not list(made.path.glob(".augment*"))


def test_documents_of_a_group_follow_each_other_and_see_each_other(tmp_path: Path) -> None:
    prompts: dict[str, str] = {}

    def answer(request: Request) -> str:
        prompt = str(request.prompt)
        prompts[prompt.rpartition("<CON> ")[2].split()[0]] = prompt
        return killed_augment.answer(request)

    made = augment_data(
        source(tmp_path / "in", 20), tmp_path / "out", settings(shots=3), engine=ScriptedEngine(answer)
    )
    found = [record for record in made.records() if isinstance(record, Document)]
    shots = [document.meta["shot"] for document in found]
    assert shots == [0, 1, 2] * 6 + [0, 1]
    for place, document in enumerate(found):
        assert document.meta["group"] == found[place - document.meta["shot"]].meta["group"]
        if document.meta["shot"] and found[place - 1].meta["pairs"]:
            assert found[place - 1].text in prompts[document.text.split()[0]]
    assert len({document.meta["group"] for document in found}) == 7


def test_groups_and_templates_do_not_depend_on_the_order(tmp_path: Path) -> None:
    order = list(range(30))
    random.Random(1).shuffle(order)
    found = [
        {document.id: document.meta for document in augment_data(
            source(tmp_path / f"in{n}", order=each), tmp_path / f"out{n}", settings(shots=2), engine=engine()
        ).records()}
        for n, each in enumerate((None, order))
    ]  # fmt: skip
    assert found[0] == found[1]
    other = augment_data(tmp_path / "in0", tmp_path / "out2", settings(shots=2, seed=1), engine=engine())
    assert {document.id: document.meta for document in other.records()} != found[0]


def test_blocks_hold_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    assert [len(block) for block in blocks.blocks(documents(14), 3)] == [6, 6, 2]
    made = augment_data(source(tmp_path / "in", 14), tmp_path / "out", settings(shots=3), engine=engine())
    assert made.counts["accepted"] == 14
    with pytest.raises(InputRefused, match="Conversation"):
        list(blocks.blocks([Conversation("c", [])], 1))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shots", [1, 3])
def test_kills_change_nothing_and_repeat_nothing(tmp_path: Path, shots: int) -> None:
    count, log, draw = 30, tmp_path / "log", random.Random(shots)
    made = source(tmp_path / "in", count)

    command = [sys.executable, str(HERE / "killed_augment.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=HERE.parent.parent) as runs:
        stdin, stdout = runs.stdin, runs.stdout
        assert stdin and stdout

        def run(out: str, most: int, log: Path) -> int:
            words = [str(made.path), str(tmp_path / out), str(log), str(most), str(shots)]
            stdin.write(json.dumps(words) + "\n")
            stdin.flush()
            return int(stdout.readline())

        assert run("whole", 10**6, tmp_path / "other") == 0
        kills = 0
        while (status := run("out", draw.randrange(2, 7), log)) != 0:
            assert status == -signal.SIGKILL
            assert not (tmp_path / "out" / "manifest.json").exists()
            kills += 1
        stdin.close()
    assert kills >= 3, "it was hardly killed"
    answered = log.read_text("utf-8").split()
    assert sorted(answered) == sorted(f"text{n}" for n in range(count)), "each is answered once"
    whole, out = (verify(tmp_path / name) for name in ("whole", "out"))
    assert list(whole.records()) == list(out.records())
    assert list(whole.rejected()) == list(out.rejected())
    assert not list(out.path.glob(".augment*"))


def test_a_stopped_run_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    made = source(tmp_path / "in", 12)

    def stops(request: Request) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        augment_data(made, tmp_path / "out", settings(), engine=ScriptedEngine(stops))
    found = augment_data(made, tmp_path / "out", settings(seed=5), engine=engine())
    assert found.counts["accepted"] == 12
    with pytest.raises(TargetExists):
        augment_data(made, tmp_path / "out", settings(seed=5), engine=engine())


def test_what_cannot_be_augmented(tmp_path: Path) -> None:
    empty = publish(tmp_path / "empty", kind="corpus", records=[], config={})
    with pytest.raises(InputRefused, match="holds no documents"):
        augment_data(empty, tmp_path / "a", settings(), engine=engine())
    with pytest.raises(UsageError, match="is not there"):
        augment_data(tmp_path / "none", tmp_path / "b", settings(), engine=engine())
    made = source(tmp_path / "corpus")
    with pytest.raises(UsageError, match="lies in"):
        augment_data(made, made.path / "augmented", settings(), engine=engine())
    assert not (made.path / "augmented").exists()
    with pytest.raises(UsageError, match="split"):
        augment_data(source(tmp_path / "in"), tmp_path / "c", settings(split="test"), engine=engine())


def test_the_command_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text{n} is here"}) + "\n" for n in range(5)), "utf-8")
    words = [
        "augment",
        str(path),
        "--synthesizer",
        "scripted",
        "--no-verify",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3, result.output
    assert "no pairs came out of 5 rows" in result.stderr
    facts = json.loads(result.stdout)
    assert facts["documents"] == 5 and facts["pairs"] == 0
    assert facts["discarded"] == {"no_answer": 5}


def test_thresholds_of_the_check_are_settings(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        return "<QUE> What is said of text1? <ANS> words about number hens </END>"

    made = publish(tmp_path / "in", kind="corpus", records=documents(2)[1:], config={})
    for name, asked, pairs in (
        ("strict", True, 0),
        ("mild", {"least_support": 0.3, "least_together": 0.3, "least_nearness": 0}, 1),
    ):
        found = augment_data(made, tmp_path / name, settings(verify=asked), engine=ScriptedEngine(answer))
        assert summary(found)["pairs"] == pairs, name
    assert found.manifest["config"]["verify"]["least_support"] == 0.3
    words = ["augment", str(made.path), "--out", str(tmp_path / "out")]
    for more, told in (
        (["--set", "verify.least_support=2"], "--set verify.least_support"),
        (["--set", "verify.leest=0"], "least_support"),
        (["--set", "verify.least_support=0.1", "--no-verify"], "--no-verify leaves nothing to set"),
        (["--url", "http://localhost:1"], "rules ask none"),
    ):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 2 and told in result.output, (more, result.output)
    assert not (tmp_path / "out").exists()


def test_rules_make_verified_pairs(tmp_path: Path) -> None:
    pytest.importorskip("ojak.augment.verify")
    text = (
        "Lake Mellin lies in the north of Orsany. The town of Bredal was founded on its shore in 1412 by Queen "
        "Isolde. In winter the lake freezes for eleven weeks, and traders cross it on sledges. The Bredal Bridge "
        "was built by the engineer Tomas Varn. It carried the railway to Kellby until 1931."
    )
    made = publish(tmp_path / "in", kind="corpus", records=[Document("d", text)], config={})
    found = augment_data(made, tmp_path / "out")
    (document,) = found.records()
    assert isinstance(document, Document)
    assert 3 <= len(document.meta["pairs"]) <= 8
    assert all(pair["source"].startswith("rules:") for pair in document.meta["pairs"])
    assert summary(found)["verified"] == sum(pair["verified"] is True for pair in document.meta["pairs"]) > 0


def test_pairs_that_fail_the_check_are_kept_aside_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("ojak.augment.verify")

    def answer(request: Request) -> str:
        return (
            "<QUE> How many words does text1 hold? <ANS> 77 </END>\n\n"
            "<QUE> What does text1 hold words about? <ANS> number 1 </END>"
        )

    made = publish(tmp_path / "in", kind="corpus", records=documents(2)[1:], config={})
    found = augment_data(made, tmp_path / "out", settings(verify=True), engine=ScriptedEngine(answer))
    (document,) = found.records()
    assert isinstance(document, Document)
    assert [pair["answer"] for pair in document.meta["pairs"]] == ["number 1"]
    assert document.meta["pairs"][0]["verified"] is True and document.meta["pairs"][0]["scores"]
    (rejected,) = found.rejected()
    assert rejected.reason == "strange_number" and rejected.meta["document"] == document.id
