"""Puts a finished set of files and folders in the place of an earlier set, all of them or none.

Several names cannot be renamed in one step. So a journal says what is under way, the earlier set is moved
aside, the new one takes its place with the manifest last, and only then the journal goes. Whoever finds a
journal, after a crash, undoes the swap: the earlier set is back, as if the new one had never been.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ojak._files import OWNER_FILE, fsync_dir, remove, temporary_names, write_atomic
from ojak.errors import VerificationFailed

JOURNAL = ".swap.json"
STAGING_PREFIX, PREVIOUS = ".staging-", ".previous"


def swap_in(out: Path, staging: Path, names: tuple[str, ...]) -> None:
    """Move `names` (those that exist) from `staging` to `out`, in their order, in the place of what is there.

    What `staging` lacks is then missing in `out`, too. After a failure `out` is as it was before; only if the
    very last sync fails, the new set is in place already.
    """
    had = [name for name in names if os.path.lexists(out / name)]
    previous = out / PREVIOUS
    try:
        write_atomic(out / JOURNAL, json.dumps({"had": had}).encode())
        previous.mkdir()
        for name in reversed(had):
            os.replace(out / name, previous / name)
        fsync_dir(previous)
        for name in names:
            if os.path.lexists(staging / name):
                os.replace(staging / name, out / name)
                fsync_dir(out)
    except BaseException:
        undo(out, names)
        raise
    (out / JOURNAL).unlink()
    fsync_dir(out)
    remove(previous)


def undo(out: Path, names: tuple[str, ...]) -> None:
    """Undo a swap of `names` that did not finish, and remove what killed writers left. May be interrupted."""
    journal = out / JOURNAL
    if journal.exists():
        had = _had(journal)
        for name in names:
            _restore(out, name, name in had)
        fsync_dir(out)
        journal.unlink()
        fsync_dir(out)
    remove(out / PREVIOUS)
    for pattern in (f"{STAGING_PREFIX}*", temporary_names(JOURNAL), temporary_names(OWNER_FILE)):
        for leftover in out.glob(pattern):
            remove(leftover)


def _restore(out: Path, name: str, had: bool) -> None:
    earlier = out / PREVIOUS / name
    if os.path.lexists(earlier):
        remove(out / name)
        os.replace(earlier, out / name)
    elif not had:
        remove(out / name)


def _had(journal: Path) -> list[str]:
    try:
        had = json.loads(journal.read_bytes())["had"]
        if not isinstance(had, list):
            raise TypeError("its list of names is of another type")
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(
            f"{journal} is damaged", why=str(error), fix="move the folder away and start in a new one"
        ) from error
    return had
