"""`ojak run`: a recipe, from its first stage to its report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import AcceptLicense, Json, place


def run(
    recipe: Annotated[Path, typer.Argument(parser=place, metavar="RECIPE", help="A recipe's YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="DIR", help="The run's folder. Default: runs/ and the recipe's name."
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the recipe, scale=NAME, or a setting (stage.name=value). Repeatable.",
        ),
    ] = None,
    accept_license: AcceptLicense = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move results aside that must be made anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which stages would run, and why, or what is in their way.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the stages of a recipe in order.

    Those that are up to date are left alone; of the others it is said why they run.

    Example: ojak run recipes/quickstart.yaml --set magpie.rows=64
    """
    from ojak.cli.work import check_plan, plan_recipe, run_recipe

    if dry_run:
        steps = plan_recipe(recipe, out, sets or [])
        if as_json:
            write_json({"stages": [step.to_dict() for step in steps]})
        else:
            write("\n".join(step.line() for step in steps))
        check_plan(steps, overwrite)
        return
    result = run_recipe(recipe, out, sets or [], tuple(accept_license or ()), overwrite)
    if as_json:
        write_json(result.to_dict())
    elif not result.signal:
        say(f"{'what is done' if result.waiting else 'everything'} is in {result.out}")
        write(result.page or result.out)
        if result.talks:
            say(f"talk to what was trained: ojak chat {shlex.quote(result.talks)}")
    result.check()
