"""Recipes from hostile hands: refused as a usage error with a place, in bounded time, and nothing of theirs runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak import _recipe_yaml, recipe
from ojak.errors import UsageError
from ojak.report.text import plain

HEAD = "version: 1\nname: x\nstages:\n"


def refused(text: str, match: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(UsageError, match=match):
        _recipe_yaml.parse(text, "bad.yaml")
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object/new:subprocess.Popen [[touch, owned]]",
        "!!python/tuple [1, 2]",
        "!custom 1",
        "!!binary aGk=",
        "!!set {a}",
        "!!str 1",
        "!<tag:yaml.org,2002:python/none> null",
    ],
)
def test_tags(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(f"version: {tag}\n", r"bad.yaml:1:\d+: the recipe uses the tag")
    assert list(tmp_path.iterdir()) == []


def test_a_tag_in_an_override_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(HEAD + "  magpie: {model: scripted, rows: 1}\n", "utf-8")
    text = "!!python/object/apply:os.system [touch owned]"
    loaded = recipe.load("r.yaml", sets=[f"magpie.system={text}"])
    assert loaded.chosen[0].resolved()["system"] == text
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def laughs(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (laughs(12, 9), "grows too big"),
        (laughs(6, 2).replace("a5:", "a5: &b"), "not YAML"),
        ("a: &a [*a]", "grows too big"),
        ("a: &a {b: *a}", "grows too big"),
        ("a: *nobody", "not YAML"),
        ("[" * 500_000, "deeper than"),
        ("{a: " * 100_000, "deeper than"),
        ("- " * 300_000 + "a", "deeper than"),
        ("? " * 200_000 + "a", "deeper than"),
        ("\n".join("a" * 5 + f"{i}: 1" for i in range(20_000)), "more than"),
        ("a: 1\nb: 2\na: 3", r"bad.yaml:3:1: the recipe has the key 'a' twice"),
        ("a: {b: 1, b: 2}", "has the key 'b' twice"),
        ("'a': 1\n\"a\": 2", "has the key 'a' twice"),
        ("? [a]\n: 1", "not text"),
        ("1: 2", "not text"),
        ("true: 2", "not text"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: [1", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: \x1b[31m", "not YAML"),
        ("", "empty"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("%YAML 9.9\n--- a", "not YAML"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_shapes(text: str, match: str) -> None:
    refused(text, match)


def test_merge_keys_are_plain_keys() -> None:
    parsed = _recipe_yaml.parse("base: &b {x: 1}\nuse: {<<: *b}", "r")
    assert parsed.value["use"] == {"<<": {"x": 1}}


def test_small_aliases_are_fine() -> None:
    assert _recipe_yaml.parse("a: &s 7\nb: *s", "r").value == {"a": 7, "b": 7}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("1:30", "1:30"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("2026-01-01", "2026-01-01"),
        ("12", 12),
        ("-3", -3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("~", None),
        ("", None),
        (".", "."),
        (".nan", ".nan"),
        ("=", "="),
        ("1.0:0.9,1.2:1.0", "1.0:0.9,1.2:1.0"),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    found = _recipe_yaml.parse(f"a: {text}\n", "r").value["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\xff\xfea\x00", "not UTF-8"),
        (b"a: \xc3", "byte 3"),
        (b"#" * (2**20 + 1), "too big"),
    ],
)
def test_files(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(UsageError, match=match):
        recipe.load(tmp_path / "r.yaml")


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + (HEAD + "  pull: {model: m}\n").encode())
    assert recipe.load(tmp_path / "r.yaml").name == "x"


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot read the recipe"):
            recipe.load(path)


def test_an_endless_file_is_read_to_the_limit_only() -> None:
    with pytest.raises(UsageError, match="too big"):
        recipe.load("/dev/zero")


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "..", "", "A", "-x", "x\n", "x" * 65, "/tmp/x", "a.b"])
def test_names_stay_in_the_folder_of_runs(name: str, tmp_path: Path) -> None:
    text = f"version: 1\nname: {name!r}\nstages:\n  pull: {{model: m}}\n".replace("'x\\n'", '"x\\n"')
    (tmp_path / "r.yaml").write_text(text, "utf-8")
    with pytest.raises(UsageError, match="name cannot be"):
        recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize("field", ["out", "resume", "accept_license"])
@pytest.mark.parametrize("how", ["file", "set"])
def test_a_recipe_sets_neither_folders_nor_consent(field: str, how: str, tmp_path: Path) -> None:
    own = f", {field}: always" if how == "file" else ""
    (tmp_path / "r.yaml").write_text(HEAD + f"  magpie: {{model: m, rows: 1{own}}}\n", "utf-8")
    sets = [f"magpie.{field}=always"] if how == "set" else []
    with pytest.raises(UsageError, match=f"'{field}' of magpie is set by the run"):
        recipe.load(tmp_path / "r.yaml", sets=sets)


def test_messages_show_no_long_values(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(HEAD + f"  magpie: {{model: m, rows: {'x' * 100_000}}}\n", "utf-8")
    with pytest.raises(UsageError) as caught:
        recipe.load(tmp_path / "r.yaml")
    assert len(str(caught.value)) < 1000
    assert plain(str(caught.value)) == str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="ab:-?[]{}&*!|>'\"#%@,\n \t1", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = _recipe_yaml.parse(text, "r")
    except UsageError:
        return
    assert isinstance(parsed.value, dict | list | str | int | float | None)
