"""`ojak ablate`: one base model and a grid of switches, each tried alone, in one table with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import AcceptLicense, DryRun, Json, place


def ablate(
    grid: Annotated[Path, typer.Argument(parser=place, metavar="GRID", help="A recipe's YAML file with a stage grid.")],
    out: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="DIR", help="The folder of the runs. Default: runs/ and the grid's name."),
    ] = None,
    scale: Annotated[str | None, typer.Option(metavar="NAME", help="A scale of the grid, such as smoke.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter or a setting (grid.tokens=50000). Repeatable."),
    ] = None,
    accept_license: AcceptLicense = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move results aside that must be made anew.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train every arm of a grid with the same seeds and rows, measure all, and compare each with the reference.

    Run again, it goes on where it was stopped. Prints the table; the page with its picture is in DIR/report.

    Example: ojak ablate experiments/ablation.yaml --scale smoke --out ablation
    """
    from ojak.cli.ablation import planned, run_ablation
    from ojak.cli.work import check_plan

    chosen = [*([f"scale={scale}"] if scale else []), *(sets or [])]
    if dry_run:
        facts, steps = planned(grid, out, chosen)
        if as_json:
            write_json({"arms": facts, "stages": [step.to_dict() for step in steps]})
        else:
            for name, each in facts.items():
                cost = f"{each['flops_per_token'] / 1e6:,.1f} MFLOP a token, {each['tokens']:,} tokens"
                write(f"{name}: {each['model_type']}, {each['parameters']:,} parameters, {cost}")
            write("\n".join(step.line() for step in steps))
        check_plan(steps, overwrite)
        return
    result, found = run_ablation(grid, out, chosen, tuple(accept_license or ()), overwrite)
    if as_json:
        write_json({"out": str(result.out), "report": result.page, **found.to_dict()})
    else:
        write("\n".join(found.table()))
        say(found.remark)
        write(result.page or result.out)
    found.check()
