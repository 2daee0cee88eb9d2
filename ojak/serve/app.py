"""The routes: /v1/models, /v1/completions, /v1/chat/completions, /health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ojak.errors import InputRefused, OjakError, UsageError
from ojak.model.request import Completion, Drawn
from ojak.model.request import Request as Row
from ojak.serve.guard import read_json
from ojak.serve.parameters import Asked, read_chat, read_completion
from ojak.serve.refusal import Refusal, bad, broken
from ojak.serve.served import Ids, Served
from ojak.serve.shapes import ChatShape, Choice, CompletionShape, Shape, usage
from ojak.serve.text import GrowingText, Words
from ojak.serve.wire import DONE, HEADERS, json_response, sse
from ojak.serve.worker import Answer, Worker

Found = TypeVar("Found")


class Api:
    """The handlers of the routes, around one model and its worker."""

    def __init__(self, served: Served, worker: Worker, notify: Callable[[str], None]) -> None:
        self.served, self.worker, self.notify = served, worker, notify
        self.words = Words(served.tokenizer)

    def app(self) -> Starlette:
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            Refusal: refused,
            HTTPException: not_found,
            ClientDisconnect: gone,
            InputRefused: cannot,
            UsageError: cannot,
            Exception: self.failed,
        }
        made = Starlette(routes=routes, exception_handlers=handlers)
        made.router.redirect_slashes = False
        return made

    # -- routes -----------------------------------------------------------------------------------------------------

    async def health(self, _request: Request) -> Response:
        running, waiting = self.worker.queue.counts
        return json_response({"status": "ok", "running": running, "waiting": waiting})

    async def models(self, _request: Request) -> Response:
        return json_response({"object": "list", "data": [self.card()]})

    async def model(self, request: Request) -> Response:
        self.check_name(request.path_params["name"])
        return json_response(self.card())

    def card(self) -> dict[str, Any]:
        room = self.served.room
        return {
            "id": self.served.name, "object": "model", "created": 0, "owned_by": "ojak", "max_model_len": room
        }  # fmt: skip

    async def completions(self, request: Request) -> Response:
        asked = read_completion(await read_json(request))
        self.check_name(asked.model)
        prompts = await asyncio.to_thread(self.served.prompts, asked.prompt)
        return await self.respond(request, asked, prompts, CompletionShape)

    async def chat(self, request: Request) -> Response:
        asked = read_chat(await read_json(request))
        self.check_name(asked.model)
        prompt = await asyncio.to_thread(self.served.chat, asked.messages)
        return await self.respond(request, asked, [prompt], ChatShape)

    def check_name(self, name: str | None) -> None:
        """There is one model; a request may leave its name out."""
        if name not in (None, self.served.name):
            raise Refusal(
                404, f"the model served here is {self.served.name!r}", param="model", code="model_not_found"
            )

    # -- answers ----------------------------------------------------------------------------------------------------

    async def respond(
        self, request: Request, asked: Asked, prompts: Sequence[Ids], kind: type[Shape]
    ) -> Response:
        rows = self.served.requests(asked, prompts, chat=kind is ChatShape)
        shape = kind(self.served.name, self.served.fingerprint, self.words, asked.likeliest)
        choices = [Choice(n, self.growing(row)) for n, row in enumerate(rows)]
        counts = sum(map(len, prompts))
        answer = self.worker.submit(rows, hears=asked.stream or asked.likeliest is not None)
        if asked.stream:
            chunks = stream(answer, shape, choices, counts if asked.include_usage else None)
            return EventStream(chunks, lambda: self.worker.queue.cancel(answer.jobs))
        try:
            await while_connected(request.receive, gather(answer, choices))
        finally:
            self.worker.queue.cancel(answer.jobs)
        return json_response(shape.whole(choices, usage(counts, choices)))

    def growing(self, row: Row) -> GrowingText:
        return GrowingText(self.served.tokenizer, row.stop_ids, row.stop_strings)

    async def failed(self, _request: Request, error: Exception) -> Response:
        """A defect of ours, or of the machine: told here in full, and to the client as little as possible."""
        self.notify(f"a request failed: {type(error).__name__}: {error}")
        return broken("the server failed to answer").response()


async def gather(answer: Answer, choices: Sequence[Choice]) -> None:
    """Waits for all choices."""
    async for batch in answer.batches():
        for index, event in batch:
            if isinstance(event, Drawn):
                choices[index].hear(event)
            else:
                choices[index].done = event


async def stream(
    answer: Answer, shape: Shape, choices: Sequence[Choice], prompt_tokens: int | None
) -> AsyncIterator[bytes]:
    """The events of a streamed answer, as many at once as there are. `prompt_tokens`: tell the counts at the end."""
    more: dict[str, Any] = {} if prompt_tokens is None else {"usage": None}
    yield b"".join(sse(shape.chunk(part, **more)) for choice in choices for part in shape.first(choice))
    try:
        async for batch in answer.batches():
            parts = [part for index, event in batch for part in told(shape, choices[index], event)]
            yield b"".join(sse(shape.chunk(part, **more)) for part in parts)
    except Refusal as refusal:
        yield sse(refusal.body())
        return
    if prompt_tokens is not None:
        yield sse(shape.chunk(usage=usage(prompt_tokens, choices)))
    yield DONE


def told(shape: Shape, choice: Choice, event: Drawn | Completion) -> list[dict[str, Any]]:
    """What the client is told of one event: nothing, where all of it is held back."""
    if isinstance(event, Completion):
        choice.done = event
        return shape.last(choice)
    text = choice.hear(event)
    return [shape.piece(choice, text)] if text else []


# -- connections ------------------------------------------------------------------------------------------------------


class EventStream(StreamingResponse):
    """Sends server-sent events until they end or the client goes; then calls `end`."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(chunks, headers=HEADERS)
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self.stream_response(send))
        except ClientDisconnect:
            return  # there is nobody to tell
        finally:
            self.end()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Found]) -> Found:
    """The result of `work`, unless the client closes its connection before: then ClientDisconnect."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has closed its connection; the body has been read already."""
    while (await receive())["type"] != "http.disconnect":
        pass


# -- errors -----------------------------------------------------------------------------------------------------------


async def refused(_request: Request, error: Refusal) -> Response:
    return error.response()


async def not_found(request: Request, error: HTTPException) -> Response:
    """Starlette's own: no such route, or not with this method."""
    text = f"{request.method} {request.url.path} is not served here"[:300]
    return Refusal(error.status_code, text, code="unknown_url", headers=error.headers).response()


async def cannot(_request: Request, error: OjakError) -> Response:
    return bad(": ".join(filter(None, [error.what, error.why]))).response()


async def gone(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody is there to read it."""
    return Response(status_code=499)
