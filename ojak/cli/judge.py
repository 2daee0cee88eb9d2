"""`ojak judge`: how far a model can be trusted as judge and tagger."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ojak.cli.terminal import one_line, say, visible, write, write_json
from ojak.cli.words import AcceptLicense, Engine, Json, Url, place
from ojak.errors import InputRefused, UsageError

if TYPE_CHECKING:
    from ojak.engines.open import EngineSpec
    from ojak.judge.calibrate import Sample
    from ojak.judge.kept import Calibration, Estimate

app = typer.Typer(help="Measure a model as judge and tagger.", no_args_is_help=True)
TABLE_WIDTH = 120


@app.callback()
def group() -> None:
    """Measure a model as judge and tagger."""


@app.command("calibrate")
def calibrate(
    model: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="The model: a known name, or its file or folder.")
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Instead, a reward model: a classification head with one output."),
    ] = None,
    engine: Engine = "native",
    url: Url = None,
    rows: Annotated[int, typer.Option(min=10, help="Good rows to plant; each gives up to seven bad ones.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed plants the same rows.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="FILE|DIR", help="Your own good rows instead of ojak's."),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="DIR", envvar="OJAK_PUBLISHED",
            help="Published scores to compare with, and their answers (docs/judge.md).",
        ),
    ] = None,
    reason_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens of reasoning before a label; `ojak curate` goes by the default alone."),
    ] = None,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Plant good and bad rows and measure how well a model tells them apart.

    The bad rows are made by rules: answers exchanged, cut, in another language, off the topic, contradicting, copied
    from the request, padded. What comes out is kept: `ojak curate` lets a model drop rows only if its AUROC is 0.70 or
    more, with 95 % of certainty above 0.60. A reward model is measured on the same rows. Interrupted, the same command
    goes on after the last answer.

    Example: ojak judge calibrate --model smollm2-135m-instruct
    """
    from ojak.engines.open import EngineSpec

    if (model is None) == (reward_model is None):
        raise UsageError("one model is measured at a time", fix="give --model or --reward-model")
    if reward_model is not None and (engine != "native" or url is not None or reason_tokens is not None):
        raise UsageError(
            "a reward model is run by transformers, and asked nothing",
            fix="leave out --engine, --url and --reason-tokens",
        )
    settings = _settings(data, published, rows, seed)
    if model is not None:
        spec = EngineSpec(model=model, engine=engine, url=url, accept_license=tuple(accept_license or ()))
        found, kept = _judge(spec, reason_tokens, settings)
    else:
        found, kept = _reward(str(reward_model), settings)
    if as_json:
        write_json({**found.to_dict(), "path": str(kept)})
        return
    _show(found)
    write(kept)


def _settings(data: Path | None, published: Path | None, rows: int, seed: int) -> dict[str, Any]:
    """What a judge and a reward model are measured with alike."""
    from ojak.judge.published import read_published

    return {
        "samples": _samples(data) if data else None,
        "rows": rows,
        "seed": seed,
        "source": data.name if data else "bundled",
        "published": read_published(published) if published else None,
        "notify": say,
    }


def _judge(spec: EngineSpec, reason_tokens: int | None, settings: dict[str, Any]) -> tuple[Calibration, Path]:
    """A judge's calibration, and where it is kept."""
    from ojak.cli.progress import Progress
    from ojak.engines.open import open_engine
    from ojak.judge.calibrate import calibrate_and_keep

    with Progress() as progress:
        found = calibrate_and_keep(
            open_engine(spec, notify=say), reason_tokens=reason_tokens, progress=progress, **settings
        )
    if reason_tokens is not None:
        say(
            "`ojak curate` asks without --reason-tokens, and does not go by this calibration",
            "yellow",
            "note: ",
        )
    return found


def _reward(name: str, settings: dict[str, Any]) -> tuple[Calibration, Path]:
    from ojak.judge.calibrate_reward import calibrate_reward
    from ojak.judge.kept import keep_calibration
    from ojak.judge.reward import RewardModel

    found = calibrate_reward(RewardModel(name), **settings)
    return found, keep_calibration(found)


def _samples(data: Path) -> list[Sample]:
    from ojak.formats import load
    from ojak.judge.calibrate import own
    from ojak.judge.scores import row_of
    from ojak.records import Conversation

    if not data.exists():
        raise InputRefused(f"{data} is not there")
    records = load(data, warn=lambda line: say(line, "yellow", "note: "))
    return own(row_of(record) for record in records if isinstance(record, Conversation))


def _show(found: Calibration) -> None:
    """Tables to stdout: what each score tells apart, then everything else that bears on trust."""
    from rich.console import Console

    from ojak.judge.kept import LEAST_AUROC, LEAST_LOW

    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=TABLE_WIDTH)
    console.print(_areas(found))
    console.print(_facts(found))
    name = one_line(found.identity.get("model", "the model"))
    needed = f"needed: {LEAST_AUROC:.2f}, and above {LEAST_LOW:.2f} at the low end"
    for score, overall, usable in _verdicts(found):
        verdict = "may filter" if usable else "may tag, but not filter (unless --trust-anyway)"
        write(f"{name} as {score} {verdict}: AUROC {estimate(overall)}, {needed}")


def _verdicts(found: Calibration) -> Iterator[tuple[str, Estimate, bool]]:
    """What rules may go by: a judge's grade; a reward, and the difference of two rewards."""
    if found.score != "reward":
        yield "judge", found.overall, found.usable
        return
    yield "reward", found.overall, found.usable
    difference = found.measures["reward_difference"]
    yield "reward_difference", difference["overall"], difference["usable"]


def _areas(found: Calibration) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    others = {name: each["auroc"] for name, each in found.measures.items()}
    first = next(_verdicts(found))[0]
    columns: dict[str, dict[str, Any]] = {first: {**found.auroc}, **others}
    means = {first: found.overall, **{name: each["overall"] for name, each in found.measures.items()}}
    table = Table(title="AUROC: good rows above planted bad ones (95 %)", box=SIMPLE)
    for heading in ("corruption", "rows", *columns):
        table.add_column(heading, no_wrap=True)
    for name, pairs in found.pairs.items():
        table.add_row(name, str(pairs), *(estimate(column.get(name)) for column in columns.values()))
    table.add_row("mean", "", *(estimate(mean) for mean in means.values()))
    return table


def _facts(found: Calibration) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("what", "value (95 %)", "meaning", box=SIMPLE)
    for name, value, meaning in _lines(found):
        table.add_row(visible(name), estimate(value), meaning)
    return table


def _lines(found: Calibration) -> Iterator[tuple[str, Estimate, str]]:
    for name, tag in found.tags.items():
        yield f"tag {name}", tag["auroc"], "AUROC; may filter" if tag["usable"] else "AUROC; may tag only"
    meanings = {
        "first_preferred": "0.5: the order does not matter",
        "consistent": "pairs judged the same in both orders",
        "accuracy": "the good one of two preferred",
        "accuracy_both_orders": "the same, both orders averaged",
    }
    for name, value in found.position.items():
        yield name, value, meanings.get(name, "")
    yield "length bias", found.length_bias, "rank correlation of score and length, good rows"
    if found.score != "reward":
        yield "agreement with itself", found.agreement, "rank correlation of two wordings"
    for ours, others in found.correlation.items():
        for theirs, values in others.items():
            yield f"{ours} and {theirs}", values["pearson"], "Pearson"
            yield f"{ours} and {theirs}", values["spearman"], "Spearman"


def estimate(value: Estimate | None) -> str:
    """A value with its interval, or a dash for what was not measured."""
    if value is None or math.isnan(value[0]):
        return "-"
    return f"{value[0]:.2f} ({value[1]:.2f} {value[2]:.2f})"
