"""`ojak augment`: questions and answers for texts, made from those very texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ojak.cli.terminal import one_line, say, write, write_json
from ojak.cli.words import AcceptLicense, Engine, Json, KeyEnv, Tokenizer, Url, place
from ojak.errors import UsageError


def augment(
    source: Annotated[
        Path, typer.Argument(parser=place, metavar="DIR|FILE", help="Documents: an artifact, or a file of them.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The new folder; again, it goes on there.")],
    synthesizer: Annotated[
        str, typer.Option(metavar="rules|NAME|DIR", help="Who makes the pairs: rules, or a model.")
    ] = "rules",
    shots: Annotated[int, typer.Option(min=1, help="Texts of a group; later ones are asked after earlier ones.")] = 1,
    format: Annotated[
        Literal["auto", "published", "asked"], typer.Option(help="How a model is asked; auto: by what it is.")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="The most that a model writes about a piece of text.")] = 400,
    piece_tokens: Annotated[int, typer.Option(min=16, help="Longer texts are asked about in pieces.")] = 1024,
    most_pieces: Annotated[int, typer.Option(min=1, help="The most pieces of a text; the rest is counted.")] = 4,
    most_pairs: Annotated[int, typer.Option(min=1, help="The most pairs that rules make of a text.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of a model's draws; 0: the likeliest tokens.")] = 0.0,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Drop pairs that fail the check.")] = True,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="verify.X=N", help="A threshold of the check (docs/verify.md). Repeatable."),
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="A model that reads each pair with its text and without it.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(parser=place, metavar="FILE", help="Templates in another language (docs/augment.md).")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The split of an artifact; default: train.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pairs and templates.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that make pairs by rules; default: one a core.")
    ] = None,
    engine: Engine = "native",
    url: Url = None,
    tokenizer: Tokenizer = None,
    key_env: KeyEnv = None,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make questions and answers from texts, and write both down for pre-training (arXiv 2406.14491).

    Each pair is checked against its text; what fails is kept aside with the reason. Prints the folder, or with --json
    the counts. Interrupted, the same command goes on where it stopped.

    Example: ojak augment my-corpus --synthesizer rules --out my-augmented
    """
    from ojak.augment.config import AugmentConfig
    from ojak.augment.run import augment_data, summary
    from ojak.cli.progress import Progress
    from ojak.cli.training import config_of
    from ojak.cli.work import nothing_made

    config = config_of(
        AugmentConfig, sets or [], "see `ojak augment --help`",
        synthesizer=synthesizer, shots=shots, format=format, max_tokens=max_tokens,
        piece_tokens=piece_tokens, most_pieces=most_pieces, most_pairs=most_pairs, temperature=temperature,
        verify=verify, verifier=verifier, templates=templates, split=split, limit=limit, seed=seed, workers=workers,
        engine=engine, url=url, tokenizer=tokenizer, key_env=key_env, accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    if config.verify and not verify:
        raise UsageError("--no-verify leaves nothing to set", fix="leave out --no-verify, or --set verify")
    with Progress() as progress:
        facts = summary(augment_data(source, out, config, notify=say, progress=progress))
    if as_json:
        write_json(facts)
    else:
        say(sentence(facts))
        write(out)
    if not facts["pairs"]:
        raise nothing_made("pairs", {**facts, "rows": facts["documents"], "rejected": facts["discarded"]})


def sentence(facts: Mapping[str, Any]) -> str:
    """What an augmentation gave."""
    reasons = ", ".join(f"{one_line(reason)} {number:,}" for reason, number in facts["discarded"].items())
    return (
        f"{facts['pairs']:,} pairs about {facts['documents']:,} documents, {facts['verified']:,} verified"
        + (f"; discarded: {reasons}" if reasons else "")
    )
