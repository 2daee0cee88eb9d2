"""What each worker has finished, in ledgers of their own, so that no death makes anyone ask a request again.

A worker commits a completion to its ledger before it reports it. Each life of a worker has a ledger of its own, so that
two processes never write into one file; a lock beside it is held as long as that life lasts. The caller's own record
of the run stays what it is without Ray: what a dead worker, or the workers of a dead run, had finished but not told
comes out of here as if it had just been drawn, and is then recorded like anything else.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ojak._files import disk_errors, remove
from ojak.engines.completions import completion_of
from ojak.errors import Locked, UsageError
from ojak.ledger import Ledger
from ojak.model.request import Completion, Request

LOCK_WAIT_S = 60.0  # for a process that Ray has given up to be gone; some file systems free locks only then
SIGN = "folder-of-this-run"  # a file by which a worker knows that it sees the driver's folder


@contextmanager
def worker_ledger(path: Path | None) -> Iterator[Ledger | None]:
    """A worker's side: its ledger, held until it is closed; None for none.

    Raises UsageError where this machine does not see the folder of the driver.
    """
    if path is None:
        yield None
        return
    if not (path.parent / SIGN).exists():
        raise UsageError(
            f"a worker of Ray does not see {path.parent}",
            why="the run's folder must lie where all machines of the cluster see it",
            fix="choose a folder on a shared file system",
        )
    from filelock import FileLock

    with FileLock(_lock(path), timeout=0), Ledger(path) as ledger:
        yield ledger


class WorkerLedgers:
    """The driver's side: the ledgers in `folder`, None for none. Those of the dead are asked; a context manager.

    For one thread.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder.absolute() if folder else None
        self._former: dict[Path, Ledger] = {}
        self.recalled = 0

    def begin(self) -> None:
        """Makes the folder, and takes up what the workers of an earlier run left there."""
        if self.folder is None:
            return
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / SIGN).touch()
        for path in sorted(self.folder.glob("*.sqlite")):
            self.take_up(path)

    def new_path(self) -> Path | None:
        """Where the next life of a worker keeps its ledger."""
        return self.folder / f"{uuid.uuid4().hex}.sqlite" if self.folder else None

    def take_up(self, path: Path | None) -> None:
        """Opens the ledger of a worker that is gone; one that never began has none. Raises Locked if it is not gone."""
        if path is None or path in self._former or not path.exists():
            return
        from filelock import FileLock, Timeout

        try:
            with FileLock(_lock(path), timeout=LOCK_WAIT_S):
                self._former[path] = Ledger(path)
        except Timeout:
            raise Locked(
                f"a worker of Ray still works on {path}",
                why=f"it was given up {LOCK_WAIT_S:.0f} s ago, but its process lives",
                fix="end that process (or its machine) and run the same command again; what is finished is kept",
            ) from None

    def find(self, request: Request, key: str | None) -> Completion | None:
        """What a worker that is gone had finished of this."""
        if key is None:
            return None
        for ledger in self._former.values():
            entry = ledger.get(key, request.max_tokens)
            if entry:
                self.recalled += 1
                return completion_of(entry, request)
        return None

    def close(self) -> None:
        """Closes the files; what is in them stays for the next run."""
        for ledger in self._former.values():
            ledger.discard_empty()
        self._former.clear()
        if self.folder is not None and not any(self.folder.glob("*.sqlite")):
            self._remove()

    def clear(self) -> None:
        """Removes everything: for when the caller has recorded all there is."""
        self.close()
        self._remove()

    def _remove(self) -> None:
        if self.folder is not None:
            with contextlib.suppress(FileNotFoundError):
                remove(self.folder)


def _lock(path: Path) -> Path:
    return path.with_suffix(".lock")
