"""From files to an artifact: every format, every document counted, the same result however the work is cut."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_files import article, docx, html, pdf, warc, web_texts

from ojak.artifact import Artifact, verify
from ojak.corpus import crew, run, shards
from ojak.corpus.config import CorpusConfig
from ojak.corpus.run import funnel, make_corpus, summary
from ojak.errors import TargetExists, UsageError
from ojak.records import Document

WORKERS = 1


def made(out: Path, *paths: Path, **more: Any) -> Artifact:
    artifact = make_corpus(
        CorpusConfig(**{"paths": paths, "profile": "none", "workers": WORKERS, **more}), out
    )
    facts = summary(artifact)
    assert facts["documents_in"] == facts["kept"] + sum(facts["rejected"].values())
    steps = facts["funnel"]
    assert steps[0]["in"] == facts["documents_in"]
    assert steps[-1]["in"] - steps[-1]["rejected"] == facts["kept"]
    verify(out)
    return artifact


def texts(artifact: Artifact) -> dict[str, str]:
    return {record.source: record.text for record in artifact.records() if isinstance(record, Document)}


def reasons(artifact: Artifact) -> dict[str, str]:
    return {each.source: each.reason for each in artifact.rejected()}


def data(artifact: Artifact) -> dict[str, str]:
    return {f["path"]: f["sha256"] for f in artifact.files if f["path"].startswith(("data/", "rejected/"))}


def test_every_format(tmp_path: Path) -> None:
    root, draw = tmp_path / "in", random.Random(1)
    root.mkdir()
    pages = [article(draw) for _ in range(9)]
    (root / "a.txt").write_bytes(pages[0].replace("\n", "\r\n").encode("utf-8-sig"))
    (root / "b.md").write_text(f"# The title #\n\n{pages[1]}", "utf-8")
    (root / "c.html").write_bytes(html(pages[2], "Of a page"))
    (root / "d.pdf").write_bytes(pdf(pages[3], "Of a paper"))
    (root / "e.docx").write_bytes(docx(pages[4], "Of a letter"))
    (root / "f.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": pages[5], "n": 3, "l": []}).encode()))
    pq.write_table(pa.table({"text": [pages[6], None], "url": ["u", "v"]}), root / "g.parquet")
    warc(root / "h.warc.gz", [html(pages[7])])
    (root / "i.txt").write_bytes(pages[8].encode("utf-16"))
    artifact = made(tmp_path / "out", root, text_field="text")
    found = texts(artifact)
    assert found["in/a.txt"] == pages[0]
    assert found["in/b.md"] == f"# The title #\n\n{pages[1]}"
    assert found["in/c.html"].split() == pages[2].split()
    assert found["in/d.pdf"].split() == pages[3].split()
    assert found["in/e.docx"].removesuffix("\nleft cell\tright cell") == pages[4]
    assert [found[f"in/{name}"] for name in ("f.jsonl.gz", "g.parquet", "i.txt")] == [
        pages[5],
        pages[6],
        pages[8],
    ]
    assert found["in/h.warc.gz"].split() == pages[7].split()
    assert reasons(artifact) == {"in/g.parquet": "no_text", "in/h.warc.gz": "not_a_page"}
    meta = {record.source: record.meta for record in artifact.records()}
    titles = [meta[f"in/{name}"].get("title") for name in ("a.txt", "b.md", "c.html", "d.pdf", "e.docx")]
    assert titles == [None, "The title", "Of a page", "Of a paper", "Of a letter"]
    assert meta["in/f.jsonl.gz"]["extra"] == {"n": 3}
    assert meta["in/g.parquet"]["extra"] == {"url": "u"}
    assert meta["in/h.warc.gz"]["extra"]["url"] == "http://example.org/0"
    assert {each["language"] for each in meta.values()} == {"en"}
    assert all(each["chars"] == len(found[name]) for name, each in meta.items())


def test_the_rules_drop_with_a_reason_and_repeats_are_found(tmp_path: Path) -> None:
    pages = [*web_texts(44), web_texts(44)[0], web_texts(44)[3]]
    near = pages[0].replace("river", "stream", 1).replace("The", "That", 1)
    rows = [
        {"text": text}
        for text in [*pages, near, article(random.Random(9)) + "\nWrite to ann@example.com now."]
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    artifact = made(tmp_path / "out", tmp_path / "rows.jsonl", profile="web")
    facts = summary(artifact)
    assert facts["documents_in"] == len(rows)
    assert facts["rejected"]["c4.curly_bracket"] == 2
    assert facts["rejected"]["c4.lorem_ipsum"] == 2
    assert facts["rejected"]["duplicate_exact"] == 1  # the other text that stands twice is dropped for itself
    assert facts["rejected"]["duplicate_near"] == 1
    assert {step["rule"]: step["in"] for step in facts["funnel"]}["minhash"] == facts["kept"] + 2
    gone = {each.reason: each for each in artifact.rejected()}
    first = next(iter(artifact.records()))
    assert (
        gone["duplicate_near"].meta["duplicate_of"]
        == gone["duplicate_exact"].meta["duplicate_of"]
        == first.id
    )
    assert artifact.stats["personal_data"] == {"email": 1}
    assert any("[email]" in text for text in (r.text for r in artifact.records() if isinstance(r, Document)))


def mixed_folder(root: Path, seed: int, count: int = 24) -> None:
    """Files of text and of rows, some of them broken."""
    draw, pages = random.Random(seed), iter(web_texts(200, seed))
    root.mkdir()
    for number in range(count):
        kind = draw.choice(["txt", "md", "jsonl", "html", "bad", "empty"])
        path = root / f"{number:03d}.{'txt' if kind in ('bad', 'empty') else kind}"
        if kind == "jsonl":
            rows = [json.dumps({"text": next(pages)}) if draw.random() < 0.8 else "{broken" for _ in range(4)]
            path.write_text("\n".join(rows), "utf-8")
        else:
            made_of = {"bad": b"\xff\xfe\xfd caf\xe9 \x00", "empty": b"", "html": html(next(pages))}
            path.write_bytes(made_of.get(kind, next(pages).encode()))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), part=st.integers(1, 9), batch=st.integers(1, 5), workers=st.integers(1, 2))
def test_the_result_does_not_depend_on_how_the_work_is_cut(
    tmp_path_factory: pytest.TempPathFactory, seed: int, part: int, batch: int, workers: int
) -> None:
    home = tmp_path_factory.mktemp("cut")
    mixed_folder(home / "in", seed)
    whole = made(home / "whole", home / "in", profile="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "DOCUMENTS_PER_PART", part)
        patch.setattr(crew, "BATCH_DOCUMENTS", batch)
        cut = made(home / "cut", home / "in", profile="none", workers=workers)
    assert data(cut) == data(whole)
    assert cut.counts == whole.counts


class Stop(Exception):
    pass


def interrupted(out: Path, config: CorpusConfig, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends when so many parts are whole."""
    end, count = shards.Parts._end, Counter[str]()

    def limited(self: shards.Parts, *given: Any) -> None:
        end(self, *given)
        count["parts"] += 1
        if count["parts"] == after:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(shards.Parts, "_end", limited)
        make_corpus(config, out)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_folder(tmp_path / "in", 5)
    whole = made(tmp_path / "whole", tmp_path / "in")
    monkeypatch.setattr(shards, "DOCUMENTS_PER_PART", 3)
    config = CorpusConfig(paths=(tmp_path / "in",), profile="none", workers=1)
    for _ in range(4):
        interrupted(tmp_path / "out", config, 2, monkeypatch)
    notes = sorted((tmp_path / "out").glob(".corpus-*/*.json"))
    assert len(notes) == 8
    read: list[str] = []
    documents = run.documents

    def watched(file: Any, *given: Any) -> Any:
        for raw in documents(file, *given):
            read.append(run.document_id(file.name, raw.number or 0))
            yield raw

    monkeypatch.setattr(run, "documents", watched)
    again = made(tmp_path / "out", tmp_path / "in")
    assert data(again) == data(whole)
    assert len(read) == whole.counts["rows"] - 8 * 3
    assert not list((tmp_path / "out").glob(".corpus-*"))


def test_other_rules_or_other_files_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed_folder(tmp_path / "in", 6, 8)
    monkeypatch.setattr(shards, "DOCUMENTS_PER_PART", 2)
    config = CorpusConfig(paths=(tmp_path / "in",), profile="none", workers=1)
    interrupted(tmp_path / "out", config, 2, monkeypatch)
    (tmp_path / "in/000.txt").write_text("Another text.", "utf-8")
    assert data(made(tmp_path / "out", tmp_path / "in")) == data(made(tmp_path / "fresh", tmp_path / "in"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text.", "utf-8")
    made(tmp_path / "out", tmp_path / "a.txt")
    with pytest.raises(TargetExists):
        made(tmp_path / "out", tmp_path / "a.txt")
    with pytest.raises(UsageError, match="personal_data"):
        CorpusConfig(paths=(tmp_path,), personal_data=("names",))


def test_a_funnel_adds_up() -> None:
    steps = funnel(10, Counter({"empty": 1, "language": 2, "c4.curly_bracket": 3, "duplicate_near": 1}))
    assert [(step["rule"], step["in"], step["rejected"]) for step in steps if step["rejected"]] == [
        ("read", 10, 1),
        ("language", 9, 2),
        ("c4", 7, 3),
        ("minhash", 4, 1),
    ]
