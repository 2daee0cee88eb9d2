"""`ojak lift`: length limits in conversations and preferences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import Json, place


def lift(
    source: Annotated[
        Path, typer.Argument(parser=place, metavar="DIR", help="Conversations or preferences: an artifact, or files.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The new folder.")],
    unit: Annotated[Literal["words", "characters"], typer.Option(help="What is counted.")] = "words",
    wording: Annotated[
        Literal["paper", "varied"], typer.Option(help="The paper's sentence, or one of several.")
    ] = "paper",
    slack: Annotated[
        float, typer.Option(help="A limit that an answer keeps is larger by up to this share of its length.")
    ] = 0.25,
    both_fit: Annotated[
        float, typer.Option(help="The share of preferences whose limit both answers keep; no other turns one round.")
    ] = 0.25,
    originals: Annotated[
        Literal["train", "all", "none"], typer.Option(help="The splits in which rows stay without a limit, too.")
    ] = "train",
    seed: Annotated[int, typer.Option(help="The same seed draws the same limits.")] = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Put length limits ("using 40 words or less") into rows, for training and for measuring (LIFT).

    Of a conversation a limit that the answer keeps; of a preference one that tells its answers apart: the one that
    keeps it is the better one. Prints the folder, or with --json what became of the rows.

    Example: ojak lift my-pairs --out my-limited-pairs
    """
    from ojak.augment.lift import LiftConfig, lift_data
    from ojak.cli.work import made_of
    from ojak.errors import PartialResult

    config = made_of(
        LiftConfig,
        "lift",
        unit=unit,
        wording=wording,
        slack=slack,
        both_fit=both_fit,
        originals=originals,
        seed=seed,
    )
    artifact = lift_data(source, out, config)
    facts = {**artifact.stats, "splits": artifact.splits, "out": str(out)}
    if as_json:
        write_json(facts)
    else:
        cases = ", ".join(
            f"{split}: {', '.join(f'{name} {number:,}' for name, number in each.items())}"
            for split, each in facts["cases"].items()
        )
        say(f"{facts['limited']:,} rows with a limit; {cases}")
        write(out)
    if not facts["limited"]:
        raise PartialResult("no row took a limit", why="the reasons stand above", fix="give other rows")
