"""Every error that ojak raises on purpose, and the exit code that the command line gives it.

    OjakError                 1   unexpected, or of no other kind
    ├── UsageError            2   a flag, an argument or a recipe is wrong
    │   └── TargetExists      2   the output is there already and nothing may be overwritten
    ├── PartialResult         3   finished, but with less than was asked for (a budget stopped it)
    ├── ResumeRefused         4   the folder holds a run with other settings
    ├── EngineUnavailable     5   the engine or endpoint does not answer; try again later
    ├── ResourceExhausted     6   out of disk or memory
    ├── VerificationFailed    7   an artifact is not what its manifest says
    ├── Locked                8   another process works in this folder
    ├── InputRefused          9   a model, template or data set is refused
    └── Stopped             130   stopped by Ctrl-C (130) or SIGTERM (143); what is done is kept

A message says what happened, why, and what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OjakError(Exception):
    """An error with a message for a person: what happened, why, and what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what, self.why and f"  why: {self.why}", self.fix and f"  fix: {self.fix}"]
        return "\n".join(line for line in lines if line)


class UsageError(OjakError):
    exit_code = 2


class TargetExists(UsageError):
    pass


class PartialResult(OjakError):
    exit_code = 3


class ResumeRefused(OjakError):
    exit_code = 4


class EngineUnavailable(OjakError):
    exit_code = 5


class ResourceExhausted(OjakError):
    exit_code = 6


class VerificationFailed(OjakError):
    exit_code = 7


class Locked(OjakError):
    exit_code = 8


class InputRefused(OjakError):
    exit_code = 9


class Diverged(OjakError):
    exit_code = 10


class Stopped(OjakError):
    """Stopped from outside by a signal; `exit_code` is 128 + the signal's number.

    `facts` says what was kept, in the words of `--json`.
    """

    def __init__(
        self,
        signal_number: int,
        what: str = "stopped",
        *,
        why: str = "",
        fix: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.signal_number, self.facts = signal_number, dict(facts or {})

    @property
    def exit_code(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 128 + self.signal_number


def is_disk_full(error: OSError) -> bool:
    """Whether `error` says that a disk, a quota or a file size limit is exhausted."""
    return error.errno in DISK_FULL
