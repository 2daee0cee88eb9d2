"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
