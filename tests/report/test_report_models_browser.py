"""The report of training and evaluation in a real browser: quiet, readable in both schemes and on a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_runs
import pytest
from test_report_browser import CUT_SVG_TEXT, TEXT_COLORS, TOO_WIDE, open_all, ratio_of
from test_report_models import hostile  # noqa: F401 (a fixture)

from ojak.report import write_report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_about_models_fits_and_reads(
    chapter7: Path, tmp_path: Path, visit: Callable[..., Any], width: int, scheme: str
) -> None:
    page = visit(write_report(chapter7, tmp_path / "report"), width, scheme)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(TOO_WIDE) == [] and page.evaluate(CUT_SVG_TEXT) == []
    colors = page.evaluate(TEXT_COLORS)
    assert {pair: where for pair, where in colors.items() if ratio_of(pair) < 4.5} == {}


def test_the_link_leads_to_what_training_changed(
    run_folder: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    page = visit(write_report(model_runs.quickstart_models(run_folder), tmp_path / "report"))
    page.get_by_role("link", name="what that changed").press("Enter")
    assert page.get_by_role("heading", name="Before and after").evaluate(
        "node => Math.abs(node.getBoundingClientRect().top) < 80"
    )
    table = page.get_by_role("table", name="Before and after training")
    assert table.get_by_role("columnheader").all_inner_texts() == ["Measure", "Before", "After", "Difference"]
    assert table.get_by_role("rowheader").count() == 6
    figure = page.get_by_role("img", name="Loss in training")
    assert figure.count() == 1 and figure.is_visible()


def test_every_colour_has_a_line_of_its_own_kind(tmp_path: Path, visit: Callable[..., Any]) -> None:
    """Arms are told apart without colour, too: no two mean lines have one dash pattern."""
    folder = model_runs.training(tmp_path / "train", {f"arm{n}": {"steps": 5} for n in range(8)}, seeds=[0])
    page = visit(write_report(folder, tmp_path / "report"))
    lines = (
        "[...document.querySelectorAll('.curves path.mean')].map(n => getComputedStyle(n).strokeDasharray)"
    )
    found = page.evaluate(lines)
    assert len(found) == len(set(found)) == 8


def test_hostile_models_do_nothing(hostile: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:  # noqa: F811
    page = visit(write_report(hostile, tmp_path / "report"), 375)
    open_all(page)
    page.wait_for_timeout(200)
    assert page.locator("script, iframe, img, image, object, embed, base, form, input, a").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 375 and page.evaluate(TOO_WIDE) == []


def test_print_shows_every_answer(chapter7: Path, tmp_path: Path, visit: Callable[..., Any]) -> None:
    page = visit(write_report(chapter7, tmp_path / "report"), 1280, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    turns = "[...document.querySelectorAll('.answers .turn')]"
    assert page.evaluate(f"{turns}.length") > 20
    assert page.evaluate(f"{turns}.every(node => node.checkVisibility())")
