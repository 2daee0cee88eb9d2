"""Pairs by rules in processes of their own: as many as there are, the same artifact; a process that ends is named."""

from __future__ import annotations

import os
import pydoc_data.topics
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from ojak.artifact import Artifact, publish
from ojak.augment import rules_crew
from ojak.augment.config import AugmentConfig
from ojak.augment.rounds import Work
from ojak.augment.rules_crew import RulesCrew
from ojak.augment.run import augment_data
from ojak.augment.verify import VerifyConfig
from ojak.errors import OjakError
from ojak.records import Document
from ojak.rules.rule import MAX_CHARACTERS

HALF = "\ud800"  # half a character, which JSON lines can hold and UTF-8 cannot


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes from the second document on, three documents at a time."""
    monkeypatch.setattr(rules_crew, "FEW", 2)
    monkeypatch.setattr(rules_crew, "BATCH", 3)


def documents() -> list[Document]:
    texts = [text[:1500] for _, text in sorted(pydoc_data.topics.topics.items())[:20]]
    return [Document(f"d\u00fc-{n}", text, "s") for n, text in enumerate([*texts, "", "Kein Satz"])]


@pytest.mark.usefixtures("few")
def test_the_artifact_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    made = publish(tmp_path / "in", kind="corpus", records=documents(), config={})

    def rows(name: str, **changes: object) -> tuple[list[object], list[object], object]:
        found = augment_data(made, tmp_path / name, AugmentConfig(**changes))  # type: ignore[arg-type]
        return list(found.records()), list(found.rejected()), Artifact.open(found.path).manifest["config"]

    short = VerifyConfig(most_answer_chars=20)  # so that something is discarded
    alone = rows("1", workers=1, verify=short)
    assert rows("3", workers=3, verify=short) == alone and alone[1]
    assert any(isinstance(each, Document) and each.meta["pairs"] for each in alone[0])
    assert (
        rows("3-unchecked", workers=3, verify=False)[:2] == rows("1-unchecked", workers=1, verify=False)[:2]
    )


@pytest.mark.usefixtures("few")
def test_half_a_character_stays_here() -> None:
    texts = [
        *(document.text for document in documents()[:4]),
        f"The town of Ulm has {HALF} towers. Ulm is old.",
    ]
    found = []
    for size in (1, 2):
        works = [Work(Document(f"d-{n}", text, ""), "", 0) for n, text in enumerate(texts)]
        done = Counter[str]()
        with RulesCrew(0, 8, VerifyConfig(), size) as crew:
            crew.work(works, lambda documents, _, done=done: done.update(documents=documents))
        assert done["documents"] == len(works)
        found.append([(work.pairs, work.discarded, work.pieces) for work in works])
    assert found[0] == found[1]


@pytest.mark.usefixtures("few")
def test_a_batch_that_fills_the_socket_both_ways_is_no_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = socket.socketpair

    def narrow() -> tuple[socket.socket, socket.socket]:
        made = pair()
        for each in made:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return made

    monkeypatch.setattr(socket, "socketpair", narrow)
    monkeypatch.setattr(rules_crew, "BATCH", 40)
    monkeypatch.setattr(rules_crew, "CPU_S", 2.0)  # a deadlock would be given up after four times that
    texts = [text[:3000] for text in pydoc_data.topics.topics.values() if len(text) > 3000][:40]
    works = [Work(Document(f"d-{n}", text, ""), "", 0) for n, text in enumerate(texts)]
    with RulesCrew(0, 1000, None, 2) as crew:
        crew.work(works)
    assert all(work.pieces == 1 for work in works) and sum(len(work.pairs) for work in works) > 400


@pytest.mark.usefixtures("few")
def test_what_rules_do_not_read_is_not_sent() -> None:
    text = "The town of Ulm lies on the Danube. " * 3000
    works = [[Work(Document(f"d-{n}", f"{n} {text}", ""), "", 0) for n in range(2)] for _ in range(2)]
    for size, each in enumerate(works, 1):
        with RulesCrew(0, 8, VerifyConfig(), size) as crew:
            crew.work(each)
    assert len(text) > MAX_CHARACTERS
    assert [work.pairs for work in works[0]] == [work.pairs for work in works[1]]


@pytest.mark.usefixtures("few")
def test_a_process_that_ends_is_told_with_its_document(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [Work(document, "", 0) for document in documents()]
    with RulesCrew(0, 8, None, 1) as crew:
        crew._size = 2
        started = crew._started

        def dead() -> object:
            child = started()
            os.kill(child._process.pid, signal.SIGKILL)
            return child

        monkeypatch.setattr(crew, "_started", dead)
        with pytest.raises(OjakError, match=r"pairs of document 'd\u00fc-\d+' ended") as error:
            crew.work(works)
    assert "the process ended with -9" in str(error.value.why) and "run the same command again" in str(
        error.value.fix
    )
