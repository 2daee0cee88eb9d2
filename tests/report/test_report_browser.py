"""The report in a real browser: quiet, still, readable in both colour schemes and on a telephone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import PAYLOADS, Make, contrast, lost, pair

from ojak.report import write_report

# Every visible element that holds text of its own, with its colour and the first opaque background behind it.
TEXT_COLORS = """() => {
  const found = {};
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest('title, desc')) continue;
    const style = getComputedStyle(node);
    let behind = node, ground = 'rgba(0, 0, 0, 0)';
    for (; behind && ground === 'rgba(0, 0, 0, 0)'; behind = behind.parentElement)
      ground = getComputedStyle(behind).backgroundColor;
    const ink = node instanceof SVGElement ? style.fill : style.color;
    found[ink + ' / ' + ground] = node.outerHTML.slice(0, 120);
  }
  return found;
}"""
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(node => node.checkVisibility()
  && !node.closest('.scroll, pre, svg') && node.getBoundingClientRect().right > innerWidth + 1)
  .map(node => node.outerHTML.slice(0, 160))"""
CUT_SVG_TEXT = """() => [...document.querySelectorAll('svg text')].filter(node => {
  const box = node.getBoundingClientRect(), frame = node.ownerSVGElement.getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1;
}).map(node => node.textContent)"""


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")


def ratio_of(colors: str) -> float:
    """Contrast of `rgb(1, 2, 3) / rgb(4, 5, 6)`."""
    sides = [re.findall(r"\d+", side)[:3] for side in colors.split(" / ")]
    one, other = ["#" + "".join(f"{int(part):02x}" for part in side) for side in sides]
    return contrast(one, other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_fits_and_reads(
    run_folder: Path, tmp_path: Path, visit: Callable[..., Any], width: int, scheme: str
) -> None:
    page = visit(write_report(run_folder, tmp_path / "report"), width, scheme)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(TOO_WIDE) == [] and page.evaluate(CUT_SVG_TEXT) == []
    colors = page.evaluate(TEXT_COLORS)
    assert len(colors) > 5
    assert {pair: where for pair, where in colors.items() if ratio_of(pair) < 4.5} == {}
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert dark == (scheme == "dark")


def test_pairs_open_by_mouse_and_keyboard(
    run_folder: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    page = visit(write_report(run_folder, tmp_path / "report"))
    pairs = page.locator("details.pair")
    assert pairs.count() == 30 and pairs.nth(0).locator(".turn").first.is_visible()
    answer = pairs.nth(1).locator(".turn").last
    assert not answer.is_visible()
    pairs.nth(1).locator("summary").click()
    assert answer.is_visible()
    pairs.nth(1).locator("summary").press("Enter")
    assert not answer.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_rows_do_nothing(
    make_artifact: Make, tmp_path: Path, visit: Callable[..., Any], scheme: str
) -> None:
    long_word = "W" * 3000
    rows = [pair(i, load, load, model=load, edits=[load]) for i, load in enumerate([*PAYLOADS, long_word])]
    gone = [lost(50 + i, load, load) for i, load in enumerate(PAYLOADS)]
    stats = {"license": "".join(PAYLOADS), "hardware": {PAYLOADS[2]: long_word, long_word: PAYLOADS[0]}}
    artifact = make_artifact(rows, gone, config={"system": PAYLOADS[4]}, stats=stats)
    page = visit(write_report(artifact.path, tmp_path / "report"), 375, scheme)
    open_all(page)
    for locator in page.locator("summary").all()[:40]:
        locator.hover()
    page.wait_for_timeout(200)
    assert page.locator("script, iframe, img, image, object, embed, base, form, input, a").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 375 and page.evaluate(TOO_WIDE) == []
    shown = page.locator("details.pair").first.inner_text()
    assert PAYLOADS[0] in shown


def test_policy_stops_what_escaping_would_let_through(run_folder: Path, tmp_path: Path, browser: Any) -> None:
    """Defence in depth: the same page with a script, a handler and an image put into it by hand runs and loads none."""
    path = write_report(run_folder, tmp_path / "report")
    hole = "<script>document.title='ran'</script><img src=http://evil.test/a.png onerror=\"document.title='ran'\">"
    path.write_text(path.read_text(encoding="utf-8").replace("<main>", f"<main>{hole}"), encoding="utf-8")
    page = browser.new_page()
    answered: list[str] = []
    page.on("response", lambda response: answered.append(response.url))
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri())
    page.wait_for_timeout(100)
    assert page.title().endswith("report") and answered == [path.as_uri()]
    assert sum("Content Security Policy" in text for text in refused) >= 2
    page.close()


def test_print_shows_every_pair_in_dark_ink(
    run_folder: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    page = visit(write_report(run_folder, tmp_path / "report"), 1280, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    turns = "[...document.querySelectorAll('details.pair .turn')]"
    assert page.evaluate(f"{turns}.length") >= 30
    assert page.evaluate(f"{turns}.every(node => node.checkVisibility())")
