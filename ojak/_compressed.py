"""Files that may be packed with gzip or Zstandard, told by their first bytes and unpacked within limits.

A packed file is hostile until it is read: a few kilobytes can stand for terabytes. Reading streams, and stops where
the unpacked bytes pass `MAX_RATIO` times the packed ones (small files have `FREE_BYTES`) or `MAX_UNPACKED_BYTES`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from ojak.errors import InputRefused

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Conversations pack to a tenth; rows that repeat each other to a hundredth. gzip can reach 1,000, Zstandard far more.
MAX_RATIO = 250
FREE_BYTES = 64 * 2**20
MAX_UNPACKED_BYTES = 2**40
BLOCK_BYTES = 256 * 2**10


def packing(path: Path) -> str:
    """ "gzip", "Zstandard", or "" for a file that is neither."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(GZIP):
        return "gzip"
    return "Zstandard" if head == ZSTD else ""


def open_unpacked(path: Path) -> io.BufferedReader:
    """The bytes of `path`, unpacked if it is packed.

    Reading raises InputRefused where the packed data are damaged or cut off, or unpack to more than the limits allow.
    """
    kind = packing(path)
    if not kind:
        return path.open("rb")
    opener = OPENERS[kind]
    return io.BufferedReader(_Bounded(path, opener(path)), BLOCK_BYTES)


def _open_gzip(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb"))


def _open_zstd(path: Path) -> IO[bytes]:
    """pyarrow brings the codec along; its window is limited to 128 MiB, which bounds the memory."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {"gzip": _open_gzip, "Zstandard": _open_zstd}


class _Bounded(io.RawIOBase):
    """A stream of unpacked bytes that counts them."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self._read = path, stream, 0
        packed = path.stat().st_size
        self._most = min(MAX_UNPACKED_BYTES, max(FREE_BYTES, MAX_RATIO * packed))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._next(len(view))
        self._read += len(data)
        if self._read > self._most:
            raise InputRefused(
                f"{self._path} unpacks to more than {self._most / 2**20:,.0f} MiB",
                why=f"that is {MAX_RATIO} times its size, or the most that is read: it may be made to fill a machine",
                fix="unpack it yourself if you trust it",
            )
        view[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's are of the first or the last
            raise InputRefused(
                f"{self._path} cannot be unpacked", why=f"it is damaged or was cut off: {error}"
            ) from error

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
