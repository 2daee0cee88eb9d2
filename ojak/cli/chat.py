"""`ojak chat`: talk to a model in the terminal."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ojak.cli.terminal import say, write_json, write_part
from ojak.cli.words import AcceptLicense, Json
from ojak.errors import InputRefused, PartialResult, UsageError

if TYPE_CHECKING:
    from ojak.serve.talk import Talk

MARK = "> "


def chat(
    model: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="A known name, a GGUF file, a folder, or that of an adapter.")
    ],
    prompt: Annotated[str | None, typer.Option(help="One question: print the answer and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="The system turn, instead of the template's own.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 1024,
    seed: Annotated[int | None, typer.Option(min=0, help="What answers are drawn from; by default, chance.")] = None,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Talk to a model: a line is a question, its answer appears while it is written, and the next one may refer to it.

    Ctrl-C ends an answer; at the prompt it ends the program, as Ctrl-D does. A base model is refused: it continues
    text, and has no turns. --json goes with --prompt, and gives the answer with how it ended.

    Example: ojak chat smollm2-135m-instruct --prompt "What is the capital of France?"
    """
    if as_json and prompt is None:
        raise UsageError("--json needs --prompt", why="a conversation is not one object")
    drawn_from = secrets.randbits(63) if seed is None else seed
    talk = open_talk(model, tuple(accept_license or ()), system, temperature, max_tokens, drawn_from)
    if prompt is None:
        _converse(talk)
    elif as_json:
        write_json({**_answered(talk, prompt), "seed": drawn_from})
    else:
        _show(talk, prompt)


def open_talk(
    model: str,
    accept_license: tuple[str, ...],
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> Talk:
    """Loads the model. Raises InputRefused, before its weights are read, for one without a chat template."""
    from ojak.engines.native import NativeEngine
    from ojak.engines.open import EngineSpec, open_engine
    from ojak.model.request import Sampling
    from ojak.serve.talk import Talk

    engine = open_engine(EngineSpec(model=model, accept_license=accept_license), system=system, notify=say)
    if not isinstance(engine, NativeEngine):
        raise UsageError(f"{model!r} cannot chat", why="only a model that runs here has tokens to show")
    engine.slots = 1
    sampling = Sampling(temperature=temperature)
    return Talk(engine, system=system, sampling=sampling, max_tokens=max_tokens, seed=seed)


def _answered(talk: Talk, prompt: str) -> dict[str, Any]:
    """The object of --json."""
    begun = time.perf_counter()
    answer = "".join(talk.ask(prompt))
    seconds = time.perf_counter() - begun
    done = talk.last
    assert done is not None
    return {
        "model": talk.engine.model.name,
        "prompt": prompt,
        "answer": answer,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.token_count,
        "seconds": round(seconds, 3),
    }


def _show(talk: Talk, prompt: str) -> None:
    """Writes the answer as it comes, then the end of its line. Says so where it was cut at the longest allowed."""
    begun = False
    try:
        with closing(talk.ask(prompt)) as pieces:
            for piece in pieces:
                begun = True
                write_part(piece)
    finally:
        if begun:
            write_part("\n")
    if talk.last is not None and talk.last.finish_reason == "length":
        say(f"cut after {talk.last.token_count:,} tokens", "dim")


def _converse(talk: Talk) -> None:
    """Questions and answers until the questions end. Raises PartialResult if no person was there to see one fail."""
    asked = failed = 0
    for question in _questions():
        asked += 1
        try:
            _show(talk, question)
        except KeyboardInterrupt:
            say("stopped", "dim")
        except (InputRefused, UsageError) as error:  # about this question: another one may do
            failed += 1
            say(error, "bold red", "error: ")
    if failed and not sys.stdin.isatty():
        raise PartialResult(
            f"{failed:,} of {asked:,} questions got no answer",
            why="the reasons stand above",
            fix="ask them otherwise",
        )


def _questions() -> Iterator[str]:
    """Lines that are not blank: of a person behind a mark, or of whatever stdin is. Ctrl-C at the mark ends them."""
    is_person = sys.stdin.isatty()
    if is_person:
        say("Ctrl-C ends an answer, Ctrl-D the conversation.", "dim")
        with suppress(ImportError):
            import readline  # noqa: F401 (with it, `input` has lines that can be edited and called back)
    while True:
        try:
            if is_person and not sys.stdout.isatty():
                sys.stderr.write(MARK)
            line = input(MARK if is_person and sys.stdout.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not is_person:
                raise
            return
        if line.strip():
            yield line
