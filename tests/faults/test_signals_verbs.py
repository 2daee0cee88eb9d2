"""SIGTERM and Ctrl-C end every verb that works long, soon, while its engine has minutes of prompts before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from ojak.engines.scripted import ScriptedEngine
from ojak.synthesize.run import synthesize_magpie
from scripted_runs import config

HERE = Path(__file__).resolve().parent
PATH = [str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
SOON_S = (
    10.0  # of them, most go to a busy machine; without a way out of the prompts it would be a minute and more
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = replace(tiny.model(adds_bos=False, max_position_embeddings=8192), chat_template=TEMPLATE)
    return made.save(tmp_path_factory.mktemp("model") / "tiny")


def stopped(folder: Path, words: str, number: signal.Signals, times: int) -> tuple[int, str, float]:
    """A verb that is stopped once its engine is at work: exit code, stderr, seconds from the signal to the end."""
    mark = folder / "at-work"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "slow_ojak.py"), *words.split()],
        env={**os.environ, "OJAK_TEST_MARK": str(mark), "PYTHONPATH": os.pathsep.join(PATH)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not mark.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)
        assert process.poll() is None, process.communicate()[1]
        begin = time.monotonic()
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.03)  # the second one finds it on its way out
        _, told = process.communicate(timeout=60)
        return process.returncode, told, time.monotonic() - begin
    finally:
        process.kill()


def check(folder: Path, words: str, number: signal.Signals = signal.SIGTERM, times: int = 1) -> None:
    code, told, seconds = stopped(folder, words, number, times)
    # A second signal may come when all is said and the interpreter ends: a shell says the same of that.
    assert (code if code >= 0 else 128 - code, "Traceback" in told) == (128 + number, False), told
    assert code >= 0 or times > 1
    assert "stopped" in told
    assert seconds < SOON_S


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_judge_calibrate(folder: Path, model: Path, number: signal.Signals, times: int) -> None:
    check(folder, f"judge calibrate --model {model} --rows 10", number, times)
    assert not list((folder / "home" / "calibration").iterdir()), "nothing was finished, nothing is left"


def test_curate_with_a_judge(folder: Path, model: Path) -> None:
    rows = [
        {"instruction": f"Say {i} words. " * 40, "input": "", "output": "word " * i} for i in range(1, 40)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "r.yaml").write_text(
        "version: 1\nname: r\nrules: [{min_tag: {tag: difficulty, value: easy}}]\n"
    )
    check(folder, f"curate rows.json --recipe r.yaml --model {model} --trust-anyway --out out")
    assert not (folder / "out" / "manifest.json").exists()


def test_pairs_by_a_judge(folder: Path, model: Path) -> None:
    synthesize_magpie(config(folder / "rows", 60, responses=3), engine=ScriptedEngine())
    check(folder, f"pairs rows --by judge_score --model {model} --trust-anyway --out out")
    assert not (folder / "out" / "manifest.json").exists()


def test_personas(folder: Path, model: Path) -> None:
    (folder / "texts.txt").write_text("\n\n".join(f"{n} " + "A text about the sea. " * 60 for n in range(40)))
    check(folder, f"synthesize personas --model {model} --source texts.txt --out out")
    assert json.loads((folder / "out" / "manifest.json").read_text())["stats"]["stopped"] == "signal"
