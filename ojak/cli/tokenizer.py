"""`ojak tokenizer`: a vocabulary of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import Json, place

app = typer.Typer(help="Train a tokenizer.", no_args_is_help=True)


@app.callback()
def group() -> None:
    # With a callback, typer keeps `train` as a word of its own although it is the only one.
    pass


@app.command("train")
def train(
    data: Annotated[
        list[Path], typer.Option(parser=place, metavar="PATH", help="Texts or conversations, any format. Repeatable.")
    ],
    vocab_size: Annotated[int, typer.Option(metavar="N", help="Tokens, the 256 bytes and the special ones included.")],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The new folder.")],
    special: Annotated[
        list[str] | None, typer.Option(metavar="TOKEN", help="Another special token, such as <|tool|>. Repeatable.")
    ] = None,
    min_frequency: Annotated[int, typer.Option(min=1, help="How often a pair occurs that becomes a token.")] = 2,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a byte-level BPE tokenizer, as a Hugging Face folder.

    Its special tokens are <|endoftext|>, which ends a text, ChatML's <|im_start|> and <|im_end|>, and those of
    --special. Exit 3 if the texts give fewer tokens than asked for; the folder is there then, too.

    Example: ojak tokenizer train --data my-data --vocab-size 4096 --out my-tokenizer
    """
    from ojak.train.tokenizer import train_tokenizer

    made = train_tokenizer(
        data, vocab_size=vocab_size, out=out, special=tuple(special or ()), min_frequency=min_frequency
    )
    if as_json:
        found = {
            "vocab_size": made.vocab_size,
            "texts": made.texts,
            "bytes_per_token": round(made.bytes_per_token, 4),
        }
        write_json({**found, "out": str(out)})
        return
    say(f"{made.vocab_size:,} tokens from {made.texts:,} texts; {made.bytes_per_token:.2f} bytes a token")
    write(out)
