"""`ojak evaluate`: what a model can do, in figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ojak.cli.terminal import one_line, say, write, write_json, write_table
from ojak.cli.words import AcceptLicense, Json, place

Figure = tuple[str, object]


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR|NAME", help="The model: a known name, a file or a folder.")],
    data: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Rows of any format, or an artifact.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE",
            help="likelihood, answers or instructions. Repeatable; by default likelihood, without --data instructions.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="DIR|NAME", help="A second model on the same rows, such as the base.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The split of an artifact.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, taken evenly.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    checks: Annotated[int, typer.Option(min=1, help="How many built-in instructions.")] = 200,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="A model that grades the answers, if it is fit to.")
    ] = None,
    trust_anyway: Annotated[
        bool, typer.Option("--trust-anyway", help="Let a judge grade that did not pass a calibration.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the built-in instructions and the bootstrap.")] = 0,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None, typer.Option(help="By default what the hardware multiplies best.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=place, metavar="DIR", help="Keep the answers and all figures here.")
    ] = None,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure a model: how well it predicts texts, what it answers, whether it does what it is told.

    likelihood: perplexity and bits per byte of the rows. answers: greedy answers to the rows' requests, compared with
    the rows' own. instructions: built-in requests that a rule can check, no judge needed.

    Example: ojak evaluate smollm2-135m-instruct --data my-data --split test --measure likelihood --measure answers
    """
    from ojak.cli.progress import Progress
    from ojak.cli.work import made_of
    from ojak.evaluate.config import EvaluateConfig
    from ojak.evaluate.run import evaluate_model

    measures = tuple(measure or (["likelihood"] if data else ["instructions"]))
    config = made_of(
        EvaluateConfig, "evaluate", model=model, data=None if data is None else str(data), measures=measures,
        against=against, split=split, limit=limit, max_tokens=max_tokens, checks=checks, judge=judge,
        trust_anyway=trust_anyway, seed=seed, dtype=dtype, accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    with Progress() as progress:
        found = evaluate_model(config, out, notify=say, progress=progress)
    if as_json:
        write_json(found)
        return
    for title, figures in _sections(found):
        write(title)
        write_table(_rows(figures))
    if out is not None:
        write(out)


def _sections(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A table for each model, and one for the difference."""
    yield one_line(found["model"]), found
    if "against" in found:
        yield f"\n{one_line(found['against']['model'])}", found["against"]
        yield "\ndifference (first minus second, 95 %)", found["difference"]


HIDDEN = ("model", "identity", "against", "difference", "out", "unasked")


def _rows(figures: Mapping[str, Any], within: str = "") -> Iterator[Figure]:
    """Names and values, nested ones with their names joined."""
    for name, value in figures.items():
        label = f"{within}{name}".replace("_", " ")
        if name in HIDDEN or name.endswith("_interval") or value in ({}, None):
            continue
        if isinstance(value, Mapping):
            yield from _rows(value, f"{within}{name}: ")
        elif f"{name}_interval" in figures:
            yield label, _estimate([value, *figures[f"{name}_interval"]])
        elif isinstance(value, list):
            yield label, _estimate(value)
        else:
            yield label, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _estimate(value: list[float]) -> str:
    """A figure with its interval."""
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
