"""`ojak report`: a page about a run; `ojak report compare`: a page about several data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import Json, place

DEFAULT = "run"


class ReportGroup(TyperGroup):
    """`ojak report DIR ...` is `ojak report run DIR ...`: whatever is no verb of the group is a run's folder."""

    default = DEFAULT

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ReportGroup,
    help="Write a page about a run (`ojak report DIR`), or about several data sets (`ojak report compare`).",
    no_args_is_help=True,
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")]


@app.command(DEFAULT)
def run(
    run: Annotated[
        Path, typer.Argument(parser=place, metavar="RUN", help="The folder of a run, or of one artifact.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The folder for index.html.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run. The word `run` may be left out.

    Prints where the page is.
    """
    from ojak.report import write_report

    page = write_report(run, out, replace=overwrite)
    if as_json:
        write_json({"page": str(page)})
    else:
        write(page)


@app.command("compare")
def compare(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SET...", help="Two or more: folders of artifacts, or files, packed or not."
        ),
    ],
    out: Annotated[
        Path, typer.Option(parser=place, metavar="PAGE", help="The new page, such as compare.html.")
    ],
    cosine: Annotated[
        float, typer.Option(min=0, max=1, help="The least cosine at which one instruction covers another.")
    ] = 0.5,
    projection: Annotated[
        Literal["auto", "pca", "tsne"], typer.Option(help="How the map is made; t-SNE needs scikit-learn.")
    ] = "auto",
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Count the tokens of this model; otherwise words.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Which instructions are drawn from sets of more than 10,000.")
    ] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page that shows data sets side by side.

    Sizes, lengths, labels, nearest neighbours, a map, coverage of one by another, variety and repeats. What
    needs embeddings is left out, and named, where the extra `embed` is not installed. Prints where the page is.

    Example: ojak report compare mine=my-data alpaca.json.gz --out compare.html
    """
    from ojak.report.compare import CompareConfig, write_comparison

    config = CompareConfig(cosine=cosine, projection=projection, tokenizer=tokenizer, seed=seed)
    done = write_comparison(sets, out, config, replace=overwrite, notify=say)
    for part, why in done.left_out.items():
        say(f"{part}: {why}", "yellow", "left out: ")
    if as_json:
        write_json({"page": str(done.page), "sets": done.facts, "left_out": done.left_out})
    else:
        write(done.page)
