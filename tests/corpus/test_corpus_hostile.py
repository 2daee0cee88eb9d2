"""Files that were made to break a reader: each is a counted reject with a reason, and the others are read."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import docx, html, pdf, warc

from ojak.corpus import records
from ojak.corpus.config import CorpusConfig
from ojak.corpus.crew import Crew
from ojak.corpus.inputs import InputFile, files
from ojak.corpus.reading import Raw, documents
from ojak.errors import OjakError

GOOD = "The old river crosses the quiet bridge before the first light of the day. " * 6
MIB = 2**20


def config(*paths: Path) -> CorpusConfig:
    return CorpusConfig(paths=paths or (Path(),), profile="none", workers=1)


def decided(*paths: Path, cpu_s: float = 20.0, memory_bytes: int = 2**30) -> dict[str, str]:
    """By name (of a record: with its number): the reason, or "" for a document that stays."""
    raws = (raw for file in files(paths) for raw in documents(file, "text"))
    found: dict[str, str] = {}
    with Crew(config(*paths), cpu_s=cpu_s, memory_bytes=memory_bytes) as crew:
        for each in crew.decided(raws):
            number = "" if each.raw.number is None else f" {each.raw.number}"
            found[each.raw.file.name.rpartition("/")[2] + number] = each.reply["reason"]
    return found


def zipped(path: Path, name: str, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\0" * size)


def test_broken_and_hostile_documents(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    whole = pdf(GOOD)
    (root / "a-broken.pdf").write_bytes(whole[: len(whole) // 2])
    (root / "b-noise.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 40)
    zipped(root / "c-bomb.docx", "word/document.xml", 80 * MIB)
    (root / "d-nozip.docx").write_bytes(b"PK\x03\x04 no archive")
    (root / "e-entities.docx").write_bytes(_with_entities())
    (root / "f-deep.html").write_bytes(b"<html><body>" + b"<div>" * 100_000 + GOOD.encode())
    (root / "g-latin.txt").write_bytes("caf\u00e9 and more".encode("latin-1"))
    (root / "h-empty.txt").write_bytes(b"")
    (root / "i-blank.md").write_bytes(b" \n\t")
    (root / "j-binary.txt").write_bytes(b"abc\0def")
    (root / "k-bomb.txt.gz").write_bytes(gzip.compress(b"a" * (70 * MIB)))
    (root / "l-cut.txt.gz").write_bytes(gzip.compress(os.urandom(5000))[:3000])
    (root / "m-script.html").write_bytes(b"<html><script>" + b"x=1;" * 900 + b"</script></html>")
    (root / "n-good.html").write_bytes(html(GOOD))
    (root / "o-good.pdf").write_bytes(whole)
    (root / "p-good.docx").write_bytes(docx(GOOD))
    found = decided(root)
    assert found["a-broken.pdf"] in ("damaged", "no_text", "")  # pypdf may still find the page
    deep = found.pop("f-deep.html")
    assert deep in ("", "damaged", "no_text") or deep.startswith("parse_")
    del found["a-broken.pdf"]
    assert found == {
        "b-noise.pdf": "damaged",
        "c-bomb.docx": "unpacking",
        "d-nozip.docx": "damaged",
        "e-entities.docx": "damaged",
        "g-latin.txt": "not_utf8",
        "h-empty.txt": "empty",
        "i-blank.md": "empty",
        "j-binary.txt": "binary",
        "k-bomb.txt.gz": "unpacking",
        "l-cut.txt.gz": "unpacking",
        "m-script.html": "no_text",
        "n-good.html": "",
        "o-good.pdf": "",
        "p-good.docx": "",
    }


def _with_entities() -> bytes:
    """A Word file whose text is a bomb of nested entities."""
    source, out = zipfile.ZipFile(io.BytesIO(docx("x"))), io.BytesIO()
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY e0 "ha">{levels}]>'
    with zipfile.ZipFile(out, "w") as archive:
        for name in source.namelist():
            body = source.read(name)
            if name == "word/document.xml":
                body = bomb.encode() + body.partition(b"?>")[2].replace(b">x<", b">&e9;<")
            archive.writestr(name, body)
    return out.getvalue()


def test_a_line_of_a_gigabyte_is_one_reject_and_the_next_line_is_read(tmp_path: Path) -> None:
    good = json.dumps({"text": GOOD}).encode()
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.write(good + b"\n")
        file.truncate(2**30)  # a hole: a line of zeros that takes no room
        file.seek(2**30)
        file.write(b"\n" + good + b'\n\n[1]\n{"text": 5}\n{"text": "' + b"x" * 20)
    with (tmp_path / "one.txt").open("wb") as file:
        file.truncate(2**30)
    assert decided(tmp_path) == {
        "one.txt": "too_large",
        "rows.jsonl 0": "",
        "rows.jsonl 1": "too_large",
        "rows.jsonl 2": "",
        "rows.jsonl 3": "no_text",
        "rows.jsonl 4": "no_text",
        "rows.jsonl 5": "bad_row",
    }


def test_files_of_records_that_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    pq.write_table(pa.table({"body": [GOOD]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.array([1, 2])}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet")
    (tmp_path / "e.warc").write_bytes(b"WARC/9.9 what" * 100)
    warc(tmp_path / "f.warc.gz", [html(GOOD), html(GOOD)])
    whole = (tmp_path / "f.warc.gz").read_bytes()
    (tmp_path / "g.warc.gz").write_bytes(whole[: len(whole) - 40])
    (tmp_path / "h.jsonl").write_bytes(b"\n\n")
    found = decided(tmp_path)
    assert found.pop("e.warc 0") in ("damaged", "not_a_page")
    assert found.pop("g.warc.gz 2", "") in ("", "damaged", "not_a_page")
    assert found == {
        "a.parquet 0": "damaged",
        "b.parquet 0": "no_text",
        "c.parquet 0": "no_text",
        "d.parquet 0": "empty",
        "f.warc.gz 0": "",
        "f.warc.gz 1": "",
        "f.warc.gz 2": "not_a_page",
        "g.warc.gz 0": "",
        "g.warc.gz 1": "",
        "h.jsonl 0": "empty",
    }


def test_a_table_that_stands_for_more_memory_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text of 60 MB, a thousand times: a few kilobytes on disk."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * (60 * MIB)]))
    pq.write_table(pa.table({"text": column}), tmp_path / "bomb.parquet", store_schema=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < MIB * 8
    monkeypatch.setattr(records, "MEMORY_BYTES", 2**29)
    found = [raw.reason for raw in documents(next(iter(files([tmp_path]))), "text")]
    assert found[-1] in ("read_memory", "read_died", "damaged")
    assert len(found) < 40


def raw(kind: str, data: bytes, number: int = 0) -> Raw:
    return Raw(InputFile(Path("x"), f"{number}", kind), data, number, kind)


@pytest.mark.parametrize(
    ("module", "reason"), [("spins", "parse_time"), ("hoards", "parse_memory"), ("dies", "parse_died")]
)
def test_a_document_that_breaks_a_limit_goes_alone(
    module: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose parser of Word files is what an attacker would like it to be."""
    (tmp_path / "evil.py").write_text(
        "import os, re, ojak.corpus.extract as extract, ojak.corpus.worker as worker\n"
        "def spins(data): return re.match('(a+)+$', 'a' * 60 + 'b')\n"
        "def hoards(data): return bytearray(2**40)\n"
        "def dies(data): os.abort()\n"
        f"extract.READERS['docx'] = {module}\n"
        "serve = worker.serve\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("ojak.corpus.crew.MODULE", "evil")
    batch = [raw("text", GOOD.encode(), n) if n != 2 else raw("docx", b"PK", n) for n in range(5)]
    with Crew(config(), cpu_s=3.0, memory_bytes=2**29) as crew:
        found = [each.reply["reason"] for each in crew.decided([*batch, *batch])]
    assert found == ["", "", reason, "", ""] * 2


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ojak.corpus.crew.MODULE", "no_such_module")
    with Crew(config()) as crew, pytest.raises(OjakError, match="does not start"):
        list(crew.decided([raw("text", b"x")]))


def test_an_unreadable_file_is_counted(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text("x", "utf-8")
    file = next(iter(files([tmp_path])))
    (tmp_path / "gone.txt").unlink()
    assert [each.reason for each in documents(file, "text")] == ["unreadable"]
