"""`ojak doctor`: whether this machine has what ojak needs."""

from __future__ import annotations

from typing import Annotated

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import Json


def doctor(
    network: Annotated[bool, typer.Option("--network", help="Also ask the package index.")] = False,
    as_json: Json = False,
) -> None:
    """Check what this machine offers.

    torch, memory, disk, the cache, the models and the template sandbox. Exit 1 if something must be mended.
    """
    from ojak.cli.checks import FAILED, run_checks

    found = []
    for check in run_checks(network=network):
        found.append(check)
        if not as_json:
            write(check.line())
    failed = [check.name for check in found if check.state == FAILED]
    if as_json:
        write_json({"ok": not failed, "checks": [check.to_dict() for check in found]})
    if failed:
        say(f"to be mended: {', '.join(failed)}", "bold red", "error: ")
        raise typer.Exit(1)
