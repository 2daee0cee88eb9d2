"""The application: its verbs in flow order, and its first page."""

from __future__ import annotations

from typing import Annotated

import typer

from ojak.cli import (
    ablate,
    augment,
    chat,
    corpus,
    curate,
    data,
    distil,
    doctor,
    evaluate,
    export,
    judge,
    lift,
    merge,
    mix,
    models,
    pairs,
    push,
    report,
    run,
    serve,
    synthesize,
    tokenizer,
    train,
)
from ojak.cli.exits import Group
from ojak.cli.terminal import write

HELP = """From a model that follows instructions to a data set, and on to a small model of your own.

Examples:

  ojak run recipes/quickstart.yaml

  ojak synthesize magpie --model smollm2-135m-instruct --rows 512 --out my-data
"""

QUICK_START = """ojak: from an aligned model to an instruction data set of your own

  ojak doctor                                  check this machine
  ojak models list                             the models that are known by name
  ojak run recipes/quickstart.yaml             the whole way, in a few minutes

  ojak synthesize magpie --model smollm2-135m-instruct --rows 512 --out my-data
  ojak show my-data                            read what came out
  ojak export-data my-data --format sharegpt --out my-data.jsonl

`ojak --help` lists every command."""

app = typer.Typer(
    cls=Group,
    help=HELP,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models.app, name="models")
app.add_typer(tokenizer.app, name="tokenizer")
app.command("corpus")(corpus.corpus)
app.add_typer(synthesize.app, name="synthesize")
app.add_typer(judge.app, name="judge")
app.command("pairs")(pairs.pairs)
app.command("lift")(lift.lift)
app.command("curate")(curate.curate)
app.command("explain")(curate.explain)
app.command("pretrain-mix")(mix.pretrain_mix)
app.add_typer(distil.app, name="distil")
app.add_typer(train.app, name="train")
app.command("merge")(merge.merge)
app.command("verify")(data.verify)
app.command("show")(data.show)
app.command("export-data")(data.export_data)
app.command("augment")(augment.augment)
app.command("evaluate")(evaluate.evaluate)
app.command("run")(run.run)
app.command("ablate")(ablate.ablate)
app.add_typer(report.app, name="report")
app.command("push")(push.push)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        import ojak

        write(f"ojak {ojak.__version__}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    # Its help is HELP above: a docstring here would replace it.
    if context.invoked_subcommand is None:
        write(QUICK_START)
