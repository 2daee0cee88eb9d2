"""Check the header of a GGUF file before anything else touches it.

A GGUF file is hostile input: its header is made of counts and lengths that a reader is invited to believe (the `gguf`
package spins for minutes on a file of 49 bytes that announces an array of 2^63 elements). Here every count is compared
with the bytes that are left before it is acted on, so time and memory are bounded by the size of the file and by the
limits below. Layout: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ojak.errors import InputRefused

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 4096
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ELEMENTS = (
    4_000_000  # in all arrays of the file together; the largest vocabularies need about 1.5 million
)
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 64
MAX_DIMS = 4

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", BOOL: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip

# type number -> (name, weights per block, bytes per block): struct sizes of ggml, for every type that files hold.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. shape: outermost dimension first (the file has it innermost first).

    offset: bytes from the start of the file. block: (weights, bytes) of one quantisation block.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    block: tuple[int, int]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: everything in it may be believed as far as sizes and places go, not as far as meaning goes."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int
    file_size: int


def validate(path: Path) -> Header:
    """Read and check the header of the GGUF file at `path`.

    Raises InputRefused for anything that is not a well-formed GGUF of version 2 or 3, OSError if it cannot be read.
    """
    if not path.is_file():
        raise InputRefused(f"{path} is not a file", fix="give the path of a .gguf file")
    with path.open("rb") as file:
        reader = _Reader(file, path)
        version, tensor_count, key_count = _counts(reader)
        metadata = _metadata(reader, key_count)
        alignment = _alignment(reader, metadata)
        raw = [_tensor(reader) for _ in range(tensor_count)]
        data_start = _align(reader.position, alignment)
        tensors = _place(reader, raw, data_start, alignment)
    return Header(version, metadata, tensors, alignment, data_start, reader.size)


class _Reader:
    """A forward reader that never believes a length: `take` fails before it reads past the file or the limit."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.elements = 0

    def refuse(self, why: str) -> NoReturn:
        raise InputRefused(
            f"{self.path.name} is not a sound GGUF file", why=f"{why} (byte {self.position})",
            fix="download the file again, or convert the model again",
        )  # fmt: skip

    def need(self, count: int) -> None:
        if count > self.size - self.position:
            self.refuse(f"{count} bytes announced, {self.size - self.position} left")
        if self.position + count > MAX_HEADER_BYTES:
            self.refuse(f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB")

    def take(self, count: int) -> bytes:
        self.need(count)
        data = self.file.read(count)
        if len(data) != count:
            self.refuse("the file became shorter while it was read")
        self.position += count
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self, limit: int, what: str) -> str:
        length = self.number("<Q")
        if length > limit:
            self.refuse(f"{what} of {length} bytes, at most {limit} are allowed")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")


def _counts(reader: _Reader) -> tuple[int, int, int]:
    if reader.take(4) != MAGIC:
        reader.refuse("it does not begin with the letters GGUF")
    version = reader.number("<I")
    if version not in VERSIONS:
        swapped = int.from_bytes(struct.pack("<I", version), "big")
        big_endian = " (a big-endian file)" if swapped in VERSIONS else ""
        reader.refuse(f"version {version}{big_endian}, only 2 and 3 are read")
    tensors, keys = reader.number("<Q"), reader.number("<Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        reader.refuse(f"{tensors} tensors and {keys} keys, at most {MAX_TENSORS} and {MAX_KEYS} are allowed")
    return version, tensors, keys


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.string(MAX_KEY_BYTES, "a key")
        if not key or key in metadata:
            reader.refuse(f"the key {key!r} is empty or there twice")
        metadata[key] = _value(reader, reader.number("<I"))
    return metadata


def _value(reader: _Reader, kind: int) -> Any:
    if kind == STRING:
        return reader.string(MAX_STRING_BYTES, "a string")
    if kind == ARRAY:
        return _array(reader, reader.number("<I"), reader.number("<Q"))
    if kind not in SCALARS:
        reader.refuse(f"value type {kind} does not exist")
    value = reader.number(SCALARS[kind])
    if kind == BOOL and value > 1:
        reader.refuse(f"a boolean of value {value}")
    return bool(value) if kind == BOOL else value


def _array(reader: _Reader, kind: int, count: int) -> list[Any]:
    if kind != STRING and kind not in SCALARS:
        reader.refuse("an array of arrays" if kind == ARRAY else f"value type {kind} does not exist")
    reader.elements += count
    if reader.elements > MAX_ARRAY_ELEMENTS:
        reader.refuse(f"arrays of {reader.elements} elements, at most {MAX_ARRAY_ELEMENTS} are allowed")
    if kind == STRING:
        reader.need(8 * count)  # the lengths alone
        return [reader.string(MAX_STRING_BYTES, "a string") for _ in range(count)]
    dtype = np.dtype(SCALARS[kind])
    values = np.frombuffer(reader.take(count * dtype.itemsize), dtype)
    if kind == BOOL and count and values.max() > 1:
        reader.refuse("a boolean that is neither 0 nor 1")
    return (values.astype(bool) if kind == BOOL else values).tolist()


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    is_power = (
        isinstance(alignment, int) and 0 < alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
    )
    if not is_power or isinstance(alignment, bool):
        reader.refuse(f"an alignment of {alignment!r}, it must be a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _tensor(reader: _Reader) -> TensorInfo:
    """One entry of the tensor table; its offset is still relative to the data section."""
    name = reader.string(MAX_NAME_BYTES, "a tensor name")
    dims = reader.number("<I")
    if not 1 <= dims <= MAX_DIMS:
        reader.refuse(f"tensor {name!r} has {dims} dimensions, 1 to {MAX_DIMS} are allowed")
    shape = tuple(reader.number("<Q") for _ in range(dims))[::-1]
    kind, offset = reader.number("<I"), reader.number("<Q")
    if kind not in TENSOR_TYPES:
        reader.refuse(f"tensor {name!r} is of type {kind}, which is not known")
    type_name, weights, block_bytes = TENSOR_TYPES[kind]
    if min(shape) < 1 or shape[-1] % weights:
        reader.refuse(f"tensor {name!r} of type {type_name} has the impossible shape {shape}")
    nbytes = math.prod(shape) // weights * block_bytes  # Python integers: no overflow to hide behind
    return TensorInfo(name, shape, type_name, (weights, block_bytes), offset, nbytes)


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _place(reader: _Reader, raw: list[TensorInfo], data_start: int, alignment: int) -> tuple[TensorInfo, ...]:
    """Make the offsets absolute; refuse tensors outside the file, unaligned, overlapping or named twice."""
    if len({tensor.name for tensor in raw}) != len(raw):
        reader.refuse("two tensors have the same name")
    end_of_last = 0
    for tensor in sorted(raw, key=lambda t: t.offset):
        if tensor.offset % alignment or tensor.offset < end_of_last:
            reader.refuse(f"tensor {tensor.name!r} is not aligned or overlaps another one")
        end_of_last = tensor.offset + tensor.nbytes
        if data_start + end_of_last > reader.size:
            reader.refuse(
                f"tensor {tensor.name!r} ends {data_start + end_of_last - reader.size} bytes after the file"
            )
    return tuple(
        TensorInfo(t.name, t.shape, t.type, t.block, data_start + t.offset, t.nbytes) for t in raw
    )  # fmt: skip
