"""`ojak report`: a page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ojak.cli.terminal import write, write_json
from ojak.cli.words import Json, place


def report(
    run: Annotated[
        Path, typer.Argument(parser=place, metavar="RUN", help="The folder of a run, or of one artifact.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The folder for index.html.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run.

    Prints where the page is.
    """
    from ojak.report import write_report

    page = write_report(run, out, replace=overwrite)
    if as_json:
        write_json({"page": str(page)})
    else:
        write(page)
