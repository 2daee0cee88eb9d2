"""Rows of tokens on disk, memory-mapped; made once for a source and all that shapes its tokens, then verified and kept.

OJAK_HOME/tokens/<key>/ids.u32         token ids, row after row
                       mask.u8         for each id: is it learnt
                       rows.i64        [rows + 1, 3]: where a row begins, its record, how many of its ids are learnt
                       pairs.f64       [rows, 2]: of a pair where its second document begins, and by how much the
                                       score of its first is higher (NaN: nobody says); 0 and NaN for other rows
                       manifest.json   what the key stands for, counts, hashes of the files; written last
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ojak._files import TargetLock, disk_errors, sha256_file, write_atomic
from ojak.errors import Locked
from ojak.model.files import home
from ojak.records import dump_json
from ojak.train.encode import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
FILES = {"ids.u32": np.uint32, "mask.u8": np.bool_, "rows.i64": np.int64, "pairs.f64": np.float64}
COLUMNS = 3
LOOK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class TokenStore:
    """ids uint32[tokens], mask bool[tokens], table int64[rows + 1, 3]; `sha256` is over the files.

    pairs: float64[rows, 2], None where there are no pairs.
    """

    ids: NDArray[np.uint32]
    mask: NDArray[np.bool_]
    table: NDArray[np.int64]
    counts: dict[str, Any]
    sha256: str
    pairs: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.table) - 1


def kept_or_made(
    key: dict[str, Any], make: Callable[[], tuple[Iterable[Row], Callable[[], dict[str, Any]]]]
) -> TokenStore:
    """The store of this key, made where there is none that verifies. Processes that ask at once make it once.

    make: gives the rows, and what returns the counts once all of them were taken. Raises what these raise, and
    ResourceExhausted if the disk is full; a store of no rows is made, but not mapped.
    """
    folder = (
        home() / "tokens" / hashlib.sha256(dump_json(key).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    )
    while (found := _open(folder, key)) is None:
        try:
            with TargetLock(folder):
                if _open(folder, key) is None:
                    _write(folder, key, *make())
        except Locked:  # another process makes it; its lock goes with it, however it ends
            time.sleep(LOOK_AGAIN_S)
    return found


def _open(folder: Path, key: dict[str, Any]) -> TokenStore | None:
    """The store in `folder`, each file's hash checked; None where it is missing, unfinished, damaged or another's."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        hashes, counts = manifest["files"], dict(manifest["counts"])
        if manifest["key"] != key or any(sha256_file(folder / name) != hashes[name] for name in FILES):
            return None
        ids, mask, table, pairs = (_mapped(folder / name, dtype) for name, dtype in FILES.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = pairs.reshape(-1, 2) if pairs[::2].any() else None
    return TokenStore(ids, mask, table.reshape(-1, COLUMNS), counts, _combined(hashes), found)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    if path.stat().st_size == 0:  # which the system does not map
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _combined(hashes: dict[str, str]) -> str:
    return hashlib.sha256("".join(hashes[name] for name in FILES).encode()).hexdigest()


def _write(
    folder: Path, key: dict[str, Any], rows: Iterable[Row], counts: Callable[[], dict[str, Any]]
) -> None:
    """Write the files, a row at a time; the manifest goes first and comes last."""
    (folder / MANIFEST).unlink(missing_ok=True)
    with disk_errors(folder), ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in FILES}
        hashes = {name: hashlib.sha256() for name in FILES}
        for parts in _columns(rows):
            for name, part in zip(FILES, parts, strict=True):
                data = part.tobytes()
                files[name].write(data)
                hashes[name].update(data)
    content = {
        "key": key,
        "counts": counts(),
        "files": {name: digest.hexdigest() for name, digest in hashes.items()},
    }
    write_atomic(folder / MANIFEST, json.dumps(content, indent=2).encode())


def _columns(rows: Iterable[Row]) -> Iterator[tuple[NDArray[Any], ...]]:
    """What each row adds to each file; at the end, the line of the table that says where the last row ends."""
    at = 0
    nothing = np.zeros(0, np.uint32), np.zeros(0, np.bool_)
    for row in rows:
        line = np.array([at, row.record, row.mask.sum()], np.int64)
        yield row.ids, row.mask, line, np.array([row.border, row.gap])
        at += len(row.ids)
    yield *nothing, np.array([at, -1, 0], np.int64), np.zeros(0)
