"""A conversation with a model on this machine, for a person: its answers come in pieces, and may be cut short."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from queue import SimpleQueue

from ojak.chat import ChatTemplate, encode_prompt, special_pattern, turn
from ojak.engines.native import NativeEngine, row_seed
from ojak.errors import InputRefused, UsageError
from ojak.model.request import GREEDY, Completion, Drawn, Request, Sampling
from ojak.serve.text import GrowingText

LEAST_ROOM = 2048  # tokens; what a conversation needs beyond is found by doubling


class Talk:
    """Turns of a person and a model, the person's first. `last`: how the latest answer ended; None before there is one.

    Answer number n of a conversation draws from (seed, n). Raises InputRefused for a model without a usable template.
    """

    def __init__(
        self,
        engine: NativeEngine,
        *,
        system: str | None = None,
        sampling: Sampling = GREEDY,
        max_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        self.engine, self.sampling, self.max_tokens, self.seed = engine, sampling, max_tokens, seed
        self.tokenizer = engine.model.tokenizer
        self.template = ChatTemplate.of(engine.model.chat_template, self.tokenizer)
        self.prefix = engine.chat_prefix(system)
        self.specials = special_pattern(self.tokenizer)
        self.messages = [] if system is None else [turn("system", system)]
        self.last: Completion | None = None

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, piece by piece. An iterator that is closed, or left by an error, ends it there.

        The question and what was said of the answer become part of the conversation once the answer has ended.
        Raises InputRefused for a question that cannot be put, UsageError where the conversation has become too long.
        """
        asked = [*self.messages, turn("user", text)]
        request = self._request(text, asked)
        row = _Row(self.engine, request, self._room(request))
        growing = GrowingText(self.tokenizer, request.stop_ids, request.stop_strings)
        said: list[str] = []
        try:
            for drawn in row.tokens():
                if piece := growing.add(drawn.token_id):
                    said.append(piece)
                    yield piece
            if rest := growing.rest(row.finished().text):
                said.append(rest)
                yield rest
        finally:
            self.last = row.end()
            if self.last is not None and not self.last.error:
                self.messages = [*asked, turn("assistant", "".join(said))]

    def _request(self, text: str, asked: list[dict[str, str]]) -> Request:
        if found := self.specials.search(text):
            raise InputRefused(
                "this cannot be said to the model",
                why=f"it holds {found[0]!r}, which would end or forge a turn",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputRefused("this cannot be said to the model", why="it is not valid Unicode") from error
        (rendered,) = self.template.render([asked], add_generation_prompt=True)
        ids = tuple(encode_prompt(self.tokenizer, rendered))
        most = self.engine.model.config.max_position_embeddings
        if len(ids) >= most:
            raise UsageError(
                f"the conversation has {len(ids):,} tokens", why=f"{self.engine.model.name} reads up to {most:,}",
                fix="begin a new one",
            )  # fmt: skip
        return Request(
            prompt=ids,
            max_tokens=min(self.max_tokens, most - len(ids)),
            sampling=self.sampling,
            seed=row_seed(self.seed, len(asked) // 2),
            stop_ids=self.prefix.stop_ids,
            stop_strings=self.prefix.stop_strings,
        )

    def _room(self, request: Request) -> int:
        """How long a text the engine readies itself for: readying it anew at each turn would take longer than most."""
        needed, room = len(request.prompt) + request.max_tokens, LEAST_ROOM
        while room < needed:
            room *= 2
        return min(room, self.engine.model.config.max_position_embeddings)


class _Row:
    """One request in a thread, so that whoever waits for its tokens can be interrupted."""

    def __init__(self, engine: NativeEngine, request: Request, room: int) -> None:
        self._events: SimpleQueue[Drawn | Completion | BaseException] = SimpleQueue()
        self._cancelled = False
        self._done: Completion | None = None
        heard = replace(request, on_token=self._hear)
        self._thread = threading.Thread(target=self._work, args=(engine, heard, room), daemon=True)
        self._thread.start()

    def tokens(self) -> Iterator[Drawn]:
        """Each token when it is drawn. Raises what the engine raises."""
        while not isinstance(event := self._events.get(), Completion):
            if isinstance(event, BaseException):
                raise event
            yield event
        self._done = event

    def finished(self) -> Completion:
        """The whole answer, after the last token. Raises InputRefused if the model could not go on."""
        assert self._done is not None
        if self._done.error:
            raise InputRefused("the model could not go on", why=self._done.error)
        return self._done

    def end(self) -> Completion | None:
        """Ends the row if it has not ended; None if it broke."""
        self._cancelled = True
        self._thread.join()
        while self._done is None and not self._events.empty():
            event = self._events.get()
            self._done = event if isinstance(event, Completion) else None
        return self._done

    def _hear(self, drawn: Drawn) -> bool:
        self._events.put(drawn)
        return not self._cancelled

    def _work(self, engine: NativeEngine, request: Request, room: int) -> None:
        try:
            for done in engine.generate(iter([request]), longest=room):
                self._events.put(done)
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
            self._events.put(error)
