"""`ojak export`: a model for other programs. (`ojak export-data` is for rows.)"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ojak.cli.terminal import say, write, write_json
from ojak.cli.words import AcceptLicense, Json, place


def export(
    model: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="A known name, a GGUF file, a folder, or that of an adapter.")
    ],
    fmt: Annotated[Literal["hf", "gguf", "ollama"], typer.Option("--format", help="What it is for.")],
    out: Annotated[Path, typer.Option(parser=place, metavar="PATH", help="The new folder, or FILE.gguf.")],
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option("--type", help="What matrices are stored as; q8_0 not in hf. By default f16, in hf as they are."),
    ] = None,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Export a model, with its tokenizer, its chat template and what ends an answer, as another program wants it.

    hf: a folder for transformers, vLLM and lm-eval. gguf: a file that llama.cpp runs. ollama: that file and a
    Modelfile. An adapter is merged into its base in float32, and the merge is checked. What the format cannot hold
    is refused.

    Example: ojak export smollm2-135m-instruct --format gguf --out smollm2.gguf
    """
    from ojak.export.model import export_model

    done = export_model(model, fmt, out, kind=kind, accept_license=tuple(accept_license or ()), notify=say)
    if as_json:
        found = {"format": done.format, "type": done.kind, "bytes": done.bytes, "out": str(out)}
        write_json({**found, "stop_ids": list(done.stop_ids), "stops": list(done.stops)})
        return
    say(f"{done.bytes / 1e6:,.0f} MB as {done.kind}; an answer ends at {' '.join(done.stops)}")
    write(out)
