"""`ojak curate`: choose rows by a filter recipe. `ojak explain`: what happened to one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ojak.cli.terminal import one_line, say, write, write_json, write_pages
from ojak.cli.words import AcceptLicense, Engine, Json, Url, place


def curate(
    source: Annotated[
        Path, typer.Argument(parser=place, metavar="DIR|FILE", help="An artifact's folder, or a file of conversations.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The new folder.")],
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A filter recipe: a preset's name, or a YAML file.")
    ] = "default",
    model: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Who tags, and reads probabilities, if a rule needs it.")
    ] = None,
    engine: Engine = "native",
    url: Url = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="A sequence-classification head with one output.")
    ] = None,
    reward_base: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="A base model that answers, too, for the reward difference."),
    ] = None,
    reward_base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The address of an endpoint that serves the base model.")
    ] = None,
    reward_base_tokens: Annotated[
        int, typer.Option(min=1, max=8192, help="The most tokens of the base model's answers.")
    ] = 512,
    guard: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="A guard model for the tag safety, instead of rules.")
    ] = None,
    guard_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The address of an endpoint that serves the guard model.")
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="How many rows, instead of the recipe's number.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to run where a rule cannot be applied.")
    ] = False,
    trust_anyway: Annotated[
        bool, typer.Option("--trust-anyway", help="Let a judge filter that has not passed its calibration.")
    ] = False,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Keep the rows that pass a filter recipe, each dropped row with the first rule that dropped it.

    Rules whose values are missing, or whose judge is not trusted, are not applied and named with the reason
    (exit 3). Interrupted, the same command goes on.

    Example: ojak curate my-data --recipe default --out my-data-curated
    """
    from ojak.cli.progress import Progress
    from ojak.cli.work import made_of
    from ojak.curate.config import CurateConfig
    from ojak.curate.run import curate_data, summary

    config = made_of(
        CurateConfig, "curate", recipe=recipe, model=model, engine=engine, url=url, keep=keep, strict=strict,
        trust_anyway=trust_anyway, reward_model=reward_model, reward_base=reward_base,
        reward_base_url=reward_base_url, reward_base_tokens=reward_base_tokens, guard=guard, guard_url=guard_url,
    )  # fmt: skip
    with Progress() as progress:
        artifact = curate_data(
            source, out, config, accept_license=tuple(accept_license or ()), notify=say, progress=progress
        )
    facts = summary(artifact)
    if as_json:
        write_json(facts)
    else:
        for line in _funnel_lines(facts):
            say(line)
        write(out)
    check_applied(facts)


def check_applied(facts: Mapping[str, Any]) -> None:
    """Raise PartialResult if a rule of a curation was not applied."""
    from ojak.errors import PartialResult

    skipped = facts.get("not_applied")
    if isinstance(skipped, dict) and skipped:
        raise PartialResult(
            f"{len(skipped)} of the recipe's rules not applied: {', '.join(map(str, skipped))}",
            why="; ".join(f"{name}: {why}" for name, why in skipped.items()),
            fix="give what they need, or choose a recipe without them, such as `default`",
        )


def _funnel_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['kept']:,} of {facts['rows_in']:,} rows kept by the recipe {one_line(facts['recipe'])}"
    for step in facts["funnel"]:
        if step["rejected"]:
            yield f"  {one_line(step['rule']):<28} dropped {step['rejected']:,} of {step['in']:,}"


def explain(
    folder: Annotated[Path, typer.Argument(parser=place, metavar="DIR", help="The folder of an artifact.")],
    row: Annotated[str, typer.Argument(metavar="ROW_ID", help="The row's id, as `ojak show` prints it.")],
    as_json: Json = False,
) -> None:
    """Say everything that happened to a row.

    Whether it was kept or why not, each rule's value and verdict, its tags and scores, and the same for the
    folders that this one was made from, where they still exist.
    """
    from ojak.curate.explain import explain_row

    found = explain_row(folder, row)
    if as_json:
        write_json(found)
    else:
        write_pages(_explained(found))


def _explained(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"── {one_line(found['id'])}"
    for turn in found["messages"]:
        yield f"{one_line(turn['role'])}: {one_line(turn['content'], 300)}"
    told: set[str] = set()
    for step in found["history"]:
        yield ""
        yield from _step_lines(step, told)


def _step_lines(step: Mapping[str, Any], shown: set[str]) -> Iterator[str]:
    """What happened in one folder; tags, scores and meta that a newer folder showed are left out."""
    fate = step["fate"]
    told = {"rejected": f"rejected: {step.get('reason')}", "unknown": f"not to be read: {step.get('why')}"}
    yield f"{one_line(step['folder'])}  {one_line(step['kind'])}  {one_line(told.get(fate, fate))}"
    if isinstance(step.get("rank"), int):
        yield f"  rank {step['rank']:,} among the rows that passed every rule"
    for rule in step.get("rules", ()):
        yield "  " + _rule_line(rule)
    for name in ("tags", "scores", "meta"):
        for key, value in sorted(step.get(name, {}).items()):
            line = f"  {name}.{one_line(key, 60)}: {one_line(_shown(value))}"
            if line not in shown:
                shown.add(line)
                yield line


def _rule_line(rule: Mapping[str, Any]) -> str:
    value = "" if rule["value"] is None else f"  {one_line(_shown(rule['value']), 120)}"
    why = f"  ({one_line(rule['why'])})" if rule.get("why") else ""
    return f"{one_line(rule['verdict']):<18} {one_line(rule['rule']):<28}{value}{why}".rstrip()


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
