"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def place(text: str) -> Path:
    """A path from the command line; an empty one, such as a shell variable without a value, is refused.

    `Path` would take it for the current folder.
    """
    if not text:
        raise typer.BadParameter("an empty path; the current folder is '.'")
    return Path(text)


AcceptLicense = Annotated[
    list[str] | None,
    typer.Option("--accept-license", metavar="NAME", help="Accept the terms of this licence. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Engine = Annotated[
    Literal["native", "endpoint", "ray", "scripted"],
    typer.Option(help="What runs the model: ojak itself, or a server (docs/engines.md)."),
]
Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The server of --engine endpoint; the model is the name it serves."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH", help="Template and tokenizer of the server's model, if not told by it."
    ),
]
KeyEnv = Annotated[
    str | None,
    typer.Option(metavar="VARIABLE", help="Where the server's key is; default: OJAK_ENDPOINT_KEY."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes of --engine ray, each with the model (docs/ray.md).")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|auto", help="The Ray cluster; default: one on this machine.")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask rows again that failed for good.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")]
