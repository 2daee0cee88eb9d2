"""`ojak models`: the weights. List what is known by name, fetch it, look at a model's template."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ojak.cli.terminal import say, write, write_json, write_table
from ojak.cli.words import AcceptLicense, Json, place

app = typer.Typer(help="List, fetch and inspect models.", no_args_is_help=True)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that are known by name, and whether they are on this machine."""
    from ojak.cli.describe import known_models

    found = known_models()
    if as_json:
        write_json({"models": found})
        return
    for model in found:
        state = model["path"] or f"not fetched, {model['bytes'] / 1e6:.0f} MB"
        write(f"{model['name']:<24}{model['license']:<12}{state}\n{'':24}{model['what']}")


@app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="A name of `ojak models list`, or org/name on the hub.")],
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache (at once if it is there) and print where it is."""
    from ojak.model import hub

    path = hub.find(name, accept_license=tuple(accept_license or ()), notify=say)
    if as_json:
        write_json({"name": name, "path": str(path)})
    else:
        write(path)


@app.command("info")
def info(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A known name, or a GGUF file or folder.")],
    as_json: Json = False,
) -> None:
    """Show a model: licence, sizes, and the text and tokens that its chat template puts around a user's turn.

    Nothing is fetched: of a model that is not on this machine, what is known is shown.
    """
    from ojak.cli.describe import describe_model, info_rows

    found = describe_model(name)
    if as_json:
        write_json(found)
    else:
        write_table(info_rows(found))


@app.command("shrink")
def shrink(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="The model to take layers out of.")],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="A new folder for the small model.")],
    layers: Annotated[int | None, typer.Option(min=1, help="How many layers stay.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="PATH", help="Rows or texts that tell which layers are missed least."
        ),
    ] = None,
    intermediate: Annotated[
        int | None, typer.Option(min=1, help="How many neurons of each layer's feed-forward stay.")
    ] = None,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:
    """Make a smaller model of a model's own layers, a student to be distilled from it (docs/distil.md).

    The layers that stay are spread evenly, the first and the last among them. With --data one run of neighbouring
    layers goes instead, the one without which the model predicts the data best: a far better student to begin with.

    Example: ojak models shrink smollm2-135m-instruct --layers 11 --data rows.json --out student
    """
    from ojak.errors import UsageError
    from ojak.model.shrink import shrink_model

    if layers is None and intermediate is None:
        raise UsageError("nothing is to be made smaller", fix="give --layers, --intermediate or both")
    if data is not None and layers is None:
        raise UsageError("--data tells which layers stay", fix="give --layers, how many")
    choose = None
    if data is not None and layers is not None:
        from ojak.evaluate.depth import least_missed

        choose = partial(least_missed, layers=layers, data=data, notify=say)
    made = shrink_model(
        name, out, layers=layers, intermediate=intermediate, choose=choose,
        accept_license=tuple(accept_license or ()), notify=say,
    )  # fmt: skip
    if as_json:
        write_json(made.to_dict())
    else:
        say(f"{made.parameters:,} of {made.parameters_before:,} parameters, layers {_listed(made.layers)}")
        write(made.out)


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
