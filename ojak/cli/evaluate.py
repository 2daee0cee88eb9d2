"""`ojak evaluate`: what a model can do, in figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ojak.cli.terminal import one_line, say, write, write_json, write_table
from ojak.cli.window import Sweep, run_sweep
from ojak.cli.words import AcceptLicense, Json, place

Figure = tuple[str, object]
MEASURES = ("likelihood", "answers", "instructions")


Harness = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK[,TASK]",
        help="Tasks of lm-evaluation-harness (extra `eval`), from --harness-tasks. Repeatable.",
    ),
]
HarnessTasks = Annotated[
    Path | None,
    typer.Option(parser=place, metavar="DIR", help="Task files of the harness, their rows in local files."),
]
TemplateOf = Annotated[
    str | None,
    typer.Option(metavar="DIR|NAME", help="Ask a base model, which has no chat template, in this model's."),
]
Probe = Annotated[
    Path | None,
    typer.Option(parser=place, metavar="FACTS", help="Facts to be known by heart (docs/evaluate.md)."),
]
WindowSweep = Annotated[
    bool,
    typer.Option(
        "--window-sweep", help="Perplexity, memory and speed by what local layers see (docs/window.md)."
    ),
]
Windows = Annotated[
    str | None, typer.Option(metavar="N[,N]", help="Of --window-sweep: tokens that local layers see.")
]
Contexts = Annotated[
    str | None, typer.Option(metavar="N[,N]", help="Of --window-sweep: tokens read as one text.")
]
SweepTokens = Annotated[
    int | None, typer.Option("--tokens", min=1, help="Of --window-sweep: tokens that are predicted.")
]
Softcaps = Annotated[
    bool, typer.Option("--softcaps", help="Of --window-sweep: also with the model's soft caps left out.")
]


def measured(text: str) -> str:
    """What may stand after --measure."""
    if text not in MEASURES:
        from ojak._settings import meant

        raise typer.BadParameter(f"there is no measure {text[:60]!r}; {meant(text, MEASURES)}")
    return text


Measure = Annotated[
    list[str] | None,
    typer.Option(
        parser=measured,
        metavar="likelihood|answers|instructions",
        help="What to measure. Repeatable; by default likelihood, without --data instructions.",
    ),
]


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR|NAME", help="The model: a known name, a file or a folder.")],
    data: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Rows of any format, or an artifact.")
    ] = None,
    measure: Measure = None,
    harness: Harness = None,
    harness_tasks: HarnessTasks = None,
    against: Annotated[
        str | None, typer.Option(metavar="DIR|NAME", help="A second model on the same rows, such as the base.")
    ] = None,
    template_of: TemplateOf = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The split of an artifact.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, taken evenly.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens. Default 256.")] = None,
    checks: Annotated[int | None, typer.Option(min=1, help="How many built-in instructions. Default 200.")] = None,
    probe: Probe = None,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="A model that grades the answers, if it is fit to.")
    ] = None,
    trust_anyway: Annotated[
        bool, typer.Option("--trust-anyway", help="Let a judge grade that did not pass a calibration.")
    ] = False,
    window_sweep: WindowSweep = False,
    windows: Windows = None,
    contexts: Contexts = None,
    tokens: SweepTokens = None,
    softcaps: Softcaps = False,
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
    the rows' own. instructions: built-in requests that a rule can check, no judge needed. --probe: facts, each asked
    for by a prompt alone, by the log-probability of its answer and its rank among wrong ones. --harness: the field's
    own test sets, by its own program. --window-sweep: long text, with other windows of the local layers.

    Example: ojak evaluate smollm2-135m-instruct --data my-data --split test --measure likelihood --measure answers
    """
    from ojak.cli.progress import Progress
    from ojak.cli.work import made_of
    from ojak.evaluate.config import EvaluateConfig
    from ojak.evaluate.run import evaluate_model

    sweep = Sweep(windows, contexts, tokens, softcaps)
    if window_sweep:
        others = [measure, harness, harness_tasks, against, probe, judge, limit, template_of]
        others += [trust_anyway or None, max_tokens, checks]
        return run_sweep(
            sweep, others, out, as_json, model=model, data=data, split=split, seed=seed, dtype=dtype,
            accept_license=tuple(accept_license or ()),
        )  # fmt: skip
    sweep.refuse()
    default = ["likelihood"] if data else [] if harness or probe else ["instructions"]
    tasks = tuple(name.strip() for each in harness or () for name in each.split(",") if name.strip())
    numbers = {name: n for name, n in (("max_tokens", max_tokens), ("checks", checks)) if n is not None}
    config = made_of(
        EvaluateConfig, "evaluate", model=model, data=None if data is None else str(data),
        measures=tuple(measure or default), harness=tasks,
        harness_tasks=None if harness_tasks is None else str(harness_tasks),
        against=against, template_of=template_of, split=split, limit=limit,
        probe=None if probe is None else str(probe), judge=judge, trust_anyway=trust_anyway, seed=seed, dtype=dtype,
        accept_license=tuple(accept_license or ()), **numbers,
    )  # fmt: skip
    with Progress() as progress:
        found = evaluate_model(config, out, notify=say, progress=progress)
    if as_json:
        write_json(found)
    else:
        _show(found, out)


def _show(found: Mapping[str, Any], out: Path | None) -> None:
    """The figures as tables, and where they are kept."""
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
        if isinstance(value, Mapping) and value.keys() == {"value", "stderr"}:
            yield label, _measured_value(value["value"], value["stderr"])
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{within}{name}: ")
        elif f"{name}_interval" in figures:
            yield label, _estimate([value, *figures[f"{name}_interval"]])
        elif isinstance(value, list):
            yield label, _estimate(value)
        else:
            yield label, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _measured_value(value: float | None, error: float | None) -> str:
    """A figure of the harness with its standard error, as far as there are any."""
    shown = "-" if value is None else f"{value:.4g}"
    return shown if error is None else f"{shown} ± {error:.2g} (standard error)"


def _estimate(value: list[float]) -> str:
    """A figure with its interval."""
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
