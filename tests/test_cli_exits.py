"""How commands end: an exit code and a message for every error, signals, closed pipes, odd terminals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ojak import artifact, errors
from ojak.artifact import Artifact, publish, verify
from ojak.cli.app import app
from ojak.cli.exits import Terminated
from ojak.errors import InputRefused, OjakError, Stopped
from ojak.records import Conversation, Message, Rejected

COMMAND = [sys.executable, "-m", "ojak"]
HOSTILE = "a\x1b[31mred\x1b]0;owned\x07 \u202eevil\u202c \x9b5m [bold]x[/bold] \r\x00\u200b end"
RECIPE = "version: 1\nname: small\nstages:\n  magpie: {model: scripted, rows: 12}\n  split: {test: 0.25}\n  report:\n"


pytestmark = pytest.mark.usefixtures("folder")


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def pairs(out: str = "d", text: str = "hello") -> Artifact:
    turns = [Message(role="user", content=text), Message(role="assistant", content=text)]
    bad = Rejected("bad\x1b[2J", "too\x1b_short", "magpie", text)
    return publish(
        Path(out),
        kind="magpie",
        records=[Conversation(f"id-{i}", turns) for i in range(3)],
        rejected=[bad],
        config={},
    )


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--personas", "no.txt"), "--personas cannot be 'no.txt': there is no such file"),
        (("--url", "http://169.254.169.254"), "'http://169.254.169.254' is not asked; link-local"),
    ],
)
def test_a_wrong_value_is_told_as_it_was_given(flags: tuple[str, str], said: str) -> None:
    result = ojak("synthesize", "magpie", "--model", "scripted", "--rows", "2", "--out", "d", *flags)
    assert result.exit_code == 2
    assert said in result.stderr


def kinds() -> list[type[OjakError]]:
    """Every class of error that `ojak.errors` defines."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OjakError)]


RAISED: list[tuple[BaseException, int]] = [
    *(
        (kind("it broke", why="of rust", fix="oil it"), kind.exit_code)
        for kind in kinds()
        if kind is not Stopped
    ),
    (Stopped(signal.SIGINT, "it broke", why="of rust", fix="oil it"), 130),
    (Stopped(signal.SIGTERM, "it broke", why="of rust", fix="oil it"), 143),
]


@pytest.mark.parametrize(("error", "code"), RAISED, ids=lambda value: type(value).__name__)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise error

    monkeypatch.setattr(artifact, "verify", fail)
    result = ojak("verify", "d")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: it broke\n  why: of rust\n  fix: oil it\n"


def test_the_table_of_exit_codes() -> None:
    assert {kind.__name__: kind.exit_code for kind in kinds() if kind is not Stopped} == {
        "OjakError": 1, "UsageError": 2, "TargetExists": 2, "PartialResult": 3, "ResumeRefused": 4,
        "EngineUnavailable": 5, "ResourceExhausted": 6, "VerificationFailed": 7, "Locked": 8, "InputRefused": 9,
        "Diverged": 10,
    }  # fmt: skip


class OutOfMemoryError(RuntimeError):
    """torch's has this name."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("odd\nsecond line"), 1, "unexpected ValueError: odd"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'"),
        (AssertionError(), 1, "unexpected AssertionError: no message"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "the system refused: [Errno 13] Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "no space left"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 6, "no space left"),
        (MemoryError(), 6, "out of memory"),
        (OutOfMemoryError("CUDA out of memory"), 6, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_other_errors(error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise error

    monkeypatch.setattr(artifact, "verify", fail)
    result = ojak("verify", "d")
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "second line" not in result.stderr
    monkeypatch.setenv("OJAK_DEBUG", "1")
    assert code in (130,) or "Traceback" in ojak("verify", "d").stderr


def test_error_messages_let_nothing_act(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise InputRefused(f"bad {HOSTILE}", why="[red]markup[/red]")

    monkeypatch.setattr(artifact, "verify", fail)
    said = ojak("verify", "d").stderr
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "[red]markup[/red]" in said


# ------------------------------------------------------------------------------------------------------ real processes


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_cleanly_and_can_be_resumed(number: int, code: int) -> None:
    Path("r.yaml").write_text(RECIPE.replace("rows: 12", "rows: 5000"), "utf-8")
    process = start("run", "r.yaml")
    assert process.stderr is not None
    try:
        begun = next(text for text in process.stderr if "/5,000 rows" in text)
        time.sleep(0.3)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert begun.startswith("sampling")
    assert (process.returncode, stdout) == (code, ""), stderr
    assert "Traceback" not in stderr
    assert "error: stopped" in stderr
    assert 0 < verify("runs/small/magpie").counts["rows"] < 5000
    plan = ojak("run", "r.yaml", "--dry-run").stdout.splitlines()
    assert plan == ["magpie: it was interrupted", "split: it has not run yet", "report: it has not run yet"]


def test_sigterm_frees_what_is_held_on_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []

    def slow(_path: Path) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            left.append("left")

    monkeypatch.setattr(artifact, "verify", slow)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a process that ignores it would sleep on
    try:
        result = ojak("verify", "d")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.exit_code, left) == (143, ["left"])
    assert "stopped by SIGTERM" in result.stderr


@pytest.mark.parametrize(
    ("interrupt", "code", "name"), [(KeyboardInterrupt, 130, "Ctrl-C"), (Terminated, 143, "SIGTERM")]
)
def test_an_error_on_the_way_out_of_an_interrupt_is_the_interrupt(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[KeyboardInterrupt], code: int, name: str
) -> None:
    """As where a second signal comes while a lock is being taken back."""

    def broken(*_: object, **__: object) -> None:
        lock = threading.Lock()
        with lock:
            lock.release()
            raise interrupt

    pairs()
    monkeypatch.setattr(artifact, "verify", broken)
    result = ojak("verify", "d")
    assert (result.exit_code, f"stopped by {name}" in result.stderr) == (code, True)
    assert "defect" not in result.stderr


INTERRUPTED = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
real = builtins.__import__
def load(name, *more):
    if name == {name!r}:
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *more)
builtins.__import__ = load
sys.argv = ["ojak", "--version"]
from ojak.cli import main
main()
"""


@pytest.mark.parametrize("name", ["ojak.cli.app", "typer", "importlib.metadata"])
def test_ctrl_c_while_the_program_loads(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(name=name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: stopped by Ctrl-C\n"


def test_ctrl_c_is_ignored_where_the_shell_said_so() -> None:
    script = INTERRUPTED.format(name="typer").replace(
        "real =", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nreal ="
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    turns = [Message(role="user", content="x" * 5000), Message(role="assistant", content="y" * 5000)]
    publish(Path("d"), kind="test", records=[Conversation(str(i), turns) for i in range(200)], config={})
    process = start("show", "d", "--rows", "0")
    assert process.stdout is not None and process.stderr is not None
    with process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_terminal_without_unicode() -> None:
    pairs(text="Brücke \u2713 까치")
    process = start("show", "d", PYTHONIOENCODING="ascii", LC_ALL="C")
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert "Br\\xfccke \\u2713 \\uae4c\\uce58" in stdout


def test_errors_are_all_covered() -> None:
    assert {type(error) for error, _ in RAISED} == set(kinds())
