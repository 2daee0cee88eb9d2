"""`ojak synthesize`: an aligned model in, conversations out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import (
    AcceptLicense,
    DryRun,
    Engine,
    Json,
    KeyEnv,
    RayAddress,
    RetryFailed,
    Tokenizer,
    Url,
    Workers,
    place,
)

app = typer.Typer(help="Make conversations from an aligned model.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Make conversations from an aligned model."""


@app.command("magpie")
def magpie(
    model: Annotated[str, typer.Option(metavar="NAME|PATH", help="The model: a known name, or its file or folder.")],
    rows: Annotated[int, typer.Option(min=1, help="Instructions to sample; rules drop some of them.")],
    out: Annotated[
        Path, typer.Option(parser=place, metavar="DIR", help="The folder of the run; run again, it goes on there.")
    ],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.")] = 0,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT|@math|@code|@translation", help="A system turn or a domain; empty: none."),
    ] = None,
    language: Annotated[str | None, typer.Option(metavar="XX", help="The language to ask in, such as de.")] = None,
    grid: Annotated[
        str, typer.Option(metavar="PRESET|T:P,T:P", help="Temperatures and top-p values of the instructions.")
    ] = "default",
    personas: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="FILE", help="Personas, one on each line: each row's system turn has one."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="The most turns of a user in a conversation.")] = 1,
    responses: Annotated[int, typer.Option(min=1, help="Answers to each instruction; the first is the row's.")] = 1,
    response_temperature: Annotated[
        float | None, typer.Option(help="Of the answers; by default 0, or 0.8 for several.", show_default=False)
    ] = None,
    max_instruction_tokens: Annotated[int, typer.Option(min=1)] = 256,
    max_response_tokens: Annotated[int, typer.Option(min=1)] = 512,
    max_total_tokens: Annotated[int, typer.Option(min=1, help="Of a conversation of several turns.")] = 4096,
    limit_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens (exit 3).")] = None,
    limit_minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes (exit 3).")] = None,
    resume: Annotated[
        Literal["if_possible", "always", "never"], typer.Option(help="What to do with a run in DIR.")
    ] = "if_possible",
    engine: Engine = "native",
    url: Url = None,
    tokenizer: Tokenizer = None,
    key_env: KeyEnv = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    retry_failed: RetryFailed = False,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Sample instructions from a model's own chat template, and its answers to them (Magpie, arXiv
    2406.08464).

    Prints the folder, or with --json what came out. Interrupted, the same command goes on where it stopped.

    Example: ojak synthesize magpie --model smollm2-135m-instruct --rows 512 --out my-data
    """
    from ojak.cli.work import magpie_config, run_magpie

    config = magpie_config(
        model=model, rows=rows, out=out, seed=seed, system=system, language=language, grid=grid,
        personas=personas, turns=turns, responses=responses, response_temperature=response_temperature,
        max_instruction_tokens=max_instruction_tokens, max_response_tokens=max_response_tokens,
        max_total_tokens=max_total_tokens,
        limit_tokens=limit_tokens, limit_minutes=limit_minutes, resume=resume,
        engine=engine, url=url, tokenizer=tokenizer, key_env=key_env, workers=workers, ray_address=ray_address,
        retry_failed=retry_failed,
        accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    if dry_run:
        _show_plan(config, as_json)
        return
    _end(run_magpie(config), out, as_json)


@app.command("personas")
def personas(
    model: Annotated[str, typer.Option(metavar="NAME|PATH", help="The model: a known name, or its file or folder.")],
    source: Annotated[
        Path, typer.Option(parser=place, metavar="FILE|DIR", help="Texts: plain, JSON lines, Parquet, or a folder.")
    ],
    out: Annotated[
        Path, typer.Option(parser=place, metavar="DIR", help="The folder of the run; run again, it goes on there.")
    ],
    texts: Annotated[int | None, typer.Option(min=1, help="Take only the first so many excerpts.")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of persona-to-persona after that, up to 6.")] = 1,
    relatives: Annotated[int, typer.Option(min=1, help="People close to each persona, in each round.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.")] = 0,
    temperature: Annotated[float, typer.Option()] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a persona.")] = 128,
    limit_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens (exit 3).")] = None,
    limit_minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes (exit 3).")] = None,
    resume: Annotated[
        Literal["if_possible", "always", "never"], typer.Option(help="What to do with a run in DIR.")
    ] = "if_possible",
    engine: Engine = "native",
    url: Url = None,
    tokenizer: Tokenizer = None,
    key_env: KeyEnv = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    retry_failed: RetryFailed = False,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make personas: who would write or read a text, and who is close to them (Persona Hub, arXiv
    2406.20094).

    Prints the folder, or with --json what came out. Interrupted, the same command goes on where it stopped.

    Example: ojak synthesize personas --model smollm2-135m-instruct --source texts --out people
    """
    from ojak.cli.work import personas_config, run_personas

    config = personas_config(
        model=model, source=source, out=out, texts=texts, rounds=rounds, relatives=relatives, seed=seed,
        temperature=temperature, max_tokens=max_tokens, limit_tokens=limit_tokens, limit_minutes=limit_minutes,
        resume=resume, engine=engine, url=url, tokenizer=tokenizer, key_env=key_env, workers=workers,
        ray_address=ray_address, retry_failed=retry_failed, accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    if dry_run:
        _show_plan(config, as_json)
        return
    _end(run_personas(config), out, as_json)


def _end(result: Any, out: Path, as_json: bool) -> None:
    """Says what a run gave, and raises what makes its exit code."""
    if as_json:
        write_json(result.facts)
    elif not result.signal:
        say(result.sentence())
        write(out)
    result.check()


def _show_plan(config: Any, as_json: bool) -> None:
    from ojak.cli.work import run_plan

    plan = run_plan(config)
    if as_json:
        write_json(plan.to_dict())
    else:
        write("\n".join(plan.lines()))
