"""What the benchmarks share: running a command with its time and memory, medians, the machine, results."""

import json
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


class RunFailed(Exception):
    """A command ended badly; the message holds the command, its status and the end of what it said."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One run of a command: its stdout, wall seconds and peak resident bytes (its own or a child's)."""

    stdout: str
    wall_s: float
    peak_rss_bytes: int


def say(text: str) -> None:
    """Talk to stderr; results go to stdout."""
    print(text, file=sys.stderr, flush=True)


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, limit_s: float = 3600.0) -> Finished:
    """Runs `command` to its end in a process group of its own, which is ended with us.

    Raises RunFailed when the command cannot start, fails, or runs longer than `limit_s`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdout=out, stderr=errors, env=env, start_new_session=True)
        except OSError as error:
            raise RunFailed(f"{command[0]} could not be started: {error}") from error
        try:
            status, peak = _wait(process, limit_s)
        finally:
            _end_group(process)
        wall = time.perf_counter() - start
        if status != 0:
            how = f"ran past {limit_s:.0f} s" if wall >= limit_s else f"ended with {status}"
            raise RunFailed(f"{' '.join(command)} {how}: {(_text(errors) or _text(out))[-1500:].strip()}")
        return Finished(_text(out), wall, peak)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> tuple[int, int]:
    """(exit status, peak resident bytes); wait4 tells the memory, a timer ends what runs too long."""
    timer = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the command's process group: a server it started would disturb the next run."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        if process.returncode is None:
            process.wait(10)
    except ProcessLookupError:
        return
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", errors="replace")


def json_object(text: str) -> dict[str, Any]:
    """The JSON object on the last line of `text`. Raises RunFailed when there is none."""
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        found = _whole(text)
    if not isinstance(found, dict):
        raise RunFailed(f"no JSON object at the end of the output: {text[-300:]!r}")
    return found


def _whole(text: str) -> Any:
    """An object printed over several lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum and maximum, with the values themselves."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "values": [round(value, 4) for value in values],
    }


def machine() -> dict[str, Any]:
    """The hardware, as far as the kernel and nvidia-smi tell it."""
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"model name\s*:\s*(.+)", info)
    flags = re.search(r"^flags\s*:\s*(.+)", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(encoding="utf-8"))
    return {
        "cpu": name.group(1).strip() if name else platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in present],
        "cores": os.cpu_count(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "gpu": _gpu(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.strip().splitlines()[0] if found.returncode == 0 and found.stdout.strip() else None


def keep_to_cores(count: int) -> list[int]:
    """Holds this process and all it will start to the first `count` CPUs it may use; returns them."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return cores


def child_environment(threads: int, *, device: str, tuned_malloc: bool) -> dict[str, str]:
    """The environment that every measured command gets, so that all run on equal terms."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    env["PYTHONUNBUFFERED"] = "1"
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    if (
        tuned_malloc
    ):  # glibc keeps freed memory instead of handing it back to the kernel and faulting it in anew
        env.update(MALLOC_MMAP_THRESHOLD_=str(8 << 30), MALLOC_TRIM_THRESHOLD_=str(16 << 30))
    return env


def slug(text: str) -> str:
    """`text` as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def update_results(path: pathlib.Path, sections: Mapping[str, Any]) -> None:
    """Puts `sections` into the JSON file at `path`, keeping the sections that are already there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**held, **sections}, indent=1) + "\n", encoding="utf-8")
    part.rename(path)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with its columns padded."""
    every = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in every
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
