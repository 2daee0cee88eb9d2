"""The settings of a corpus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ojak._child import MOST_WORKERS, workers
from ojak._settings import Settings
from ojak.rules.privacy import KINDS

CODE = re.compile(r"[a-z]{2}")


class CorpusConfig(Settings):
    """What is read, and by which rules it is cleaned.

    paths: files, and folders that are walked. profile: the rules (`profiles.py`). languages: ISO 639-1 codes of
    documents that may stay, () for all; None: the profile's. personal_data: kinds that are replaced by their name in
    brackets; None: the profile's. text_field: the field, or column, that holds the text of a row. workers: processes
    that extract and filter; None: one a core. They change the time, not the result. educational: a file of scored texts
    (`educational.py`), from which is learnt which documents reach `least_score`; embedder: the model whose vectors it
    is learnt on.
    """

    paths: tuple[Path, ...] = Field(min_length=1)
    profile: Literal["web", "docs", "none"] = "web"
    languages: tuple[str, ...] | None = None
    personal_data: tuple[str, ...] | None = None
    text_field: str = Field(default="text", min_length=1, max_length=200)
    workers: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    educational: Path | None = None
    least_score: float = Field(default=3.0, allow_inf_nan=False)
    embedder: str = Field(default="all-minilm-l6-v2", min_length=1)

    @field_validator("languages")
    @classmethod
    def _codes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        wrong = [code for code in value or () if not CODE.fullmatch(code)]
        if wrong:
            raise ValueError(f"{wrong[0][:40]!r} is no code of a language (ISO 639-1), such as en")
        return value

    @field_validator("educational")
    @classmethod
    def _scores_are_there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("there is no file of scored texts at this path")
        return path

    @field_validator("personal_data")
    @classmethod
    def _known_kinds(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = [kind for kind in value or () if kind not in KINDS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no kind of personal data; there are: {', '.join(KINDS)}")
        return value

    def processes(self) -> int:
        """How many workers that is on this machine."""
        return workers(self.workers)
