"""The comparison in a real browser: quiet, still, readable in both colour schemes and on a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_embedding
import pytest
from test_compare import PCA, alpaca, asks, hostile
from test_report_browser import CUT_SVG_TEXT, TEXT_COLORS, TOO_WIDE, open_all, ratio_of

from ojak.report.compare import write_comparison


@pytest.fixture
def page_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four sets, one of them without labels."""
    fake_embedding.install(monkeypatch)
    levels = ["very easy", "easy", "medium", "hard", "very hard"]
    found = []
    for number in range(4):
        more = {"difficulty": levels[number], "task_category": f"category {number}"} if number else {}
        count = 40 + 30 * number
        answers = ["word " * (1 + (i * (number + 1)) % 150) for i in range(count)]
        found.append(
            str(alpaca(tmp_path / f"set-{number}.json.gz", asks(count, 25 * number), answers, **more))
        )
    return write_comparison(found, tmp_path / "page.html", PCA).page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_fits_and_reads(page_file: Path, visit: Callable[..., Any], width: int, scheme: str) -> None:
    page = visit(page_file, width, scheme)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(TOO_WIDE) == [] and page.evaluate(CUT_SVG_TEXT) == []
    colors = page.evaluate(TEXT_COLORS)
    assert len(colors) >= 5
    assert {pair: where for pair, where in colors.items() if ratio_of(pair) < 4.5} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_set_has_its_own_colour_that_can_be_seen(
    page_file: Path,
    visit: Callable[..., Any],
    scheme: str,
) -> None:
    page = visit(page_file, 1280, scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    strokes = page.evaluate("""() => [0, 1, 2, 3, 4, 5, 6, 7].map(number => {
      const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
      path.setAttribute('class', `line s${number}`);
      document.querySelector('main svg').append(path);
      return getComputedStyle(path).stroke;
    })""")
    assert len(set(strokes)) == 8
    assert {
        stroke: ratio_of(f"{stroke} / {ground}") for stroke in strokes if ratio_of(f"{stroke} / {ground}") < 3
    } == {}


def test_the_map_draws_every_set_in_each_panel(page_file: Path, visit: Callable[..., Any]) -> None:
    page = visit(page_file)
    drawn = page.evaluate("""() => [...document.querySelectorAll('.maps svg')].map(svg =>
      [...svg.querySelectorAll('use')].filter(use => use.getBBox().width > 50).length)""")
    assert drawn == [4, 4, 4, 4]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_sets_do_nothing(
    tmp_path: Path,
    visit: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    fake_embedding.install(monkeypatch)
    page = visit(write_comparison(hostile(tmp_path), tmp_path / "p.html", PCA).page, 375, scheme)
    open_all(page)
    page.wait_for_timeout(200)
    assert page.locator("script, iframe, img, image, object, embed, base, form, input, a").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 375 and page.evaluate(TOO_WIDE) == []


def test_policy_stops_what_escaping_would_let_through(page_file: Path, browser: Any) -> None:
    hole = "<script>document.title='ran'</script><img src=http://evil.test/a.png onerror=\"document.title='ran'\">"
    page_file.write_text(page_file.read_text("utf-8").replace("<main>", f"<main>{hole}"), "utf-8")
    page = browser.new_page()
    answered: list[str] = []
    page.on("response", lambda response: answered.append(response.url))
    page.goto(page_file.as_uri())
    page.wait_for_timeout(100)
    assert page.title().endswith("compared") and answered == [page_file.as_uri()]
    page.close()
