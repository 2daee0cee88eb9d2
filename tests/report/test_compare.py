"""The comparison: every measure against brute force, the page's facts, and hostile sets."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_embedding
import numpy as np
import pytest
from test_report import PAYLOADS, TAGS, Reader
from typer.testing import CliRunner, Result

from ojak.artifact import publish
from ojak.cli.app import app
from ojak.errors import InputRefused, TargetExists, UsageError
from ojak.records import Conversation, Document, Message, Preference
from ojak.report import compare_charts, sets, variety
from ojak.report.compare import EMBEDDINGS, CompareConfig, Comparison, write_comparison
from ojak.report.measures import Lengths
from ojak.report.sets import named, read_set

PCA = CompareConfig(projection="pca")
NO_SKLEARN = importlib.util.find_spec("sklearn") is None
TOPICS = [
    "tides",
    "bread",
    "maps",
    "trains",
    "bees",
    "rain",
    "chess",
    "birds",
    "ink",
    "soup",
    "wool",
    "stars",
]


def alpaca(path: Path, asks: Sequence[str], answers: Sequence[str] | None = None, **more: Any) -> Path:
    given = answers or ["It depends."] * len(asks)
    rows = [
        {"instruction": ask, "input": "", "output": out, **more} for ask, out in zip(asks, given, strict=True)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def asks(count: int, start: int = 0) -> list[str]:
    verbs = ["Explain", "Describe", "List", "Compare", "Draw"]
    return [
        f"{verbs[i % 5]} {TOPICS[i % 12]} and {TOPICS[(i * 7 + 3) % 12]} number {i}"
        for i in range(start, start + count)
    ]


@pytest.fixture(autouse=True)
def embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_embedding.install(monkeypatch)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """A set with labels, and one without, that share ten instructions."""
    one = alpaca(
        tmp_path / "one.json.gz", asks(60), difficulty="easy", input_quality="good", task_category="Math"
    )
    other = alpaca(tmp_path / "other.jsonl", asks(30, 50), ["Yes. " * (i % 7 + 1) for i in range(30)])
    return [f"First={one}", str(other)]


def page_of(done: Comparison) -> Reader:
    return Reader(done.page.read_text("utf-8"))


# Reading


def test_names_are_given_or_taken_from_the_path(tmp_path: Path) -> None:
    (tmp_path / "a=b.json").write_text("x", "utf-8")
    (tmp_path / "run.v2").mkdir()
    given = [
        f"Mine={tmp_path}/x.json",
        f"{tmp_path}/y.tar.json.gz",
        str(tmp_path / "a=b.json"),
        str(tmp_path / "run.v2"),
    ]
    assert [name for name, _ in named(given)] == ["Mine", "y", "a=b", "run.v2"]
    assert [name for name, _ in named(["a/x.json", "b/x.json", "x=c"])] == ["x", "x (2)", "x (3)"]
    for count in (0, 1, 9):
        with pytest.raises(UsageError, match="takes 2 to 8"):
            named(["x"] * count)


def test_turns_lengths_and_labels_are_counted(tmp_path: Path) -> None:
    def turn(role: str, content: str) -> Message:
        return Message(role=role, content=content)

    talk = [turn("system", "s s s s"), turn("user", "one two"), turn("assistant", "a"), turn("assistant", "b c"),
            turn("user", "three"), turn("assistant", "d d d")]  # fmt: skip
    rows = [
        Conversation("1", talk, tags={"difficulty": "easy", "input_quality": 3}),
        Conversation("2", [turn("user", "four five six")], meta={"extra": {"difficulty": "hard"}}),
        Conversation("3", [turn("assistant", "nobody asked")]),
    ]
    publish(tmp_path / "d", kind="test", records=rows, config={})
    found = read_set("x", tmp_path / "d")
    assert (found.rows, found.skipped, found.turn.rows) == (2, 1, 3)
    assert (found.instruction.tokens, found.response.tokens, found.turn.tokens) == (6, 6, 12)
    assert found.turn.mean == 4 and found.turn.deviation == pytest.approx(math.sqrt(2 / 3))
    assert found.labels == {"difficulty": Counter(easy=1, hard=1)}
    assert found.sample == ["one two", "four five six"]


def test_a_preference_counts_with_its_chosen_answer(tmp_path: Path) -> None:
    yes, no = ([Message(role="assistant", content=text)] for text in ("yes yes", "no"))
    row = Preference("1", [Message(role="user", content="Well?")], yes, no)
    publish(tmp_path / "d", kind="test", records=[row], config={})
    assert read_set("x", tmp_path / "d").response.tokens == 2


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert sets.words("Don\u2019t stop, C-3PO!") == ["don\u2019t", "stop", "c", "3po"]
    assert sets.count_words(["\u4f60\u597d\u5417\uff1f", "\uc548\ub155 \uc138\uc0c1", "", "..."]) == [
        3,
        2,
        0,
        0,
    ]


def test_a_large_set_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "MOST_SAMPLED", 50)
    path = alpaca(tmp_path / "x.gz", [f"row {i}" for i in range(1000)])
    found = read_set("x", path)
    rows = [int(text.split()[1]) for text in found.sample]
    assert (found.rows, len(rows)) == (1000, 50) and rows == sorted(set(rows))
    assert 300 < sum(rows) / 50 < 700
    assert read_set("x", path).sample == found.sample != read_set("x", path, seed=1).sample


def test_sets_without_instructions_are_refused(tmp_path: Path) -> None:
    publish(tmp_path / "d", kind="test", records=[Document("1", "x")], config={})
    with pytest.raises(InputRefused, match="no instruction"):
        read_set("x", tmp_path / "d")


# Measures against brute force


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_is_that_of_sets_of_tuples(n: int) -> None:
    texts = [*asks(40), "", "one", *asks(5)]
    curve = variety.distinct_curve(texts, n, also=17)
    assert [size for size, _ in curve] == [10, 17, 20, 47]
    for size, share in curve:
        grams = []
        for text in texts[:size]:
            found = sets.words(text)
            grams += [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
        assert share == pytest.approx(len(set(grams)) / len(grams))


def test_repeats_are_rows_that_were_there_before() -> None:
    letters = [" ".join(chr(97 + (i * j * 7 + j) % 26) * 3 for j in range(1, 9)) for i in range(20)]
    texts = [*letters, *(text.upper() + "!" for text in letters[:10])]
    curve = dict(variety.repeat_curve(texts, also=25))
    unique, seen = Counter[str](text for text in texts), set[str]()
    brute = []
    for text in texts:
        brute.append(text.lower().rstrip("!") in seen)
        seen.add(text.lower())
    assert len(unique) == 30
    assert {size: sum(brute[:size]) / size for size in curve} == pytest.approx(curve)
    assert set(curve) == {10, 20, 25, 30}


def test_entropy() -> None:
    assert variety.entropy({label: 5 for label in "abcdefgh"}) == pytest.approx(3)
    assert str(variety.entropy({"a": 9, "b": 0})) == "0.0", "and not -0.0, which the page would show"
    assert variety.entropy({}) is None


def test_nearest_between_sets_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variety, "BLOCK_ROWS", 7)
    a, b = fake_embedding.Embedder().encode(asks(30)), fake_embedding.Embedder().encode(asks(19, 100))
    of_a, of_b = variety.nearest_between(a, b)
    assert of_a == pytest.approx((a @ b.T).max(axis=1), abs=1e-6)
    assert of_b == pytest.approx((a @ b.T).max(axis=0), abs=1e-6)


def test_principal_components_are_those_of_a_decomposition() -> None:
    a = fake_embedding.Embedder().encode(asks(40))
    (points,) = variety.project([a], "pca", 0).points
    left, values, _ = np.linalg.svd(a - a.mean(axis=0), full_matrices=False)
    expected = (left * values)[:, :2]
    for axis in (0, 1):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        assert points[:, axis] == pytest.approx(sign * expected[:, axis], abs=1e-4)
    share = 100 * (values[:2] ** 2).sum() / (values**2).sum()
    assert f"{share:.0f}\u00a0%" in variety.project([a], "pca", 0).how


def test_a_large_set_has_no_more_say_in_the_axes() -> None:
    a, b = fake_embedding.Embedder().encode(asks(30)), fake_embedding.Embedder().encode(asks(30, 40))
    small = variety.project([a, b], "pca", 0).points
    large = variety.project([a, np.concatenate([b] * 20)], "pca", 0).points
    assert large[0] == pytest.approx(small[0], abs=1e-3)


@pytest.mark.skipif(NO_SKLEARN, reason="scikit-learn is not installed")
def test_tsne_is_one_projection_and_seeded() -> None:
    matrices = [fake_embedding.Embedder().encode(asks(count, start)) for count, start in ((12, 0), (7, 90))]
    first, again = (variety.project(matrices, "tsne", 3) for _ in range(2))
    assert [len(part) for part in first.points] == [12, 7] and "t-SNE, seed 3" in first.how
    assert all((one == other).all() for one, other in zip(first.points, again.points, strict=True))


def test_the_projection_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert variety.choose("auto", 10) == variety.choose("pca", 10) == "pca"
    with pytest.raises(UsageError, match="scikit-learn"):
        variety.choose("tsne", 10)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    assert (variety.choose("auto", 10), variety.choose("auto", 10**6)) == ("tsne", "pca")


def test_coverage_and_distances_by_brute_force(two: list[str], tmp_path: Path) -> None:
    first, second = write_comparison(
        two, tmp_path / "p.html", CompareConfig(cosine=0.8, projection="pca")
    ).facts
    encode = fake_embedding.Embedder().encode
    a, b = encode(asks(60)), encode(asks(30, 50))
    assert first["covered_by"]["other"] == pytest.approx(((a @ b.T).max(axis=1) >= 0.8 - 1e-6).mean())
    assert second["covered_by"]["First"] == pytest.approx(((a @ b.T).max(axis=0) >= 0.8 - 1e-6).mean())
    assert first["neighbor_distance_median"] == pytest.approx(np.median(fake_embedding.neighbors(a).distance))
    assert first["neighbor_distance_median_at_equal_size"] > first["neighbor_distance_median"]
    assert second["neighbor_distance_median_at_equal_size"] == second["neighbor_distance_median"]
    all_of_it = write_comparison(two, tmp_path / "q.html", CompareConfig(cosine=0, projection="pca")).facts
    assert all_of_it[0]["covered_by"]["other"] == all_of_it[0]["near_another_of_its_own"] == 1


# Figures


def test_lengths_are_shares_of_each_set() -> None:
    short, long = Lengths(Counter({3: 8, 5: 2})), Lengths(Counter({40: 60, 90: 39, 9000: 1}))
    figure = compare_charts.length_lines("x", "words", [short, long])
    assert figure is not None and [index for index, _ in figure.paths] == [0, 1]
    assert [name for name, _ in figure.table[:7]] == ["0", "1", "2", "3", "4 to 5", "6 to 7", "8 to 10"]
    assert figure.table[3][1][0] == "80\u00a0%" and figure.table[-1][1][1] == "1.0\u00a0%"
    for column in (0, 1):
        total = sum(float(cells[column].rstrip("\u00a0%").replace("< ", "")) for _, cells in figure.table)
        assert total == pytest.approx(100, abs=1.5)
    numbers = [float(number) for _, path in figure.paths for number in re.findall(r"-?[\d.]+", path)]
    assert min(numbers) >= 0 and max(numbers) <= figure.width
    assert compare_charts.length_lines("x", "words", [Lengths(), Lengths()]) is None


def test_labels_are_ordered_and_unknown_ones_counted() -> None:
    (bar,) = compare_charts.label_bars("difficulty", [{}, {"Hard": 1, "very easy": 2, "hard": 1, "odd": 3}])
    assert (bar.set, bar.rows, bar.others) == (1, 4, 3)
    assert bar.segments == [(0, 50, 0), (50, 0, 1), (50, 0, 2), (50, 50, 3), (100, 0, 4)]
    assert compare_charts.label_bars("difficulty", [{"odd": 3}]) == []


def test_dots_stay_on_the_map_and_keep_their_shape() -> None:
    points = [np.array([[0, 0], [10, 0], [0, 2], [0, 2]], np.float32), np.array([[5, 1]], np.float32)]
    first, second = compare_charts.panels(points)
    assert (first.count, second.count) == (4, 1) and second.path == "M260 260h0"
    dots = [tuple(map(int, dot)) for dot in re.findall(r"M(\d+) (\d+)h0", first.path)]
    assert sorted(dots) == [(10, 210), (10, 310), (510, 310)]  # one scale for both axes


# The page


def test_the_page_says_what_was_found(two: list[str], tmp_path: Path) -> None:
    done = write_comparison(two, tmp_path / "p.html", PCA)
    read = page_of(done)
    first, second = done.facts
    assert "First, other, side by side" in read.text
    for fact in (
        f"{first['per_turn_mean']:.0f}"[:1], "PCA", "a-fake-model", first["sha256"], "one.json.gz", "words, not tokens",
        "at a cosine of at least 0.5", f"{second['distinct_2']:.3f}", "good 100 %",
    ):  # fmt: skip
        assert fact in read.text, fact
    assert (first["rows"], second["rows"], first["total"], second["unit"]) == (60, 30, 60 * 8, "words")
    assert first["category_entropy_bits"] == 0, "all rows are of one category"
    assert second["category_entropy_bits"] is None, "no row has one"
    assert "Left out" not in read.text and done.left_out == {}
    assert done.page.read_text("utf-8") == write_comparison(two, tmp_path / "q.html", PCA).page.read_text(
        "utf-8"
    )


def test_without_embeddings_the_page_says_what_is_missing(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ojak.similarity.embedding", None)
    done = write_comparison(two, tmp_path / "p.html", PCA)
    assert "ojak[embed]" in done.left_out[EMBEDDINGS]
    read = page_of(done)
    assert f"Left out: {EMBEDDINGS}." in read.text and "map0-title" not in done.page.read_text("utf-8")
    assert "distinct-2" in read.text and "covered_by" not in done.facts[0]


def test_an_embedder_that_cannot_be_had_is_no_end(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str = "") -> Any:
        raise UsageError("embeddings need a thing", fix="get the thing")

    monkeypatch.setattr(fake_embedding.Embedder, "open", refuse)
    done = write_comparison(two, tmp_path / "p.html", PCA)
    assert done.left_out == {EMBEDDINGS: "embeddings need a thing; get the thing"}


def test_one_instruction_and_none_like_another(tmp_path: Path) -> None:
    paths = [str(alpaca(tmp_path / f"{name}.json", [text])) for name, text in (("a", "Why?"), ("b", ""))]
    done = write_comparison(paths, tmp_path / "p.html", PCA)
    assert done.facts[0]["neighbor_distance_median"] is None
    assert page_of(done).tags["svg"] > 5


def test_tokens_of_a_tokenizer(two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ojak.report import compare

    monkeypatch.setattr(
        compare, "_counter", lambda _: (lambda texts: [len(text) for text in texts], "tokens")
    )
    done = write_comparison(two, tmp_path / "p.html", CompareConfig(projection="pca", tokenizer="a-model"))
    assert done.facts[0]["total"] == sum(map(len, asks(60))) + 60 * len("It depends.")
    assert "in tokens of the tokenizer of a-model" in page_of(done).text


def test_a_page_is_never_replaced_unasked(two: list[str], tmp_path: Path) -> None:
    (page := tmp_path / "p.html").write_text("mine", "utf-8")
    with pytest.raises(TargetExists):
        write_comparison(two, page, PCA)
    assert page.read_text("utf-8") == "mine"
    write_comparison(two, page, PCA, replace=True)
    assert "side by side" in page.read_text("utf-8")
    with pytest.raises(UsageError):
        write_comparison(two, tmp_path, PCA, replace=True)


def hostile(folder: Path) -> list[str]:
    """Sets whose names, rows and labels are all payloads."""
    names = [*PAYLOADS[:3], *PAYLOADS[14:17], "W" * 300]
    found = []
    for number, load in enumerate(names):
        rows = [
            {
                "id": f"{number}-{i}",
                "instruction": f"{text} {i}",
                "output": text,
                "difficulty": text,
                "task_category": text,
            }
            for i, text in enumerate(PAYLOADS)
        ]
        (path := folder / f"{number}.json").write_text(json.dumps(rows), "utf-8")
        found.append(f"{load.replace('=', ' ')}={path}")
    return found


def test_hostile_sets_are_only_text(tmp_path: Path) -> None:
    html = write_comparison(hostile(tmp_path), tmp_path / "p.html", PCA).page.read_text("utf-8")
    read = Reader(html)
    assert set(read.tags) <= TAGS | {"defs", "use"}
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name in ("style", "src")]
    links = {(tag, re.sub(r"\d+", "N", value)) for tag, name, value in read.attributes if name == "href"}
    assert links == {("link", "data:,"), ("use", "#dotsN")}
    assert PAYLOADS[0] in read.text
    for char in "\u202e\u2066\x1b\x00\x9b\u2028":
        assert char not in html


# The command


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_command(two: list[str], tmp_path: Path) -> None:
    page = tmp_path / "new" / "p.html"
    result = ojak("report", "compare", *two, "--out", str(page), "--projection", "pca", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["page"] == str(page) and [each["name"] for each in facts["sets"]] == ["First", "other"]
    assert ojak("report", "compare", *two, "--out", str(page)).exit_code == 2
    assert ojak("report", "compare", two[0], "--out", str(tmp_path / "q.html")).exit_code == 2
    assert ojak("report", "compare", two[0], "nowhere", "--out", str(tmp_path / "q.html")).exit_code == 9
    assert not (tmp_path / "q.html").exists()


def test_a_run_s_page_needs_no_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [Message(role="user", content="Why?"), Message(role="assistant", content="So.")]
    for name in ("d", "compare"):
        publish(tmp_path / name, kind="magpie", records=[Conversation("1", turns)], config={})
    for number, words in enumerate((["d"], ["run", "d"], ["./compare"])):
        result = ojak("report", *words, "--out", f"page{number}")
        assert (result.exit_code, result.stdout) == (0, f"page{number}/index.html\n"), result.output
    assert ojak("report", "--out", "page9", "d").exit_code == 0
    helped = ojak("report", "--help")
    assert helped.exit_code == 0 and "compare" in helped.stdout
    assert "./compare" in ojak("report", "compare", "--out", "x.html", "d").stderr
