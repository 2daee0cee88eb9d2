"""kill -9 while a corpus is read: no part that is whole is read again, none is lost, the result is the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ojak.artifact import verify
from scripted_runs import data

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS, FILES, ROWS = 7, 30, 6
RUN = """
import sys
from pathlib import Path
from ojak.corpus import crew, shards
from ojak.corpus.config import CorpusConfig
from ojak.corpus.run import make_corpus
shards.DOCUMENTS_PER_PART, crew.BATCH_DOCUMENTS = 7, 3
make_corpus(CorpusConfig(paths=(Path(sys.argv[1]),), profile="none", workers=2), sys.argv[2])
"""


def source(root: Path) -> None:
    """Files of one document and of several, good and bad, in turn."""
    root.mkdir()
    for number in range(FILES):
        text = f"Text number {number} of the corpus, with the words that make it a text of its own. " * 9
        if number % 3 == 0:
            lines = [json.dumps({"text": f"{row} {text}"}) if row != 4 else "broken" for row in range(ROWS)]
            (root / f"{number:02d}.jsonl").write_text("\n".join(lines), "utf-8")
        else:
            (root / f"{number:02d}.txt").write_text(text if number % 5 else "", "utf-8")


def started(root: Path, out: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", RUN, str(root), str(out)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


def whole_parts(out: Path) -> dict[str, str]:
    """The hash of every file of the parts that are whole."""
    stems = [note.name.removesuffix(".json") for note in out.glob(".corpus-*/*.json")]
    paths = [path for path in out.glob(".corpus-*/*") if path.name.partition(".")[0] in stems]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def killed(root: Path, out: Path, parts: int, seconds: float) -> None:
    """A run that is killed so long after it has written so many more parts, or while it writes the result."""
    before = len(list(out.glob(".corpus-*/*.json")))
    process, deadline = started(root, out), time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(out.glob(".corpus-*/*.json"))) >= before + parts:
            break
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kills_change_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    root, draw, out = tmp_path / "in", random.Random(11), tmp_path / "killed"
    source(root)
    assert started(root, tmp_path / "whole").wait(60) == 0
    known: dict[str, str] = {}
    seen: list[int] = []
    for _ in range(KILLS):
        killed(root, out, draw.randrange(1, 3), draw.uniform(0, 0.003))
        now = whole_parts(out)
        assert known.items() <= now.items(), "a part that was whole was written again"
        known = now
        seen.append(len(now))
        assert not (out / "manifest.json").exists()
    assert len(set(seen)) > 4, "the kills came at the same moment"
    assert started(root, out).wait(60) == 0
    assert data(verify(out)) == data(verify(tmp_path / "whole"))
    counts = verify(out).counts
    assert counts["rows"] == 10 * ROWS + 20
    assert counts["rejected"] == {"bad_row": 10, "empty": 4}
    left = {".lock", "data", "rejected", "README.md", "manifest.json"}
    assert {item.name for item in out.iterdir()} <= left
