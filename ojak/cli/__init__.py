"""The command line. Each file holds a group of verbs, in the order in which data flow; `main` is the entry point."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit code (`ojak.errors` lists them)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not for a shell's background job
        signal.signal(signal.SIGINT, _leave)
    from ojak.cli.app import app
    from ojak.cli.terminal import prepare_streams

    prepare_streams()
    app(prog_name="ojak")


def _leave(number: int, _frame: FrameType | None) -> None:
    """Ctrl-C before a verb is reached: nothing is open yet, and an exception amid an import can be swallowed."""
    os.write(2, b"error: stopped by Ctrl-C\n")
    os._exit(128 + number)
