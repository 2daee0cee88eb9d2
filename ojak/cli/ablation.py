"""Calls behind `ojak ablate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak.cli.work import RecipeResult, run_recipe
from ojak.errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from ojak._recipe_run import Step
    from ojak.recipe import Recipe
    from ojak.report.ablation import Ablation

NEEDED = ("grid", "train", "evaluate")


def _loaded(path: Path, out: Path | None, sets: Sequence[str]) -> Recipe:
    from ojak import recipe

    found = recipe.load(path, out=out, sets=sets)
    missing = [name for name in NEEDED if name not in [item.stage.name for item in found.chosen]]
    if missing:
        raise UsageError(
            f"{path} is no ablation: it has no stage {missing[0]}",
            why=f"it takes {', '.join(NEEDED)} (docs/ablate.md)", fix="`ojak run` runs other recipes",
        )  # fmt: skip
    return found


def planned(
    path: Path, out: Path | None, sets: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[Step]]:
    """(what each arm would be and cost, where each stage stands); nothing is run or written."""
    from ojak import _recipe_run
    from ojak.train.grid import GridConfig, arm_facts

    found = _loaded(path, out, sets)
    settings = next(item.settings for item in found.chosen if item.stage.name == "grid")
    assert isinstance(settings, GridConfig)
    return arm_facts(settings), _recipe_run.plan(found)


def run_ablation(
    path: Path, out: Path | None, sets: Sequence[str], accept_license: tuple[str, ...], overwrite: bool
) -> tuple[RecipeResult, Ablation]:
    """Run all arms that are not finished; raises what `RecipeResult.check` does where a signal stopped them."""
    from ojak.report.ablation import read_ablation

    _loaded(path, out, sets)
    result = run_recipe(path, out, sets, accept_license, overwrite)
    result.check()
    folders = [result.out / name for name in NEEDED]
    found = read_ablation(folders[0], [folders[1]], folders[2])
    if found is None:
        raise VerificationFailed(f"{folders[0]} holds no grid", why="its manifest is of another kind")
    return result, found
