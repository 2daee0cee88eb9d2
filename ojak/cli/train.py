"""`ojak train`: a model and data in, a model out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ojak.cli.terminal import say, write, write_json, write_styled
from ojak.cli.words import AcceptLicense, Json, place

if TYPE_CHECKING:
    from ojak.train.config import TrainConfig

app = typer.Typer(help="Train a model.", no_args_is_help=True)


class SeveralData(TyperCommand):
    """A command whose --data takes several values: `--data A B` stands for `--data A --data B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_spread(args)))


def _spread(words: Sequence[str]) -> Iterator[str]:
    """The words, with --data before each further value after it."""
    of_data = has_value = False
    for word in words:
        if word.startswith("-"):
            of_data, has_value = word == "--data" or word.startswith("--data="), "=" in word
        elif of_data and has_value:
            yield "--data"
        else:
            has_value = True
        yield word


Model = Annotated[
    str,
    typer.Option(metavar="NAME|DIR", help="The model to begin with: a known name, or its file or folder."),
]
Data = Annotated[
    list[str],
    typer.Option(
        metavar="PATH[:WEIGHT]...",
        help="Rows: files, folders or artifacts; several are a mixture. Repeatable.",
    ),
]
Out = Annotated[
    Path, typer.Option(parser=place, metavar="DIR", help="The run's folder; run again, it goes on there.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Stop once so many tokens were read.")]
Epochs = Annotated[float | None, typer.Option(help="How often the data are read; default: once.")]
Lr = Annotated[float | None, typer.Option(help="The highest learning rate.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Rows, or packed sequences, a step.")]
MaxLen = Annotated[int | None, typer.Option(min=4, help="The most tokens of a row, or of a packed sequence.")]
Style = Annotated[
    str | None,
    typer.Option(
        metavar="STYLE",
        help="chat, alpaca, alpaca-chapter7, phi-3 or plain; default: the model's own, else alpaca.",
    ),
]
ValData = Annotated[str | None, typer.Option(metavar="PATH", help="Rows to measure by, never learnt from.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same model, on the same machine.")]
Lora = Annotated[bool, typer.Option("--lora", help="Learn low-rank adapters only (--set lora.r=N for more).")]
Resume = Annotated[
    Literal["if_possible", "always", "never"] | None, typer.Option(help="What to do with a run in DIR.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print sizes, memory, time and disk; write nothing.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Any other setting (docs/train.md). Repeatable."),
]


@app.callback()
def group() -> None:
    """Train a model."""


@app.command("pretrain", cls=SeveralData)
def pretrain(
    model: Model,
    data: Data,
    out: Out,
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch: Batch = None,
    max_len: MaxLen = None,
    style: Style = None,
    val_data: ValData = None,
    seed: Seed = None,
    lora: Lora = False,
    resume: Resume = None,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train on every token of texts, each document between BOS and EOS.

    Prints the folder, or with --json what came out. Stopped, the same command goes on from the last checkpoint.

    Example: ojak train pretrain --model smollm2-135m-instruct --data texts --max-tokens 1000000 --out my-model
    """
    _train(
        "pretrain", sets, dry_run, as_json, model=model, data=tuple(data), out=out,
        max_tokens=max_tokens, epochs=epochs,
        lr=lr, batch=batch, max_len=max_len, style=style, val_data=val_data, seed=seed, lora=lora, resume=resume,
        accept_license=accept_license,
    )  # fmt: skip


@app.command("finetune", cls=SeveralData)
def finetune(
    model: Model,
    data: Data,
    out: Out,
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch: Batch = None,
    max_len: MaxLen = None,
    style: Style = None,
    val_data: ValData = None,
    seed: Seed = None,
    lora: Lora = False,
    resume: Resume = None,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train on conversations: what an assistant says is learnt, the rest is read.

    Prints the folder, or with --json what came out. Stopped, the same command goes on from the last checkpoint.

    Example: ojak train finetune --model smollm2-135m-instruct --data my-data --lora --out my-model
    """
    _train(
        "finetune", sets, dry_run, as_json, model=model, data=tuple(data), out=out,
        max_tokens=max_tokens, epochs=epochs,
        lr=lr, batch=batch, max_len=max_len, style=style, val_data=val_data, seed=seed, lora=lora, resume=resume,
        accept_license=accept_license,
    )  # fmt: skip


@app.command("distil", cls=SeveralData)
def distil(
    teacher: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR|CACHE", help="Who is learnt from: a model, or what `ojak distil cache` made."
        ),
    ],
    student: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR|CONFIG", help="Who learns: a model, or a config.json without weights."
        ),
    ],
    data: Data,
    out: Out,
    loss: Annotated[
        Literal["forward-kl", "reverse-kl", "jsd", "minillm", "dpkd"],
        typer.Option(help="How far the student is from the teacher (docs/distil.md)."),
    ] = "forward-kl",
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch: Batch = None,
    max_len: MaxLen = None,
    style: Style = None,
    val_data: ValData = None,
    seed: Seed = None,
    lora: Lora = False,
    resume: Resume = None,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a student on what a teacher predicts at the same tokens.

    Prints the folder, or with --json what came out. Stopped, the same command goes on from the last checkpoint.

    Example: ojak train distil --teacher smollm2-135m-instruct --student small --data my-data --out my-model
    """
    _train(
        "distil", sets, dry_run, as_json, model=student, data=tuple(data), out=out,
        distil={"teacher": teacher, "loss": loss}, max_tokens=max_tokens, epochs=epochs,
        lr=lr, batch=batch, max_len=max_len, style=style, val_data=val_data, seed=seed, lora=lora, resume=resume,
        accept_license=accept_license,
    )  # fmt: skip


@app.command("reinforce", cls=SeveralData)
def reinforce(
    reward: Annotated[
        str,
        typer.Option(metavar="rules:SPEC", help="What an answer earns, e.g. rules:words=20-40 + 0.5*stop."),
    ],
    model: Model,
    data: Data,
    out: Out,
    samples: Annotated[int | None, typer.Option(min=2, help="Answers to each prompt. Default 4.")] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of an answer. Default 64.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(min=0, help="Weight of the distance to the anchor. Default 0.1.")
    ] = None,
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch: Batch = None,
    max_len: MaxLen = None,
    style: Style = None,
    val_data: ValData = None,
    seed: Seed = None,
    lora: Lora = False,
    resume: Resume = None,
    accept_license: AcceptLicense = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train on answers that the model draws itself, rewarded by rules (docs/reinforce.md).

    Of the data the prompts are read: what stands before the first answer. Prints the folder, or with --json what came
    out. Stopped, the same command goes on from the last checkpoint.

    Example: ojak train reinforce --reward "rules:words=10-40 + 0.5*stop" --model small --data my-data --out my-model
    """
    settings = {"reward": reward, "samples": samples, "answer_tokens": answer_tokens, "beta": beta}
    _train(
        "reinforce", sets, False, as_json, model=model, data=tuple(data), out=out,
        reinforce={name: value for name, value in settings.items() if value is not None},
        max_tokens=max_tokens, epochs=epochs,
        lr=lr, batch=batch, max_len=max_len, style=style, val_data=val_data, seed=seed, lora=lora, resume=resume,
        accept_license=accept_license,
    )  # fmt: skip


@app.command("synthesizer", cls=SeveralData)
def synthesizer(
    model: Model,
    data: Annotated[
        list[str],
        typer.Option(metavar="PATH", help="Texts with questions about them (docs/augment.md). Repeatable."),
    ],
    out: Out,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="More of --data, as in `--data A B C`.")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Texts of one set that follow each other in a row.")] = 3,
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch: Batch = None,
    max_len: MaxLen = None,
    seed: Seed = None,
    lora: Lora = False,
    resume: Resume = None,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a model to make questions and answers from any text, for `ojak augment` (arXiv 2406.14491).

    What it learns from lies in DIR/lessons, the model in DIR/model. Stopped, the same command goes on.

    Example: ojak train synthesizer --model smollm2-135m-instruct --data xquad.en.json.gz --out my-synthesizer
    """
    from tempfile import TemporaryDirectory

    from ojak.augment.lessons import make_lessons

    with TemporaryDirectory() as scratch:  # a dry run leaves nothing behind
        lessons = (Path(scratch) if dry_run else out) / "lessons"
        make_lessons([*data, *(more or ())], lessons, shots=shots, seed=seed or 0, notify=say)
        _train(
            "finetune", sets, dry_run, as_json, model=model, data=(str(lessons),), out=out, style="synthesizer",
            max_tokens=max_tokens, epochs=epochs, lr=lr, batch=batch, max_len=max_len, seed=seed, lora=lora,
            resume=resume, accept_license=accept_license,
        )  # fmt: skip


@app.command("prefer", cls=SeveralData)
def prefer(
    model: Model,
    data: Data,
    out: Out,
    loss: Annotated[
        Literal["dpo", "ipo", "simpo", "rpo"],
        typer.Option(help="How pairs are learnt from (docs/prefer.md)."),
    ] = "dpo",
    beta: Annotated[
        float | None, typer.Option(help="How far to go from the model as it was: the higher, the less far.")
    ] = None,
    max_tokens: MaxTokens = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch: Batch = None,
    max_len: MaxLen = None,
    style: Style = None,
    val_data: ValData = None,
    seed: Seed = None,
    lora: Lora = False,
    resume: Resume = None,
    accept_license: AcceptLicense = None,
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train on preferences: of two answers to a prompt, the better one is to become the likelier.

    Rows are those of `ojak pairs`, or any with a prompt, a chosen and a rejected answer. `--batch` counts pairs. Prints
    the folder, or with --json what came out. Stopped, the same command goes on from the last checkpoint.

    Example: ojak train prefer --loss dpo --model smollm2-135m-instruct --data my-pairs --lora --out my-model
    """
    settings = {"loss": loss} | ({} if beta is None else {"beta": beta})
    _train(
        "prefer", sets, dry_run, as_json, model=model, data=tuple(data), out=out, max_tokens=max_tokens,
        epochs=epochs, lr=lr, batch=batch, max_len=max_len, style=style, val_data=val_data, seed=seed, lora=lora,
        resume=resume, accept_license=accept_license, prefer=settings,
    )  # fmt: skip


@app.command("preview", cls=SeveralData)
def preview(
    model: Model,
    data: Data,
    style: Style = None,
    max_len: MaxLen = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows of each source.")] = 3,
    accept_license: AcceptLicense = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Show rows as a run would get them: which tokens are learnt, which only read, where a turn ends.

    `--set mask_roles=[]` and `--set objective=pretrain` show what these would do.

    Example: ojak train preview --model smollm2-135m-instruct --data my-data
    """
    from ojak.cli.training import preview_lines, train_config
    from ojak.train.preview import preview as make

    config = train_config(
        "preview", sets or [], model=model, data=tuple(data), out=Path(), style=style, max_len=max_len,
        accept_license=tuple(accept_license or ()),
    )  # fmt: skip
    found = make(config, rows, say)
    if as_json:
        write_json(found.to_dict())
    else:
        for parts in preview_lines(found):
            write_styled(parts)


def _train(objective: str, sets: list[str] | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Run or plan it, and say what came out."""
    from ojak.cli.training import run_training, sentence, train_config

    flags |= {"lora": {} if flags["lora"] else None, "accept_license": tuple(flags["accept_license"] or ())}
    config = train_config(objective, sets or [], objective=objective, **flags)
    if dry_run:
        _show_plan(config, as_json)
        return
    facts, signal = run_training(config)
    if as_json:
        write_json(facts)
    elif not signal:
        say(sentence(facts))
        write(config.out)
    if signal:
        raise signal


def _show_plan(config: TrainConfig, as_json: bool) -> None:
    """Print what a run would take; raises ResourceExhausted, as the run would, where that is not there."""
    from ojak.cli.training import check_room, plan_lines
    from ojak.train.plan import plan_run

    found = plan_run(config, notify=say)
    if as_json:
        write_json({**found.to_dict(), "fits": found.fits})
    else:
        write("\n".join(plan_lines(found)))
    check_room(found)
