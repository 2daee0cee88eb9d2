"""`ojak serve`: a model for clients of OpenAI's interface on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ojak.cli.terminal import say, write
from ojak.cli.words import AcceptLicense, Json
from ojak.errors import PartialResult

if TYPE_CHECKING:
    from ojak.serve.server import Service


def serve(
    model: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A known name, or a GGUF file or folder.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one and says which.")] = 8000,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="127.0.0.1: other machines are not served.")
    ] = "127.0.0.1",
    max_concurrent: Annotated[
        int, typer.Option(min=1, max=256, help="Answers written at once; others wait.")
    ] = 16,
    accept_license: AcceptLicense = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Serve a model to the clients of OpenAI's interface on this machine: /v1/models, /v1/completions and
    /v1/chat/completions.

    Prints its address once it answers, with --json as one object on one line, and runs until Ctrl-C or SIGTERM. If
    OJAK_SERVE_KEY is set, clients must show it as their API key.

    Example: ojak serve smollm2-135m-instruct --port 8000
    """
    from ojak.serve import check_host, check_web

    check_host(host)
    check_web()
    from ojak.serve.run import open_service

    service = open_service(
        model,
        port=port,
        max_concurrent=max_concurrent,
        accept_license=tuple(accept_license or ()),
        notify=say,
    )
    service.serve_until_stopped(lambda: _tell_ready(service, as_json))
    if service.cut_off:
        raise PartialResult(f"stopped; {service.cut_off} answers were cut off")
    say("stopped")


def _tell_ready(service: Service, as_json: bool) -> None:
    from ojak.serve.run import facts

    found = facts(service)
    if as_json:
        write(json.dumps(found))
        return
    write(found["url"])
    chat = "" if found["chat"] else "; it has no usable chat template: /v1/completions only"
    say(
        f"{found['model']} is served: {found['max_concurrent']} answers at once,"
        f" {found['max_model_len']:,} tokens each{chat}. Ctrl-C ends it."
    )
