"""The protocol of an engine: what a stage may ask of it, and what it says it can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ojak.chat import ChatPrefix
from ojak.errors import UsageError
from ojak.model.request import Completion, Prompt, Request


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation to be read, not written: how probable is each of its tokens after the prompt?"""

    prompt: Prompt
    continuation: Prompt


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A stage that needs more is refused before any work (`require`).

    raw_prompt: continues a text as it is, without a template of its own. scores: gives the probabilities of texts that
    it is shown (`score`); logprobs: those of the tokens it drew. seed: the same request with the same seed
    gives the same text.
    """

    raw_prompt: bool = False
    seed: bool = False
    stop_ids: bool = False
    logprobs: bool = False
    scores: bool = False


class Engine(Protocol):
    """Continues texts. `identity` (engine, model, model_sha256, dtype, ...) is part of every request's key."""

    capabilities: Capabilities

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Texts of the tokens that must not stand in what a person says."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a text, for prompts without a chat template."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """The most tokens that prompt and completion may take together; None where nobody knows."""
        ...

    def chat_prefix(self, system: str | None = None, *, turns: int = 1) -> ChatPrefix:
        """The text around a user's turn, and around those of conversations of up to `turns` turns of a user.

        Raises InputRefused for a model without a usable chat template.
        """
        ...

    @property
    def drawn_tokens(self) -> int:
        """Tokens drawn so far, those of requests in flight too: for budgets and for showing progress."""
        ...

    def count_tokens(self, text: str) -> int: ...

    def first_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        """The ids with which these texts begin, for `Sampling.banned_first`."""
        ...

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        """Completions in the order in which they finish; one that was given up has an `error`.

        `requests` may yield None: nothing is ready now, ask again after another step. An error that it raises ends the
        work, rows in flight included, and passes through. `longest` is the most tokens that prompt and completion of
        one request take together.
        """
        ...

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        """The natural log-probability of each token of each continuation, in the order of `texts`.

        Only of engines with the capability `scores`.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """What a reader should know of the model: licence, quantization."""
        ...

    def stats(self) -> dict[str, Any]:
        """How the engine ran: sizes, shapes, memory; for the record."""
        ...


def require(engine: Engine, stage: str, *names: str) -> None:
    """Raises UsageError if the engine lacks one of these capabilities."""
    lacking = [name for name in names if not getattr(engine.capabilities, name)]
    if lacking:
        raise UsageError(
            f"{stage} cannot run on the engine {engine.identity.get('engine')!r}",
            why=f"it lacks: {', '.join(lacking)}",
            fix="use another engine, such as a local model",
        )
