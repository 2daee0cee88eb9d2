"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

AcceptLicense = Annotated[
    list[str] | None,
    typer.Option("--accept-license", metavar="NAME", help="Accept the terms of this licence. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
