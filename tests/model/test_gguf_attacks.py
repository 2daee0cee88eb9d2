"""Hostile GGUF files: each is refused with InputRefused, at once, without the memory it asks for."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_gguf as g
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ojak.errors import InputRefused
from ojak.model import gguf
from ojak.model.gguf_validate import MAX_ARRAY_ELEMENTS, validate

SECONDS = 2.0  # of processor time, for any file here
KEY = g.string("k")
STRING, ARRAY, U32 = 8, 9, 4


def refused(path: Path, data: bytes) -> str:
    """Write the bytes, have them refused within bounds of time and memory, and give the message."""
    path.write_bytes(data)
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputRefused) as caught:
        validate(path)
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10  # KiB
    return str(caught.value)


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return KEY + struct.pack("<IIQ", ARRAY, kind, count) + content


def one_tensor(**change: Any) -> bytes:
    """A sound file with one F32 tensor of 8 weights, but for what `change` says."""
    entry = {"name": "t", "dims": [8], "kind": 0, "offset": 0} | change
    head = g.header(1, 0) + g.tensor_entry(**entry)
    return head + bytes(-len(head) % 32) + bytes(32)


def test_the_sound_file_that_the_attacks_begin_with_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(one_tensor())
    found = validate(path)
    assert [(t.name, t.shape, t.type, t.offset, t.nbytes) for t in found.tensors] == [
        ("t", (8,), "F32", 64, 32)
    ]


def test_the_file_of_49_bytes_with_an_array_of_2_to_the_63(tmp_path: Path) -> None:
    """The one on which the reader of the `gguf` package spins."""
    data = g.header(0, 1) + array(U32, 2**63)
    assert len(data) == 49
    assert "elements" in refused(tmp_path / "m.gguf", data)


@pytest.mark.parametrize("kind", [0, 1, 4, 6, 7, STRING, 10, 12])
@pytest.mark.parametrize(
    "count", [1, 1000, MAX_ARRAY_ELEMENTS, MAX_ARRAY_ELEMENTS + 1, 2**32, 2**61, 2**63, 2**64 - 1]
)
def test_arrays_longer_than_the_file(kind: int, count: int, tmp_path: Path) -> None:
    refused(tmp_path / "m.gguf", g.header(0, 1) + array(kind, count))


def test_nested_arrays(tmp_path: Path) -> None:
    nested = g.header(0, 1) + KEY + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 10_000
    assert "array of arrays" in refused(tmp_path / "m.gguf", nested)


def test_many_small_arrays_count_together(tmp_path: Path) -> None:
    each = MAX_ARRAY_ELEMENTS // 2 + 1
    keys = b"".join(g.string(f"k{i}") + struct.pack("<IIQ", ARRAY, 0, each) + bytes(each) for i in range(2))
    assert "elements" in refused(tmp_path / "m.gguf", g.header(0, 2) + keys)


FIELDS: dict[str, Callable[[int], bytes]] = {
    "tensor count": lambda n: g.header(n, 0),
    "key count": lambda n: g.header(0, n) + bytes(64),
    "key length": lambda n: g.header(0, 1) + struct.pack("<Q", n) + b"k" + struct.pack("<II", U32, 1),
    "string length": lambda n: g.header(0, 1) + KEY + struct.pack("<IQ", STRING, n) + b"ab",
    "array string length": lambda n: g.header(0, 1) + array(STRING, 1, struct.pack("<Q", n)),
    "name length": lambda n: g.header(1, 0) + struct.pack("<Q", n) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 0),
    "dimension": lambda n: one_tensor(dims=[n]),
    "offset": lambda n: one_tensor(offset=n),
}
# A count of 0 tensors, keys or letters, and an offset of 0, are sound.
BAD = [
    (field, number)
    for field in FIELDS
    for number in (0, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
    if number or field in ("key length", "dimension")
]


@pytest.mark.parametrize(("field", "number"), BAD)
def test_each_count_and_length_at_its_extremes(field: str, number: int, tmp_path: Path) -> None:
    refused(tmp_path / "m.gguf", FIELDS[field](number))


@pytest.mark.parametrize(
    "dims", [[2**32, 2**32], [2**63, 2], [2**21] * 4, [2**16 + 1, 2**16, 2**16, 2**16], [8, 0]]
)
def test_dimensions_whose_product_overflows(dims: list[int], tmp_path: Path) -> None:
    """In 64 bits some of these products are 0 or small, and would fit the file."""
    refused(tmp_path / "m.gguf", one_tensor(dims=dims))


@pytest.mark.parametrize("dims", [[], [1] * 5, [1] * 1000])
def test_number_of_dimensions(dims: list[int], tmp_path: Path) -> None:
    assert "dimensions" in refused(tmp_path / "m.gguf", one_tensor(dims=dims))


@pytest.mark.parametrize("kind", [4, 5, 31, 36, 99, 2**31, 2**32 - 1])
def test_types_that_do_not_exist(kind: int, tmp_path: Path) -> None:
    assert "not known" in refused(tmp_path / "m.gguf", one_tensor(kind=kind))


def test_rows_that_are_not_whole_blocks(tmp_path: Path) -> None:
    assert "impossible shape" in refused(tmp_path / "m.gguf", one_tensor(kind=2, dims=[31]))


@pytest.mark.parametrize("offset", [1, 16, 33])
def test_offsets_that_are_not_aligned(offset: int, tmp_path: Path) -> None:
    assert "not aligned" in refused(tmp_path / "m.gguf", one_tensor(offset=offset) + bytes(64))


@pytest.mark.parametrize("offset", [32, 64, 2**40])
def test_offsets_past_the_end(offset: int, tmp_path: Path) -> None:
    assert "after the file" in refused(tmp_path / "m.gguf", one_tensor(offset=offset))


@pytest.mark.parametrize("length", [3, 1000, 2**24])
def test_strings_longer_than_the_file_are_not_even_asked_for(length: int, tmp_path: Path) -> None:
    for data in (FIELDS["string length"](length), FIELDS["array string length"](length)):
        assert f"{length} bytes announced" in refused(tmp_path / "m.gguf", data)


def test_overlapping_tensors_and_names_given_twice(tmp_path: Path) -> None:
    def two(first: str, second: str, offset: int) -> bytes:
        head = g.header(2, 0) + g.tensor_entry(first, [16], 0, 0) + g.tensor_entry(second, [8], 0, offset)
        return head + bytes(-len(head) % 32) + bytes(96)

    assert "overlaps" in refused(tmp_path / "m.gguf", two("a", "b", 32))
    assert "same name" in refused(tmp_path / "m.gguf", two("a", "a", 64))


def test_a_key_given_twice(tmp_path: Path) -> None:
    pair = KEY + struct.pack("<II", U32, 1)
    assert "twice" in refused(tmp_path / "m.gguf", g.header(0, 2) + pair + pair)


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**20 + 1, 2**21, 2**31, 2**32 - 1])
def test_alignments_that_are_no_small_power_of_two(alignment: int, tmp_path: Path) -> None:
    data = g.header(0, 1) + g.string("general.alignment") + struct.pack("<II", U32, alignment)
    assert "alignment" in refused(tmp_path / "m.gguf", data)


@pytest.mark.parametrize("value", [g.string("32"), b"\x01"])
def test_alignments_of_another_type(value: bytes, tmp_path: Path) -> None:
    kind = 7 if len(value) == 1 else STRING
    data = g.header(0, 1) + g.string("general.alignment") + struct.pack("<I", kind) + value
    assert "alignment" in refused(tmp_path / "m.gguf", data)


@pytest.mark.parametrize("version", [0, 1, 4, 2**31, 0x03000000])
def test_versions(version: int, tmp_path: Path) -> None:
    message = refused(tmp_path / "m.gguf", g.header(0, 0, version=version))
    assert ("big-endian" in message) == (version == 0x03000000)


@pytest.mark.parametrize("data", [b"", b"G", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00." * 10])
def test_other_files(data: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.gguf", data)


def test_bytes_that_are_no_text_and_booleans_that_are_neither(tmp_path: Path) -> None:
    assert "UTF-8" in refused(
        tmp_path / "m.gguf", g.header(0, 1) + KEY + struct.pack("<I", STRING) + g.string(b"\xff")
    )
    assert "boolean" in refused(tmp_path / "m.gguf", g.header(0, 1) + KEY + struct.pack("<IB", 7, 2))
    assert "boolean" in refused(tmp_path / "m.gguf", g.header(0, 1) + array(7, 2, b"\x01\x02"))


def test_a_folder_a_missing_file_and_a_device_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf", Path("/dev/zero")):
        with pytest.raises(InputRefused, match="not a file"):
            validate(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small model that `gguf.read` accepts."""
    path = g.model_for(tmp_path_factory.mktemp("sound") / "m.gguf", g.byte_vocabulary())
    assert sum(1 for _ in gguf.read(path).tensors()) == 11
    return path


def test_truncated_at_every_byte_of_the_header(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound.read_bytes())
    for length in reversed(range(validate(sound).data_start)):
        os.truncate(path, length)
        with pytest.raises(InputRefused):
            validate(path)


def test_truncated_anywhere_in_the_weights(sound: Path, tmp_path: Path) -> None:
    data, header = sound.read_bytes(), validate(sound)
    end = max(tensor.offset + tensor.nbytes for tensor in header.tensors)
    for length in (header.data_start, (header.data_start + end) // 2, end - 1):
        assert "after the file" in refused(tmp_path / "m.gguf", data[:length])


def test_a_file_cut_after_it_was_checked_is_refused_when_read(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound.read_bytes())
    source = gguf.read(path)
    with path.open("r+b") as file:
        file.truncate(validate(path).data_start + 40)
    with pytest.raises(InputRefused, match=r"cannot be used") as caught:
        list(source.tensors())
    assert "ends inside" in str(caught.value)


MUTATION = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(st.binary(min_size=1, max_size=9), st.integers(0, 255))),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutation=MUTATION)
def test_mutated_headers_are_read_or_refused(
    sound: Path, tmp_path: Path, mutation: list[tuple[float, Any]]
) -> None:
    """Whatever bytes change, the outcome is a Source or InputRefused: no other error, no long wait."""
    data = bytearray(sound.read_bytes())
    end = validate(sound).data_start
    for place, change in mutation:
        at = int(place * end)
        if isinstance(change, int):
            data[at] = change
        else:
            data[at : at + len(change)] = change
    path = tmp_path / "mutated.gguf"
    path.write_bytes(data)
    start = time.process_time()
    try:
        for _name, tensor in gguf.read(path).tensors():
            assert tensor.numel() > 0
    except InputRefused:
        pass
    assert time.process_time() - start < SECONDS


TOKENIZER_ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokenizer.ggml.tokens": "x"}, "tokens"),
    "types of another length": ({"tokenizer.ggml.token_type": [1, 2]}, "type"),
    "a merge of strangers": ({"tokenizer.ggml.merges": ["h zz"]}, "merge"),
    "a merge without a space": ({"tokenizer.ggml.merges": ["he"]}, "merge"),
    "unknown pre-tokenizer": ({"tokenizer.ggml.pre": "mystery"}, "mystery"),
    "unknown kind": ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
    "no scores": ({"tokenizer.ggml.model": "llama"}, "score"),
    "scores that are words": (
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": ["1"] * 259},
        "score",
    ),
    "a pre-tokenizer that is a list": ({"tokenizer.ggml.pre": ["gpt-2"]}, "pre-tokenizer"),
}


@pytest.mark.parametrize("case", TOKENIZER_ATTACKS)
def test_unsound_tokenizers_are_refused(case: str, tmp_path: Path) -> None:
    change, word = TOKENIZER_ATTACKS[case]
    metadata = g.decoder_keys("llama", layers=1, hidden=32, heads=2, kv=1) | g.byte_vocabulary() | change
    names = {"token_embd.weight": [259, 32], "blk.0.attn_q.weight": [32, 32]}
    path = g.write(tmp_path / "m.gguf", metadata, {n: (np.ones(s), "F32") for n, s in names.items()})
    with pytest.raises(InputRefused) as caught:
        gguf.read(path)
    assert word in str(caught.value)
