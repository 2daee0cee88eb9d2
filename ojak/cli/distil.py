"""`ojak distil`: a teacher's predictions, kept for the students that will learn from them (`ojak train distil`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.train import Data, MaxLen, SeveralData, Style
from ojak.cli.words import AcceptLicense, Json, place

app = typer.Typer(help="Keep a teacher's predictions.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep a teacher's predictions."""


@app.command("cache", cls=SeveralData)
def cache(
    teacher: Annotated[str, typer.Option(metavar="NAME|DIR", help="The model whose predictions are kept.")],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(parser=place, metavar="DIR", help="The cache's folder; run again, it goes on there."),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="The most likely so many tokens of each place.")] = 50,
    temperature: Annotated[float, typer.Option(help="At which the distribution is taken.")] = 1.0,
    style: Style = None,
    max_len: MaxLen = None,
    accept_license: AcceptLicense = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A=B", help="Any other setting (docs/distil.md). Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Have a teacher read rows once, and keep what it predicts at every learnt token.

    Of each place the log-probabilities of the most likely tokens and the mass of all others, 200 or 300 bytes.
    Stopped, the same command goes on. Data, style and lengths must be those of the run that learns from it.

    Example: ojak distil cache --teacher smollm2-135m-instruct --data my-data --out cache
    """
    from ojak.cli.progress import Progress
    from ojak.cli.training import config_of
    from ojak.train.distil_config import DistilCacheConfig
    from ojak.train.distil_make import cache_teacher

    config = config_of(
        DistilCacheConfig, sets or [], "see `ojak distil cache --help` and docs/distil.md", teacher=teacher,
        data=tuple(data), out=out, top_k=top_k, temperature=temperature, style=style, max_len=max_len,
        accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    with Progress() as shown:
        made = cache_teacher(config, notify=say, progress=shown)
    if as_json:
        write_json(made.to_dict())
        return
    say(
        f"{made.rows:,} rows, {made.tokens:,} learnt tokens, {made.bytes / 2**20:,.1f} MiB"
        f" ({made.bytes_per_token:,.0f} bytes a token); {made.tail_mass:.1%} of the mass is outside the top"
        f" {made.top_k}"
    )
    write(made.out)
