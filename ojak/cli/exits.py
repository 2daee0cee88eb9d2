"""How a command ends: the exit code and the message for every error. `ojak.errors` has the table of the codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from ojak.errors import OjakError, ResourceExhausted, Stopped, UsageError, is_disk_full

VERBS = (
    "models", "tokenizer", "corpus", "synthesize", "augment", "judge", "curate", "explain", "pairs", "lift",
    "pretrain-mix", "distil", "train", "merge", "evaluate", "verify", "show", "export-data", "run", "ablate", "report",
    "push", "serve", "chat", "export", "doctor",
)  # fmt: skip
OUT_OF_MEMORY = (
    "MemoryError",
    "OutOfMemoryError",
)  # the second is torch's, which must not be imported for its name


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the work stands: like Ctrl-C, and past everything that deals with errors."""


class Group(TyperGroup):
    """The group at the top: whatever a verb raises passes through here once. Verbs are listed in flow order."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in VERBS if name in self.commands]

    def invoke(self, ctx: Any) -> Any:
        with ended(), terminated():
            return super().invoke(ctx)


@contextmanager
def terminated() -> Iterator[None]:
    """Turn SIGTERM into Terminated, Ctrl-C into KeyboardInterrupt: files are closed, locks freed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _stop)}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def stopped_by(interrupt: KeyboardInterrupt) -> Stopped:
    """The error for an interrupt."""
    terminated = isinstance(interrupt, Terminated)
    number, name = (signal.SIGTERM, "SIGTERM") if terminated else (signal.SIGINT, "Ctrl-C")
    return Stopped(number, f"stopped by {name}", fix="run the same command again to go on")


@contextmanager
def ended() -> Iterator[None]:
    """Turn errors into a message on stderr and `typer.Exit` with the right code. Usage errors of typer's own pass."""
    try:
        yield
    except OjakError as error:
        _tell(error)
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError as error:  # the reader has seen enough (`ojak show d | head`)
        _close_stdout()
        raise typer.Exit(128 + signal.SIGPIPE) from error
    except KeyboardInterrupt as error:
        stopped = stopped_by(error)
        _tell(stopped)
        raise typer.Exit(stopped.exit_code) from error
    except (typer.Exit, typer.Abort, TyperException):
        raise
    except Exception as error:
        translated = _translated(error)
        _tell(translated, None if isinstance(translated, Stopped) else error)
        raise typer.Exit(translated.exit_code) from error


def _translated(error: Exception) -> OjakError:
    """The error for a person, for one that ojak did not raise on purpose."""
    from ojak._files import is_refused
    from ojak.model.files import home

    if interrupt := _interrupt_behind(error):
        return stopped_by(interrupt)
    first = (str(error).strip() or "no message").splitlines()[0][:500]
    if isinstance(error, OSError) and is_disk_full(error):
        return ResourceExhausted("no space left", why=first, fix="make room and run the same command again")
    if type(error).__name__ in OUT_OF_MEMORY:
        return ResourceExhausted(
            "out of memory", why=first, fix="close other programs, or use a smaller model"
        )
    if isinstance(error, OSError) and is_refused(error, home()):
        return UsageError(
            f"the cache {home()} cannot be used",
            why=first,
            fix="set OJAK_HOME to a folder that can be written to",
        )
    if isinstance(error, OSError):
        return OjakError(f"the system refused: {first}")
    return OjakError(
        f"unexpected {type(error).__name__}: {first}",
        fix="this is a defect of ojak; run it with OJAK_DEBUG=1 for the traceback, and report it",
    )


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt on whose way out an error came up: a signal may find a lock of Python's own half taken, which then
    cannot be released ("release unlocked lock")."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _tell(error: OjakError, cause: BaseException | None = None) -> None:
    from ojak.cli.terminal import say

    if os.environ.get("OJAK_DEBUG") == "1":
        say("".join(traceback.format_exception(cause or error)))
    say(error, "bold red", "error: ")


def _close_stdout() -> None:
    """Point stdout at nothing, so that flushing it at exit cannot fail again."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
