"""`ojak corpus` and the stage of the same name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raw_files import web_texts

from ojak.artifact import Artifact
from ojak.corpus.config import CorpusConfig
from ojak.stages import BY_NAME, Job

ROOT = Path(__file__).resolve().parent.parent.parent


def ojak(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "ojak", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_verb(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, text in enumerate(web_texts(22)):
        (tmp_path / f"in/{number:02d}.txt").write_text(text, "utf-8")
    done = ojak("corpus", "in", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["documents_in"] == 22 == facts["kept"] + sum(facts["rejected"].values())
    assert facts["kept"] >= 2
    assert facts["rejected"]["c4.curly_bracket"] == 1
    again = ojak("corpus", "in", "--out", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    wrong = ojak("corpus", "gone", "--out", "other", cwd=tmp_path)
    assert wrong.returncode == 2
    assert not (tmp_path / "other").exists()


def test_without_the_libraries_nothing_is_left_behind(tmp_path: Path) -> None:
    """A folder in front of the path hides spaCy."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("A text of a few words.", "utf-8")
    (tmp_path / "hides").mkdir()
    (tmp_path / "hides/spacy.py").write_text("raise ModuleNotFoundError('no spacy', name='spacy')", "utf-8")
    path = os.pathsep.join(
        [str(tmp_path / "hides"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "ojak", "corpus", "in", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "spacy" in done.stderr
    assert "ojak[corpus]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_stage(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text of a few words.", "utf-8")
    settings = CorpusConfig(paths=(tmp_path / "a.txt",), profile="none", workers=1)
    outcome = BY_NAME["corpus"].run(Job(settings, tmp_path / "out"))
    assert outcome.facts["kept"] == 1
    assert Artifact.open(tmp_path / "out").kind == "corpus"


def test_nothing_kept_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("", "utf-8")
    done = ojak("corpus", "in.txt", "--out", "out", "--profile", "none", "--workers", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert "no documents came out of 1 rows" in done.stderr
    assert "empty" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--language", "english"], "no code of a language"),
        (["--educational", "nope"], "no file of scored texts"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_read(tmp_path: Path, wrong: list[str], said: str) -> None:
    (tmp_path / "in.txt").write_text("A text.", "utf-8")
    done = ojak("corpus", "in.txt", "--out", "out", *wrong, cwd=tmp_path)
    assert done.returncode == 2
    assert wrong[0] in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
