"""Files that are either there whole or not there: the one place through which durable writes go."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ojak.errors import Locked, ResourceExhausted, TargetExists, UsageError, is_disk_full

if TYPE_CHECKING:
    from types import TracebackType

LOCK_FILE, OWNER_FILE = ".lock", ".lock.json"
OWNER_WAIT_S = 0.2
REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
}  # fmt: skip


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What keeps `path` from being written, as an error for a person; other errors pass.

    ResourceExhausted for "no space left" (also a quota or a file size limit), UsageError for a place where nothing can
    be written.
    """
    try:
        yield
    except OSError as error:
        if is_refused(error, path):
            raise UsageError(
                f"cannot write {path}",
                why=str(error),
                fix="choose another place, or see who may write there",
            ) from error
        if not is_disk_full(error):
            raise
        raise ResourceExhausted(
            f"no space left while writing {path}",
            why=f"{error.strerror or error}; {free_bytes(path) / 2**20:,.0f} MiB are free there",
            fix="make room (or raise the quota or file size limit) and run the same command again",
        ) from error


def is_refused(error: OSError, path: Path) -> bool:
    """Whether `error` says that at `path`, in it, on the way to it or beside it nothing can be written."""
    if error.errno not in REFUSED or not isinstance(error.filename, str):
        return False
    path, place = path.absolute(), Path(error.filename).absolute()
    return place.parent == path.parent or path in (place, *place.parents) or place in path.parents


def free_bytes(path: Path) -> int:
    """Bytes free on the file system that holds `path`, or will hold it; 0 where it cannot be asked."""
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


def fsync_dir(path: Path) -> None:
    """Make the names in the folder `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and make its content durable (not its name: see `fsync_dir`)."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that it holds, whatever happens, the old content or the new. Replaces.

    Raises ResourceExhausted if the disk is full; the old file is then untouched.
    """
    with staged(path) as temporary:
        write_synced(temporary, data)
        os.replace(temporary, path)
    with disk_errors(path):
        fsync_dir(path.parent)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; whatever is left under it afterwards is removed."""
    temporary = path.with_name(temporary_names(path.name)[:-1] + uuid.uuid4().hex)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def temporary_names(name: str) -> str:
    """The pattern of the names that `staged` gives to a file that is to be called `name`."""
    return f".{name[:40]}.tmp-*"


def commit_new(temporary: Path, path: Path) -> None:
    """Give the finished file `temporary` the name `path`; raises TargetExists if that name is taken."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # unlike a rename, a link never replaces what is there
    except FileExistsError:
        raise target_exists(path) from None
    except OSError as error:
        if is_disk_full(error):
            raise
        if path.exists():  # a file system without hard links: the check is all there is
            raise target_exists(path) from None
        os.replace(temporary, path)
    fsync_dir(path.parent)


def target_exists(path: Path, why: str = "") -> TargetExists:
    """The error for a target that is there already."""
    return TargetExists(
        f"{path} exists already",
        why=why,
        fix="choose another name, or move it away",
    )


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove the file, link or folder `path` if it is there; never follows a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class TargetLock:
    """Keeps every other process out of the folder `out` for as long as it is held.

    Use it as a context manager. It never waits: if another process holds the folder, Locked names that
    process. The thread that holds it may take it again. The system frees it when its process dies, however
    that happens. If an error comes before anything was put into a folder that was made for it, the folder goes again.
    """

    def __init__(self, out: Path) -> None:
        from filelock import FileLock

        self._out = Path(out).resolve()
        self._made = [place for place in (self._out, *self._out.parents) if not os.path.lexists(place)]
        with disk_errors(self._out):
            self._out.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._out / LOCK_FILE, timeout=0, is_singleton=True)

    def __enter__(self) -> Self:
        from filelock import Timeout

        try:
            with disk_errors(self._out):
                self._lock.acquire()
        except Timeout:
            raise self._locked() from None
        if self._lock.lock_counter == 1:
            self._write_owner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.lock_counter == 1:
            (self._out / OWNER_FILE).unlink(missing_ok=True)
            if error is not None:
                self._leave_no_trace()
        self._lock.release()

    def _leave_no_trace(self) -> None:
        """Remove the folders that were made for the lock, while it is held, unless something else is in them."""
        with suppress(OSError):
            if self._made and os.listdir(self._out) == [LOCK_FILE]:
                (self._out / LOCK_FILE).unlink()
                for place in self._made:
                    place.rmdir()

    def _write_owner(self) -> None:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        try:
            write_atomic(self._out / OWNER_FILE, json.dumps(owner).encode())
        except BaseException:
            (self._out / OWNER_FILE).unlink(missing_ok=True)
            self._lock.release()
            raise

    def _locked(self) -> Locked:
        owner = _read_owner(self._out / OWNER_FILE)
        return Locked(
            f"another process works in {self._out}",
            why=f"process {owner.get('pid', '?')} on {owner.get('host', '?')} holds it"
            f" since {owner.get('since', 'a moment ago')}",
            fix="wait until it has finished, stop it, or choose another folder",
        )


def _read_owner(path: Path) -> dict[str, Any]:
    """Who holds the lock; waits a little, since the owner takes the lock first and signs it next."""
    deadline = time.monotonic() + OWNER_WAIT_S
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            owner = json.loads(path.read_bytes()[:4096])
            return owner if isinstance(owner, dict) else {}
        time.sleep(0.01)
    return {}
