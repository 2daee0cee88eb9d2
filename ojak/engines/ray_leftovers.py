"""The folder in which a Ray cluster of ours keeps its files, and those that killed drivers left behind.

The driver holds a lock on a file in its folder; the system frees it when the process dies, however that happens.
Whoever begins a cluster next removes the folders whose lock is free, if they belong to the same user. A folder without
such a file is somebody else's, or of a driver that is about to put it there: it stays.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "ojak-ray-"
LOCK = "driver.lock"


class RayFolder:
    """A folder for one cluster, until `remove` or the death of this process."""

    def __init__(self) -> None:
        """Raises OSError where none can be made."""
        import fcntl

        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        begun = self.path / f"{LOCK}.new"
        self._lock = os.open(begun, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        begun.rename(self.path / LOCK)  # nobody ever sees it unlocked while we live

    def remove(self) -> None:
        """Removes it with all that is in it. Again: nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep() -> list[Path]:
    """Removes what killed drivers of this user left in the folder for temporary files; returns what that was."""
    place = Path(tempfile.gettempdir())
    with suppress(OSError):
        return [path for path in sorted(place.glob(f"{PREFIX}*")) if _remove_stale(path)]
    return []


def _remove_stale(path: Path) -> bool:
    """Looks through descriptors, which no link can lead elsewhere; rmtree follows none either."""
    import fcntl

    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return False
        lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
    except OSError:  # its driver lives, or it is none of ours
        return False
    finally:
        os.close(folder)
    return True
