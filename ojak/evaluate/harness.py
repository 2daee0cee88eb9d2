"""lm-evaluation-harness on a model of ojak's: in a process of its own, on local tasks, with no network and no cache.

The field's own program reads the tasks and works out the figures; the answers are our engine's (`harness_model.py`). It
gets a home that goes again with it, so that what its libraries keep (tables of rows, no pickles) does not stay.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ojak import errors
from ojak.errors import OjakError, UsageError
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.harness_tasks import Task, read_tasks
from ojak.model.load import read_source

CHILD = "ojak.evaluate.harness_child"
LAST_LINES = 12  # of what a failed process said
SAID_BYTES = 16_384
OFFLINE = (
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE", "OJAK_OFFLINE",
    "LMEVAL_DISABLE_MULTIPROC", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_DISABLE_PROGRESS_BARS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HarnessFigures:
    """identity: of the engine that answered. tasks: {task: {metric: {"value", "stderr"}}}, stderr None where there is
    none. values: those of each row, by (task, metric), where they are numbers."""

    identity: dict[str, Any]
    tasks: dict[str, dict[str, dict[str, float | None]]]
    values: dict[tuple[str, str], list[float]]


def check_harness(config: EvaluateConfig) -> list[Task]:
    """The tasks that the settings name, before any work. Raises UsageError, also where lm-eval is not installed."""
    if not config.harness:
        if config.harness_tasks is not None:
            raise UsageError(
                "which tasks of --harness-tasks?", fix="name them after --harness, with commas between them"
            )
        return []
    if config.harness_tasks is None:
        raise UsageError(
            "where are the tasks of --harness?",
            why="they are read from a folder on this machine, with their rows; nothing is fetched",
            fix="give --harness-tasks DIR (docs/evaluate.md)",
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "--harness needs lm-evaluation-harness, which is not installed", fix="pip install 'ojak[eval]'"
        )
    return read_tasks(Path(config.harness_tasks), config.harness)


def run_harness(
    model: str, tasks: list[Task], config: EvaluateConfig, notify: Callable[[str], None]
) -> HarnessFigures:
    """The figures of the tasks for a model. Raises what loading the model raises, OjakError if the process fails."""
    read_source(model, accept_license=config.accept_license, notify=notify)  # the process does not fetch
    request = {
        "model": model, "tasks": tasks, "limit": config.limit, "dtype": config.dtype,
        "accept_license": list(config.accept_license),
    }  # fmt: skip
    notify(f"lm-evaluation-harness: {', '.join(config.harness)}")
    with tempfile.TemporaryDirectory(prefix="ojak-harness-") as home:
        found = _asked(Path(home), request)
    figures = found["tasks"]
    return HarnessFigures(
        found["identity"],
        {
            task: {name: {"value": each["value"], "stderr": each["stderr"]} for name, each in metrics.items()}
            for task, metrics in figures.items()
        },
        {(task, name): each["values"] for task, metrics in figures.items() for name, each in metrics.items()},
    )


def _asked(home: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Runs the process. Raises the error that it reports, or OjakError with the last of what it said."""
    asked, answer, said = home / "request.json", home / "result.json", home / "stderr"
    asked.write_text(json.dumps(request), "utf-8")
    with said.open("wb") as stderr:
        code = _run([sys.executable, "-P", "-m", CHILD, str(asked), str(answer)], _environment(home), stderr)
    if code or not answer.is_file():
        raise OjakError(
            f"lm-evaluation-harness ended with code {code}",
            why=_last_lines(said) or "it said nothing",
            fix="look at the task's settings; lm-eval's documentation has their meaning",
        )
    found = json.loads(answer.read_text("utf-8"))
    if "error" in found:
        name, what, why, fix = found["error"]
        raise getattr(errors, name)(what, why=why, fix=fix)
    return found


def _run(command: list[str], environment: dict[str, str], stderr: IO[bytes]) -> int:
    """The exit code. The process ends when this one is interrupted."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, env=environment
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment(home: Path) -> dict[str, str]:
    """What the process sees: no hub, no cache but one that goes with it."""
    caches = {name: str(home / name.lower()) for name in ("HF_HOME", "LM_HARNESS_CACHE_PATH")}
    cleared = (
        "HF_DATASETS_CACHE",
        "HF_MODULES_CACHE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "LMEVAL_LOG_LEVEL",
    )
    kept = {name: value for name, value in os.environ.items() if name not in cleared}
    return {**kept, **dict.fromkeys(OFFLINE, "1"), **caches, "TOKENIZERS_PARALLELISM": "false"}


def _last_lines(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SAID_BYTES))
        text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    return "\n".join([line for line in text.splitlines() if line.strip()][-LAST_LINES:])
