"""The checks of `ojak doctor`. Each looks at one thing and says what it found; none changes anything."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ojak.errors import OjakError

OK, NOTE, FAILED = "ok", "note", "failed"
WRITE_BYTES = 16 * 2**20
SLOW_BYTES_PER_S = 20 * 2**20
LITTLE_RAM_BYTES = 1 * 2**30
LITTLE_DISK_BYTES = 1 * 2**30
NETWORK_SECONDS = 30
BREAKS = (OjakError, OSError, ImportError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Check:
    """`state` is OK, NOTE (works, but worth knowing) or FAILED; `fix` says what to do."""

    name: str
    state: str
    found: str
    fix: str = ""

    def line(self) -> str:
        """The check on one line, or two where there is something to do."""
        text = f"{self.state:<7} {self.name:<10} {self.found}"
        return f"{text}\n{'':18} {self.fix}" if self.fix else text

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(*, network: bool = False) -> Iterator[Check]:
    """All checks, one after another; one that breaks counts as failed."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", python),
        ("torch", torch_build),
        ("gpu", gpu),
        ("memory", memory),
        ("disk", disk),
        ("writing", writing),
        ("cache", cache),
        ("models", models),
        ("templates", templates),
    ]
    if network:
        checks.append(("index", index))
    for name, check in checks:
        try:
            yield check()
        except BREAKS as error:
            yield Check(name, FAILED, f"{type(error).__name__}: {str(error).strip()[:300]}")


def python() -> Check:
    return Check("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def torch_build() -> Check:
    from ojak.model.hardware import look

    found = look()
    shown = f"{found.torch_version}, {found.threads} threads, computes in {found.cpu_dtype} on the CPU"
    if found.cpu_dtype != "bfloat16":
        return Check("torch", NOTE, shown, "this CPU has no bfloat16: expect about half the speed")
    return Check("torch", OK, shown)


def gpu() -> Check:
    from ojak.model.hardware import look

    found = look()
    if found.gpu is None:
        return Check("gpu", OK, "none: the CPU is used")
    return Check("gpu", OK, f"{found.gpu}, {_gib(found.free_vram)} of {_gib(found.vram)} free")


def memory() -> Check:
    from ojak.model.hardware import look

    free = look().free_ram
    if free < LITTLE_RAM_BYTES:
        return Check("memory", NOTE, f"{_gib(free)} free", "close other programs, or use the smallest models")
    return Check("memory", OK, f"{_gib(free)} free")


def disk() -> Check:
    from ojak._files import free_bytes
    from ojak.model.files import home

    places = {"here": free_bytes(Path.cwd()), "in the cache": free_bytes(home())}
    found = ", ".join(f"{_gib(free)} free {where}" for where, free in places.items())
    if min(places.values()) < LITTLE_DISK_BYTES:
        return Check("disk", NOTE, found, "make room, or set OJAK_HOME to a folder on another disk")
    return Check("disk", OK, found)


def writing() -> Check:
    """How fast a file of 16 MiB becomes durable in the current folder; it is removed at once."""
    data = os.urandom(WRITE_BYTES)
    begin = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Check(
            "writing", FAILED, f"{Path.cwd()}: {error.strerror}", "work in a folder that can be written to"
        )
    speed = WRITE_BYTES / (time.perf_counter() - begin)
    found = f"{speed / 2**20:,.0f} MiB/s, durable, in the current folder"
    return Check("writing", OK if speed >= SLOW_BYTES_PER_S else NOTE, found)


def cache() -> Check:
    from ojak.model.files import home

    folder = home()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:  # a look at permissions says too little: root may, /proc may not
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        found = f"{folder} cannot be used: {error.strerror}"
        return Check("cache", FAILED, found, "set OJAK_HOME to a folder that can be written to")
    return Check("cache", OK, str(folder))


def models() -> Check:
    from ojak.cli.describe import known_models

    states = [f"{model['name']} {'is here' if model['path'] else 'not fetched'}" for model in known_models()]
    return Check("models", OK, ", ".join(states))


def templates() -> Check:
    from ojak.chat import shared_sandbox

    begin = time.perf_counter()
    rendered = shared_sandbox().render("{{ messages[0].content }}", [{"messages": [{"content": "bridge"}]}])
    seconds = time.perf_counter() - begin
    if rendered != ["bridge"]:
        return Check("templates", FAILED, f"the sandbox rendered {rendered!r}")
    return Check("templates", OK, f"the sandbox renders, {seconds * 1000:.0f} ms to start")


def index() -> Check:
    """Whether the package index answers, as pip is configured here."""
    from ojak.model.known import KNOWN

    package = next(iter(KNOWN.values())).files[0].parts[0].package
    command = [
        sys.executable,
        "-m",
        "pip",
        "index",
        "versions",
        package,
        "--disable-pip-version-check",
        "--no-input",
    ]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=NETWORK_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(
            "index", FAILED, f"no answer within {NETWORK_SECONDS} s", "check the network and pip's settings"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        return Check("index", FAILED, last, "check the network and pip's settings")
    return Check("index", OK, f"the package index answers for {package}")


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
