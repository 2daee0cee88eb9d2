"""The stability gap on curves whose depth and recovery are known, and on the page."""

from __future__ import annotations

import json
from pathlib import Path

import model_runs
import pytest

from ojak.report import write_report
from ojak.report.gaps import Gap, stability_gap
from ojak.report.training import MAX_POINTS, read_training


@pytest.mark.parametrize(
    ("losses", "depth", "worst", "recovered"),
    [
        ([2.0, 2.4, 2.2, 1.8], 0.4, 10, 25.0),  # 2.2 to 1.8 goes through 2.0 in the middle of two checks
        ([2.0, 1.9, 1.8], 0.0, 0, 0.0),
        ([2.0, 2.1, 2.3, 2.2], 0.3, 20, None),
        ([2.0, 2.5, 2.0, 2.2], 0.5, 10, 20.0),
        ([2.0, 2.0], 0.0, 0, 0.0),
    ],
)
def test_depth_and_recovery(losses: list[float], depth: float, worst: float, recovered: float | None) -> None:
    found = stability_gap([(10.0 * number, loss) for number, loss in enumerate(losses)])
    assert isinstance(found, Gap)
    assert (found.before, found.worst) == (losses[0], worst)
    assert found.depth == pytest.approx(depth)
    assert found.recovered == (pytest.approx(recovered) if recovered is not None else None)
    assert found.change == pytest.approx(losses[-1] - losses[0])


def test_without_a_check_before_training_nothing_is_said() -> None:
    assert stability_gap([(5, 2.0), (10, 3.0)]) is None
    assert stability_gap([(0, 2.0)]) is None
    assert stability_gap([]) is None


def with_general(folder: Path, losses: list[float]) -> None:
    model_runs.training_run(folder, steps=len(losses))
    lines = [{"step": 0, "val_loss_general": losses[0], "val_loss": 1.0}]
    lines += [{"step": step, "val_loss_general": loss} for step, loss in enumerate(losses) if step]
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_the_page_tells_and_draws_it(tmp_path: Path) -> None:
    with_general(tmp_path / "run", [2.0, 2.4, 2.2, 1.8])
    page = write_report([tmp_path / "run"], tmp_path / "page").read_text("utf-8")
    assert "Loss on held-out rows: general" in page
    table = page[page.index("What was lost and won again") :]
    cells = [cell.partition("</td>")[0] for cell in table.split("<td>")[1:5]]
    assert cells == ["2.000", "0.400", "2.5", "\u22120.200"]


def test_a_long_curve_keeps_its_ends(tmp_path: Path) -> None:
    with_general(tmp_path / "run", [2.0 + (step == 150) for step in range(350)])
    (run,) = read_training([tmp_path / "run"]).runs
    points = run.more["general"]
    assert len(points) == MAX_POINTS
    assert (points[0].step, points[-1].step) == (0, 349)
    assert points[0].tokens == 0
