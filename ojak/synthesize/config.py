"""The settings of a Magpie run: what shapes its rows, and what only says how far to go."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, field_validator

from ojak._settings import Settings, wrong_value
from ojak.engines.endpoint_url import parse_address
from ojak.engines.open import EngineName
from ojak.model.request import Sampling
from ojak.synthesize.grids import Grid, parse_grid
from ojak.synthesize.systems import system_text

# What does not change a row that is there: a run may be continued with other values of these, and with more `rows`.
# The engine and its model are in the identity: the served name and the template stand for an endpoint, not its address.
ELSEWHERE = {"engine", "url", "tokenizer", "key_env", "workers", "ray_address"}
NOT_SHAPING = {
    "out",
    "rows",
    "limit_tokens",
    "limit_minutes",
    "resume",
    "accept_license",
    "retry_failed",
} | ELSEWHERE
GROWING = {"max_instruction_tokens", "max_response_tokens"}  # rows cut by a smaller cap are asked again


class MagpieConfig(Settings):
    """Settings of `synthesize_magpie`; `rows` counts sampled instructions, of which rules drop some.

    `system` is a domain ("@math", "@code", "@translation") or a text, of which an empty one is none; `language` a code
    such as "de". `grid` is a
    preset ("default", "air", "pro", "plain") or "T:P,T:P". `ban_first` and `first_temperature` are Magpie's two rules
    on an instruction's first token. Caps are in tokens. `engine` "endpoint" asks the server at `url` for its `model`;
    `tokenizer` (a name or a path) says where template and tokenizer come from, `key_env` in which environment variable
    the key is. "ray" spreads either over `workers` processes, on the cluster at `ray_address`. `retry_failed` asks rows
    again that failed for good. Made with a value out of range, it raises UsageError.
    """

    model: str = Field(min_length=1)
    out: Path
    rows: int = Field(ge=1, le=100_000_000)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    system: str | None = None
    language: str | None = None
    grid: str = "default"
    max_instruction_tokens: int = Field(default=256, ge=1, le=1_000_000)
    max_response_tokens: int = Field(default=512, ge=1, le=1_000_000)
    response_temperature: float = Field(default=0.0, ge=0, lt=100)
    response_top_p: float = Field(default=1.0, gt=0, le=1)
    response_repetition_penalty: float = Field(default=1.0, gt=0, lt=100)
    first_temperature: float | None = Field(default=None, ge=0, lt=100)
    ban_first: tuple[str, ...] = ()
    limit_tokens: int | None = Field(default=None, ge=1)
    limit_minutes: float | None = Field(default=None, gt=0)
    resume: Literal["if_possible", "always", "never"] = "if_possible"
    accept_license: tuple[str, ...] = ()
    engine: EngineName = "native"
    url: str | None = None
    tokenizer: str | None = Field(default=None, min_length=1)
    key_env: str | None = None
    workers: int | None = Field(default=None, ge=1, le=10_000)
    ray_address: str | None = Field(default=None, min_length=1)
    retry_failed: bool = False

    @field_validator("url")
    @classmethod
    def _url_reads(cls, url: str | None) -> str | None:
        with wrong_value(shown=False):  # it may hold a password
            return parse_address(url).url if url else None

    @field_validator("out", mode="before")
    @classmethod
    def _out_is_named(cls, out: object) -> object:
        if out == "":  # for Path it would be the current folder
            raise ValueError("an empty path; the current folder is '.'")
        return out

    @field_validator("grid")
    @classmethod
    def _grid_reads(cls, grid: str) -> str:
        with wrong_value():
            parse_grid(grid)
        return grid

    @field_validator("system")
    @classmethod
    def _domain_is_known(cls, system: str | None) -> str | None:
        with wrong_value():
            system_text(system, None)
        return system if system and not system.isspace() else None

    @field_validator("language")
    @classmethod
    def _language_is_known(cls, language: str | None) -> str | None:
        with wrong_value():
            system_text(None, language)
        return language

    @property
    def cells(self) -> Grid:
        """The grid's (temperature, top-p) pairs; row n takes pair n modulo their number."""
        return parse_grid(self.grid)

    @property
    def system_text(self) -> str | None:
        """The system turn of domain and language, None for the model's own."""
        return system_text(self.system, self.language)

    @property
    def response_sampling(self) -> Sampling:
        return Sampling(
            temperature=self.response_temperature,
            top_p=self.response_top_p,
            repetition_penalty=self.response_repetition_penalty,
        )

    def shaping(self) -> dict[str, Any]:
        """The settings that shape a row's text, as JSON values."""
        return self.model_dump(mode="json", exclude=NOT_SHAPING | GROWING)

    def run_key(self, identity: dict[str, Any]) -> str:
        """Names the run by what shapes its rows; a row's id is made of this and its number."""
        shaping = self.shaping() | {"model": identity}
        return hashlib.sha256(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
