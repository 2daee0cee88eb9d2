"""`ojak push`: an artifact to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ojak.cli.terminal import say, visible, write, write_json
from ojak.cli.words import Json, place

if TYPE_CHECKING:
    from ojak.export.push import PushPlan


def push(
    folder: Annotated[Path, typer.Argument(parser=place, metavar="DIR", help="The folder of an artifact.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The data set on the hub: user/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it; otherwise it is private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and show the files and the card; no network.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put an artifact on the Hugging Face hub, as a private data set.

    Refused if a hash does not hold (7), or something that looks like a secret is in any row (9). Personal data
    are counted and told. The token is the one of HF_TOKEN or `hf auth login`. Prints the address.

    Example: ojak push my-data user/my-data --dry-run
    """
    from ojak.export.push import plan_push
    from ojak.export.push import push as push_plan

    plan = plan_push(folder, repo, private=not public)
    _warn(plan)
    if dry_run:
        write_json(_facts(plan)) if as_json else write(_shown(plan))
        return
    done = push_plan(plan)
    if as_json:
        write_json({**_facts(plan), "url": done.url, "commit": done.commit, "removed": list(done.removed)})
    else:
        say(f"{len(plan.files)} files, {plan.rows:,} rows, {'private' if plan.private else 'public'}")
        write(done.url)


def _warn(plan: PushPlan) -> None:
    for kind, rows in plan.personal.items():
        say(f"{rows:,} rows hold what looks like personal data: {kind}", "yellow", "warning: ")
    if plan.stopped:
        say(f"the run was not finished: it stopped at {plan.stopped}", "yellow", "warning: ")


def _facts(plan: PushPlan) -> dict[str, Any]:
    return {
        "repo": plan.repo, "private": plan.private, "rows": plan.rows, "bytes": plan.bytes,
        "files": [asdict(file) for file in plan.files], "personal": plan.personal, "stopped": plan.stopped,
        "card": plan.card,
    }  # fmt: skip


def _shown(plan: PushPlan) -> str:
    lines = [f"would go to the {'private' if plan.private else 'PUBLIC'} data set {plan.repo}:"]
    lines += [f"{file.bytes:>14,}  {file.path}" for file in plan.files]
    lines += [f"{plan.bytes:>14,}  bytes in all; {plan.rows:,} rows", "", "its card:", "", visible(plan.card)]
    return "\n".join(lines)
