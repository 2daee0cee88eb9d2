"""The data card: YAML that the hub and `datasets` take, facts from the manifests, nothing hostile that acts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from ojak import _card
from ojak.artifact import Artifact, publish, verify
from ojak.records import Conversation, Document, Message, Rejected

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](javascript:alert(1))", "![x](http://evil.test/p.png)",
    "www.evil.test", "`code` | cell | \\| x", "**bold** _x_ # head", "a\n\n# head\n---\nlicense: mit\n---", "\x1b[31mred\x1b]0;own\x07",
    "\u202eevil\u202c\u2066x", "@someone $$x$$", "```\n<b>out</b>\n```", "~~~\nout", "\ud800", "x" * 5000, "",
]  # fmt: skip
CALIBRATION = {
    "identity": {"model": "a-judge"},
    "auroc": {"truncated": [0.91, 0.88, 0.94], "off-topic": [0.6, 0.5, 0.7]},
    "usable": False,
}


def pairs(count: int) -> Iterator[Conversation]:
    for row in range(count):
        turns = [Message(role="user", content=f"{row}?"), Message(role="assistant", content="!")]
        yield Conversation(f"r{row}", turns)


def card(artifact: Artifact) -> tuple[dict[str, Any], str]:
    text = (artifact.path / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def magpie(path: Path, **more: Any) -> Artifact:
    settings: dict[str, Any] = {"model": "smollm2-135m-instruct", "seed": 7, "language": "de"}
    engine = {"model": "smollm2-135m-instruct", "model_sha256": "b" * 64}
    stats = {"engine": engine, "license": "apache-2.0", "quantization": "Q4_1"}
    gone = [
        Rejected("x", "instruction_cut", "magpie", "and"),
        Rejected("y", "instruction_cut", "magpie", "or"),
    ]
    return publish(
        path, kind="magpie", records=pairs(12), rejected=gone, **{"config": settings, "stats": stats, **more}
    )


def curated(path: Path, source: Artifact, **stats: Any) -> Artifact:
    funnel = [{"rule": "too_short", "in": 12, "rejected": 2}, {"rule": "duplicate", "in": 10, "rejected": 0}]
    gone = [Rejected(f"r{i}", "too_short", "curate") for i in (10, 11)]
    return publish(
        path, kind="curate", records=pairs(10), rejected=gone, config={"recipe": "air-300k"}, inputs=[source],
        stats={"funnel": funnel, "not_applied": {"reward": "no row has this score"}, "calibrations": [CALIBRATION], "annotators": [{"model": "a-judge"}, {"n": 13, "base": {"model": "a-base", "license": "some-terms"}}], **stats},
    )  # fmt: skip


def test_the_head_is_what_the_hub_takes(tmp_path: Path) -> None:
    head, _ = card(magpie(tmp_path / "m"))
    assert head == {
        "language": ["de"], "pretty_name": "12 rows made with ojak (magpie)", "size_categories": ["n<1K"],
        "task_categories": ["text-generation"], "tags": ["synthetic", "ojak", "magpie"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }  # fmt: skip
    loaded = DatasetCard.load(tmp_path / "m" / "README.md")
    assert loaded.data.to_dict()["size_categories"] == ["n<1K"]


@pytest.mark.parametrize(
    ("rows", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**7, "n>10M")],
)
def test_sizes_have_the_hub_s_names(tmp_path: Path, rows: int, name: str) -> None:
    manifest = magpie(tmp_path / "m").manifest
    head = yaml.safe_load(_card.render(manifest, {"train": rows}).split("---\n")[1])
    assert head["size_categories"] == [name]


def test_a_curated_set_tells_of_everything_before_it(tmp_path: Path) -> None:
    source = magpie(tmp_path / "m")
    artifact = verify(curated(tmp_path / "c", source).path)
    head, body = card(artifact)
    assert head["tags"] == ["synthetic", "ojak", "curate", "magpie"]
    assert head["language"] == ["de"]
    for fact in (
        "| `too_short` | 12 | 2 |",
        "| `reward` | `no row has this score` |",
        "| `truncated` | 0.910 | 0.880 | 0.940 |",
        "It may tag, not filter.",
        "How well `a-judge` tells",
        "| `a-judge` | not recorded |",
        "| `a-base` | not recorded | `some-terms` |",
        f"| `smollm2-135m-instruct` | `{'b' * 64}` | `apache-2.0` | `Q4_1` |",
        '"recipe": "air-300k"',
        '"seed": 7',
        artifact.files[0]["sha256"],
        "| rejected: `too_short` | 2 |",
    ):
        assert fact in body, fact
    stages = re.findall(r"^\| `(\w+)` \| `\d{4}-", body, re.MULTILINE)
    assert stages == ["magpie", "curate"]  # in the order in which they were made


def test_a_source_that_changed_or_went_is_not_believed(tmp_path: Path) -> None:
    source = magpie(tmp_path / "m")
    manifest = curated(tmp_path / "c", source).manifest
    assert [each["kind"] for each in _card.ancestors(tmp_path / "c", manifest)] == ["magpie"]
    text = (source.path / "manifest.json").read_text("utf-8")
    (source.path / "manifest.json").write_text(text.replace("smollm2", "gpt-oss"), "utf-8")
    assert _card.ancestors(tmp_path / "c", manifest) == []
    (source.path / "manifest.json").unlink()
    assert _card.ancestors(tmp_path / "c", manifest) == []


def test_sources_in_a_circle_end(tmp_path: Path) -> None:
    loop = [{"path": ".", "manifest_sha256": "0" * 64}] * 50
    assert _card.ancestors(tmp_path, {"inputs": loop}) == []


@pytest.mark.parametrize("load", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_facts_do_nothing(tmp_path: Path, load: str) -> None:
    text = load.encode(
        "utf-8", "replace"
    ).decode()  # a manifest holds no halves of characters; see the next test
    source = magpie(
        tmp_path / "m",
        config={"model": text, "language": text, "system": text, text or "k": [text]},
        stats={"license": text, "quantization": text, "engine": {"model": text}},
    )
    funnel = [{"rule": text, "in": text, "rejected": [text]}, text, None]
    judged = {"auroc": {text: [text, None]}, "identity": {"model": text}, "usable": text}
    artifact = curated(
        tmp_path / "c",
        source,
        funnel=funnel,
        not_applied={text or "k": text},
        calibrations=[judged, text],
        annotators=[{"model": text}, text],
    )
    head, body = card(artifact)
    assert set(head) == {"pretty_name", "size_categories", "task_categories", "tags", "configs"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", body)
    assert live(body) == ""


def live(body: str) -> str:
    """What of a card's body is neither in a fenced block nor in a code span, and could act."""
    assert body.count("\n```") == 2
    before, _, after = re.split(r"^```(?:json)?$", body, flags=re.MULTILINE)
    outside = re.sub(r"`[^`\n]+`", "", before + after)
    assert "`" not in outside
    for line in outside.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (3, 4, 5, 6) and "\\" not in line
    return "".join(re.findall(r"[<>\[\]@$*~\\]|www|evil|javascript", outside))


def test_halves_of_characters_are_shown(tmp_path: Path) -> None:
    assert _card.code("a\ud800b") == "`aU+D800b`"
    assert _card.code("`x` | \n y\\") == "`'x' \u00a6 y/`"


def test_a_card_stays_small(tmp_path: Path) -> None:
    long = {f"k{i}": "x" * 1000 for i in range(500)}
    gone = [Rejected(f"x{i}", f"reason_{i}", "magpie") for i in range(500)]
    artifact = publish(tmp_path / "m", kind="magpie", records=pairs(1), rejected=gone, config=long)
    assert (artifact.path / "README.md").stat().st_size < 60_000


def test_a_corpus_is_not_called_a_model_s_work(tmp_path: Path) -> None:
    made = publish(tmp_path / "c", kind="corpus", records=[Document("1", "A text.", "a.txt")], config={})
    head, body = card(made)
    assert "synthetic" not in head["tags"]
    assert "A language model wrote" not in body
    assert "were found in files" in body
    head, body = card(
        publish(tmp_path / "d", kind="augment", records=[Document("1", "A")], config={}, inputs=[made])
    )
    assert "synthetic" in head["tags"]
    assert "A language model wrote" in body
