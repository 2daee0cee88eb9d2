"""The models that a curation asks: each is opened when a rule first needs it, and only then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ojak.curate.base import BaseAnswers
from ojak.curate.config import CurateConfig
from ojak.engines.base import Engine
from ojak.engines.open import EngineSpec, open_engine
from ojak.engines.remembering import Remembering, remembering

# Beside the shards, and removed with them: a base model's answers, and what a judge said of the shard in the making.
ANSWERS, REQUESTS = ".curate-base.sqlite", ".curate-requests.sqlite"


@dataclass(slots=True)
class Models:
    """Those that `config` names. engine, base_engine, guard_engine: given by the caller, they are not opened.

    out: the folder in which answers are kept while the curation works. stack: closes what was opened.
    """

    config: CurateConfig
    out: Path
    accept_license: tuple[str, ...]
    notify: Callable[[str], None]
    stack: ExitStack
    engine: Engine | None = None
    base_engine: Engine | None = None
    guard_engine: Engine | None = None
    asked: Remembering | None = None

    def judge(self) -> Engine | None:
        """Who tags and reads probabilities; None if nobody was named."""
        config = self.config
        if self.engine is None and config.model is not None:
            spec = EngineSpec(
                model=config.model, engine=config.engine, url=config.url, accept_license=self.accept_license
            )
            self.engine = open_engine(spec, notify=self.notify)
        if self.asked is None and self.engine is not None:
            self.asked = self.stack.enter_context(remembering(self.engine, self.out / REQUESTS))
        return self.asked

    def forget(self) -> None:
        """Drop what the judge said: it is in a shard."""
        if self.asked is not None:
            self.asked.forget()

    def guard(self) -> Engine | None:
        """Who says whether a row is safe; None if nobody was named."""
        name, url = self.config.guard, self.config.guard_url
        if self.guard_engine is None and name is not None:
            self.guard_engine = self._opened(name, url)
        return self.guard_engine

    def base(self) -> BaseAnswers | None:
        """Who answers beside the model that made the rows; None if nobody was named."""
        name, url = self.config.reward_base, self.config.reward_base_url
        if self.base_engine is None and name is not None:
            self.base_engine = self._opened(name, url, chat=False)
        if self.base_engine is None:
            return None
        return BaseAnswers(self.base_engine, self.out / ANSWERS, self.config.reward_base_tokens)

    def _opened(self, name: str, url: str | None, *, chat: bool = True) -> Engine:
        """A model that answers beside the judge: by the server at `url`, or in this process."""
        spec = EngineSpec(
            model=name, engine="endpoint" if url else "native", url=url, accept_license=self.accept_license
        )
        return open_engine(spec, chat=chat, notify=self.notify)
