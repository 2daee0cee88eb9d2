"""`ojak pairs`: several answers to one instruction in, preference pairs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import AcceptLicense, Engine, Json, Url, place


def pairs(
    folder: Annotated[Path, typer.Argument(parser=place, metavar="DIR", help="Rows with several answers.")],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The folder of the pairs.")],
    by: Annotated[
        str,
        typer.Option(metavar="SCORE", help="instruction_gain, likelihood, judge_score, response_chars, or another."),
    ] = "instruction_gain",
    margin: Annotated[float, typer.Option(help="Least difference of the two scores.")] = 0.0,
    rejected: Annotated[
        Literal["worst", "quantile"], typer.Option(help="Which answer stands against the best one.")
    ] = "worst",
    quantile: Annotated[float, typer.Option(help="For that: 0 the worst, 1 the second best.")] = 0.25,
    length_ratio: Annotated[
        float | None, typer.Option(help="The longer of the two has at most this many times the characters.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Who scores; by default the model that answered.")
    ] = None,
    engine: Engine = "native",
    url: Url = None,
    trust_anyway: Annotated[
        bool, typer.Option("--trust-anyway", help="Let a judge decide that did not pass a calibration.")
    ] = False,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make preference pairs from rows with several answers to each instruction.

    The best answer by a score against a worse one. Ties and answers that say the same make none. Interrupted,
    the same command goes on with the scores that are there. Prints the folder, or with --json the counts of
    instructions: rows = accepted + rejected.

    Example: ojak pairs my-data --out my-pairs --rejected quantile --length-ratio 1.5
    """
    from ojak.cli.progress import Progress, top_reasons
    from ojak.cli.work import made_of, nothing_made
    from ojak.curate.pairs import PairsConfig, make_pairs, summary

    config = made_of(
        PairsConfig, "pairs", by=by, margin=margin, rejected=rejected, quantile=quantile, length_ratio=length_ratio,
        model=model, engine=engine, url=url, trust_anyway=trust_anyway, accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    with Progress() as progress:
        facts = summary(make_pairs(folder, out, config, notify=say, progress=progress))
    reasons = top_reasons(facts["rejected"])
    if as_json:
        write_json(facts)
    else:
        say(
            f"{facts['accepted']:,} pairs from {facts['rows']:,} instructions"
            + (f"; none for: {reasons}" if reasons else "")
        )
        write(out)
    if not facts["accepted"]:
        raise nothing_made("pairs", facts)
