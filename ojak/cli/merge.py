"""`ojak merge`: several models made into one, or measured at several weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ojak.cli.terminal import one_line, say, write, write_json, write_table
from ojak.cli.words import AcceptLicense, Json, place
from ojak.errors import UsageError

if TYPE_CHECKING:
    from ojak.merge.config import MergeConfig

Method = Literal["linear", "slerp", "task", "ties", "dare", "ema", "liti"]
Scale = Annotated[
    float, typer.Option(help="slerp, task, ties, dare: what the merged task vector is multiplied by.")
]
Angle = Annotated[
    Literal["layer", "tensor"],
    typer.Option(help="slerp: one angle for each layer, as in WARP, or each tensor."),
]
Density = Annotated[float, typer.Option(help="ties: the share of each task vector that is kept.")]
Drop = Annotated[float, typer.Option(help="dare: the share of each task vector that is dropped at random.")]
Sweep = Annotated[
    bool, typer.Option("--sweep", help="Measure merges at several weights; --out gets a table and a picture.")
]
At = Annotated[
    list[float] | None,
    typer.Option("--at", help="--sweep: a point of the grid. Repeatable; by default 0 to 1."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH[@SPLIT]",
        help="--sweep: rows to measure perplexity on. Given twice: the front of both.",
    ),
]


def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="NAME|DIR...", help="Known names, files, folders, runs, adapters.")
    ],
    method: Annotated[Method, typer.Option(help="How they are merged (docs/merge.md).")],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The folder of the merged model.")],
    base: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="The model that all come from. Not for linear.")
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Repeatable, one a model. liti: eta; ema: mu. By default all alike."),
    ] = None,
    scale: Scale = 1.0,
    angle: Angle = "layer",
    density: Density = 0.2,
    drop: Drop = 0.5,
    seed: Annotated[int, typer.Option(help="dare: what is dropped. --sweep: the bootstrap.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What is written; by default what the first model is stored as."),
    ] = None,
    sweep: Sweep = False,
    at: At = None,
    data: Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="--sweep: at most so many rows, evenly.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier merge or sweep.")] = False,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Merge models of one architecture and one tokenizer into a Hugging Face folder.

    linear: their mean. slerp: the arc between what each has learnt since --base, layer by layer. task: the base and
    all that was learnt. ties: what they agree on. dare: thinned out at random. ema: a running mean, in their order.
    liti: from the base towards one model. Adapters are merged into their base first. Models that do not fit are
    refused.

    Example: ojak merge run-a run-b --base smollm2-135m-instruct --method slerp --out merged
    """
    from ojak.cli.work import made_of
    from ojak.merge.config import MergeConfig

    if not sweep and (at or data or limit):
        raise UsageError("--at, --data and --limit belong to --sweep", fix="add --sweep, or leave them out")
    single = sweep and method in ("liti", "ema")
    if single and weight:
        raise UsageError(
            f"--sweep sets the weight of {method} itself", fix="name the points of its grid: --at"
        )
    config = made_of(
        MergeConfig, "merge", models=tuple(models), out=out, base=base, method=method,
        weights=(1.0,) if single else tuple(weight) if weight else None,
        scale=scale, angle=angle, density=density, drop=drop, seed=seed, dtype=dtype, overwrite=overwrite,
        accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    if sweep:
        _sweep(config, tuple(data or ()), tuple(at or ()), limit, as_json)
    else:
        _merge(config, as_json)


def _merge(config: MergeConfig, as_json: bool) -> None:
    from ojak.cli.progress import Progress
    from ojak.merge.run import merge_models

    with Progress() as progress:
        done = merge_models(config, notify=say, progress=progress)
    if as_json:
        write_json(done.to_dict())
        return
    angles = [angle for found in done.angles.values() for angle in found]
    turned = f"; task vectors {min(angles):.0f} to {max(angles):.0f} degrees apart" if angles else ""
    size = f"{done.tensors} tensors, {done.bytes / 1e6:,.0f} MB as {', '.join(done.dtypes)}"
    say(f"{size} in {done.seconds:.1f} s{turned}")
    write(config.out)


def _sweep(
    config: MergeConfig, data: tuple[str, ...], points: tuple[float, ...], limit: int | None, as_json: bool
) -> None:
    from ojak.cli.progress import Progress
    from ojak.cli.work import made_of
    from ojak.stages.sweeping import SweepConfig, sweep_merges

    if not data:
        raise UsageError("--sweep measures each merge on rows", fix="give --data, once or twice")
    asked = made_of(
        SweepConfig, "merge", merge=config, data=data, points=points, limit=limit, seed=config.seed
    )
    with Progress() as progress:
        found = sweep_merges(asked, notify=say, progress=progress)
    if as_json:
        write_json(found)
    else:
        write_table([(found["swept"], "perplexity (95 %)"), *_rows(found)])
        write(found["page"])


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line for each merge and each single model."""
    merges = [(f"{p['value']:g}", p["figures"], "front" if p["front"] else "") for p in found["points"]]
    singles = [(one_line(s["name"]), s["figures"], "") for s in found["singles"]]
    return [
        (name, "  ".join([*map(_cell, figures), remark]).rstrip())
        for name, figures, remark in merges + singles
    ]


def _cell(figures: Mapping[str, Any]) -> str:
    from ojak.report.text import fixed

    value, low, high = (fixed(each, 3) for each in figures["perplexity"])
    return f"{value} ({low} to {high})"
