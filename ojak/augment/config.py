"""The settings of an augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ojak._child import MOST_WORKERS
from ojak._settings import Settings, wrong_value
from ojak.augment.dialects import FormatName
from ojak.augment.templates import read_bank
from ojak.augment.verify import VerifyConfig
from ojak.engines.endpoint_url import parse_address
from ojak.engines.open import EngineName
from ojak.errors import UsageError

RULES = "rules"


class AugmentConfig(Settings):
    """Who makes the pairs of a text, and how they are written down.

    synthesizer: "rules" (no model), or a model: a known name, a file or a folder; with `engine` "endpoint" the name
    that the server at `url` serves. format: how it is asked: "published" is the format of the published synthesizer,
    "auto" is that for a model whose chat template writes it and a plain request for others. shots: texts in a group,
    each but the first asked with the pairs of those before it, and all written by the same templates. max_tokens: the
    most that is written about a piece. piece_tokens: a longer text is asked about in pieces, of which `most_pieces`
    are. most_pairs: that rules make of a text. verify: drop the pairs that fail the check against their text (False: no
    check), with thresholds of one's own where it holds some; by rules, and if there is a `verifier`, by a model that
    reads each pair with its text and without it. templates: a bank of templates for all texts; without one, that of
    each group's language. split: of an artifact, by default "train". limit: at most so many documents.
    workers: processes that make pairs by rules, by default one for each CPU; they change the time, not the result.
    """

    synthesizer: str = Field(default=RULES, min_length=1)
    shots: int = Field(default=1, ge=1, le=16)
    format: FormatName = "auto"
    max_tokens: int = Field(default=400, ge=1, le=100_000)
    piece_tokens: int = Field(default=1024, ge=16, le=1_000_000)
    most_pieces: int = Field(default=4, ge=1, le=1_000)
    most_pairs: int = Field(default=8, ge=1, le=1_000)
    temperature: float = Field(default=0.0, ge=0, lt=100)
    verify: VerifyConfig | bool = True
    verifier: str | None = Field(default=None, min_length=1)
    templates: Path | None = None
    split: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    workers: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    engine: EngineName = "native"
    url: str | None = None
    tokenizer: str | None = Field(default=None, min_length=1)
    key_env: str | None = None
    accept_license: tuple[str, ...] = ()

    @field_validator("url")
    @classmethod
    def _url_reads(cls, url: str | None) -> str | None:
        with wrong_value(shown=False):  # it may hold a password
            return parse_address(url).url if url else None

    @field_validator("templates")
    @classmethod
    def _templates_read(cls, path: Path | None) -> Path | None:
        with wrong_value():
            if path is not None:
                read_bank(path)
        return path

    @model_validator(mode="after")
    def _rules_ask_nobody(self) -> Self:
        given = {"url": self.url, "tokenizer": self.tokenizer, "key_env": self.key_env}
        unused = [name for name, value in given.items() if value is not None]
        unused += ["engine"] if self.engine != "native" else []
        if unused and not self.asks:
            raise ValueError(f"{unused[0]} is for a model, and rules ask none: name it as the synthesizer")
        return self

    @property
    def thresholds(self) -> VerifyConfig:
        """What a pair must reach."""
        return self.verify if isinstance(self.verify, VerifyConfig) else VerifyConfig()

    @property
    def asks(self) -> bool:
        """Whether a model is asked."""
        return self.synthesizer != RULES

    def recorded(self) -> dict[str, Any]:
        """The settings as a manifest keeps them: of paths the names alone, nothing of where a server is."""
        found = self.model_dump(mode="json", exclude={"url", "key_env", "accept_license", "workers"})
        for name in ("synthesizer", "verifier", "tokenizer", "templates"):
            value = found[name]
            found[name] = Path(value).name if value and Path(value).exists() else value
        return found


class AugmentSettings(AugmentConfig):
    """Those of a recipe's stage. data: an artifact or a file of documents, where no stage before makes them."""

    data: Path | None = None

    def source(self) -> Path:
        """What `data` names. Raises UsageError where it names nothing."""
        if self.data is None:
            raise UsageError(
                "there are no documents to augment", fix="set augment.data, or make a corpus before"
            )
        return self.data

    def config(self) -> AugmentConfig:
        """Without the source."""
        return AugmentConfig(**self.model_dump(exclude={"data"}))
