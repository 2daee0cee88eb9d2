"""Magpie runs in processes of their own: `python magpie_processes.py` reads tasks, forks a run for each, tells its end.

A task is a line of JSON: {"out", "rows", "seed" (order of completion), "log" (a line is added for each request that is
sent), "pause_s" (per request), "kill_after" ([requests, seconds]: SIGKILL that long after so many), "file_limit" (bytes),
"settings" (more of Magpie's), "personas" (settings of a run of personas instead), "pairs" (the folder to make pairs
of instead, five rows in a shard)}. The reply is {"status": exit code or minus signal}. The imports are paid for once.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Runs:
    """The process that forks runs, for a test."""

    def __init__(self) -> None:
        path = [str(HERE.parent.parent), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "magpie_processes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )

    def start(self, out: Path, rows: int, **task: Any) -> None:
        """Begins a run; `end` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"out": str(out), "rows": rows, **task}) + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """The exit code of the run begun first, or minus the signal that ended it."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())["status"]

    def run(self, out: Path, rows: int, **task: Any) -> int:
        self.start(out, rows, **task)
        return self.end()


@contextlib.contextmanager
def running() -> Iterator[Runs]:
    runs = Runs()
    try:
        yield runs
    finally:
        runs.process.kill()
        runs.process.communicate()


def _work(task: dict[str, Any]) -> int:
    """The run itself, in the forked process."""
    from ojak.curate import pairs
    from ojak.engines.scripted import ScriptedEngine
    from ojak.errors import OjakError
    from ojak.model.request import Request
    from ojak.synthesize.personas import LABEL, PersonasConfig, synthesize_personas
    from ojak.synthesize.run import synthesize_magpie
    from scripted_runs import Recorder, answers, config

    log = os.open(task.get("log", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(request: Request) -> str:
        os.write(log, (json.dumps(request.tag) + "\n").encode())
        time.sleep(task.get("pause_s", 0))
        return f"{LABEL} {answers(request)}" if "personas" in task else answers(request)

    class Reading(ScriptedEngine):
        def score(self, texts: Any) -> Any:
            for text in texts:
                os.write(log, (json.dumps(text.continuation) + "\n").encode())
                time.sleep(task.get("pause_s", 0))
                yield from super().score([text])

    if limit := task.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        engine = Recorder(logged, shuffle_seed=task.get("seed", 0))
        out = Path(task["out"])
        if source := task.get("pairs"):
            pairs.BATCH = 5
            pairs.make_pairs(source, out, pairs.PairsConfig(by="likelihood"), engine=Reading())
        elif settings := task.get("personas"):
            synthesize_personas(PersonasConfig(model="scripted", out=out, **settings), engine=engine)
        else:
            synthesize_magpie(config(out, task["rows"], **task.get("settings", {})), engine=engine)
    except OjakError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _kill_when(child: int, task: dict[str, Any], before: int) -> None:
    """SIGKILL at the moment that the task names, unless the run ends first."""
    requests, seconds = task["kill_after"]
    log, end = Path(task["log"]), time.monotonic() + 20
    while _lines(log) - before < requests and time.monotonic() < end and not _ended(child):
        time.sleep(0.0005)
    time.sleep(seconds)
    if not _ended(child):
        os.kill(child, signal.SIGKILL)


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _serve() -> None:
    import scripted_runs  # noqa: F401  # so that the runs find it loaded

    for line in sys.stdin:
        task = json.loads(line)
        before = _lines(Path(task["log"])) if "log" in task else 0
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _work(task)
            except BaseException:  # noqa: BLE001  # a forked process must not return into the loop
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        if "kill_after" in task:
            _kill_when(child, task, before)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps({"status": code}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
