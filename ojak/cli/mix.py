"""`ojak pretrain-mix`: the data of one arm of a comparison, to the token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import AcceptLicense, Json, place


def pretrain_mix(
    folder: Annotated[Path, typer.Argument(parser=place, metavar="DIR", help="A corpus, augmented or not.")],
    arm: Annotated[
        Literal["vanilla", "mix", "instruct"],
        typer.Option(help="Texts alone, texts and a supervised set, or texts and texts with their pairs."),
    ],
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="How many tokens the data set has.")],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The new folder.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="The model to be trained, or a folder with its tokenizer.")
    ] = "smollm2-135m-instruct",
    ratio: Annotated[
        float, typer.Option(help="The share of augmented (supervised) tokens among those not replayed.")
    ] = 0.2,
    mix_data: Annotated[
        str | None, typer.Option(metavar="PATH", help="The supervised set of --arm mix.")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="PATH:RATIO", help="General instructions or texts, RATIO tokens for each other one."),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="The share of texts kept out, as the split validation; the same for all arms.")
    ] = 0.0,
    max_len: Annotated[int, typer.Option(min=4, help="The most tokens of a row, as training will have it.")] = 1024,
    seed: Annotated[int, typer.Option(help="Draws the order in which texts are taken.")] = 0,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make a data set of N tokens, to one row for `ojak train pretrain`.

    Prints the folder, or with --json the tokens, the sequences (rows) and the share of each source.

    Example: ojak pretrain-mix my-texts --arm instruct --tokens 1000000 --ratio 0.2 --out my-mix
    """
    from ojak.cli.work import made_of
    from ojak.errors import PartialResult
    from ojak.train.mix import make_mix, summary
    from ojak.train.mix_config import MixConfig

    config = made_of(
        MixConfig, "pretrain-mix", arm=arm, tokens=tokens, tokenizer=tokenizer, ratio=ratio, mix_data=mix_data,
        replay=replay, held_out=held_out, max_len=max_len, seed=seed, accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    facts = summary(make_mix(folder, out, config, notify=say))
    if as_json:
        write_json(facts)
    else:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in facts["share"].items())
        say(f"{facts['tokens']:,} tokens in {facts['sequences']:,} sequences: {shares}")
        write(out)
    if not facts["tokens"]:
        raise PartialResult(
            f"no text fits into {tokens:,} tokens",
            why=f"a text of at most {max_len:,} tokens is taken whole or not at all",
            fix="raise --tokens, in another folder",
        )
