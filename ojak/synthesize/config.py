"""The settings of a run: what shapes its rows, and what only says how far to go."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, ValidationInfo, computed_field, field_validator

from ojak._settings import Settings, wrong_value
from ojak.engines.open import EngineName, EngineUrl
from ojak.model.request import Sampling
from ojak.synthesize.grids import Grid, parse_grid
from ojak.synthesize.persona_list import PersonaList, persona_turn, read_personas
from ojak.synthesize.systems import system_text
from ojak.synthesize.texts import Excerpt, read_excerpts, sha256_of

SAMPLED_TEMPERATURE = 0.8  # of several answers to one instruction (Magpie, preference data)
MOST_ROUNDS = 6  # of persona-to-persona: as many as the paper made
MOST_RELATIVES = 6  # of a persona in a round: as many as there are kinds of them


class RunConfig(Settings):
    """What every run of requests is told, whatever it makes.

    `engine` "endpoint" asks the server at `url` for its `model`; `tokenizer` (a name or a path) says where template and
    tokenizer come from, `key_env` in which environment variable the key is. "ray" spreads either over `workers`
    processes, on the cluster at `ray_address`. `retry_failed` asks rows again that failed
    for good.

    `not_shaping`: what does not change a row that is there: a run may be continued with other values of these.
    `not_recorded`: what a manifest leaves out. `growing`: what may grow from one run to the next, and what is there
    stays: more rows, larger caps.
    `judges`: the code after a change of which rows are judged again.
    """

    not_recorded: ClassVar[frozenset[str]] = frozenset(
        {
            "out",
            "limit_tokens",
            "limit_minutes",
            "resume",
            "accept_license",
            "retry_failed",
            "url",
            "key_env",
            "workers",
            "ray_address",
        }
    )
    # The engine and its model are in the identity: the served name and the template stand for an endpoint.
    not_shaping: ClassVar[frozenset[str]] = not_recorded | {"engine", "tokenizer"}
    growing: ClassVar[frozenset[str]] = frozenset()
    judges: ClassVar[tuple[str, ...]] = ()

    model: str = Field(min_length=1)
    out: Path
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    limit_tokens: int | None = Field(default=None, ge=1)
    limit_minutes: float | None = Field(default=None, gt=0)
    resume: Literal["if_possible", "always", "never"] = "if_possible"
    accept_license: tuple[str, ...] = ()
    engine: EngineName = "native"
    url: EngineUrl = None
    tokenizer: str | None = Field(default=None, min_length=1)
    key_env: str | None = None
    workers: int | None = Field(default=None, ge=1, le=10_000)
    ray_address: str | None = Field(default=None, min_length=1)
    retry_failed: bool = False

    @field_validator("out", mode="before")
    @classmethod
    def _out_is_named(cls, out: object) -> object:
        if out == "":  # for Path it would be the current folder
            raise ValueError("an empty path; the current folder is '.'")
        return out

    @property
    def system_text(self) -> str | None:
        """The system turn of every row, None for the model's own."""
        return None

    @property
    def most_turns(self) -> int:
        """The most turns of a user in a conversation."""
        return 1

    def shaping(self) -> dict[str, Any]:
        """The settings that shape a row's text, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.not_shaping | self.growing))

    def recorded(self) -> dict[str, Any]:
        """The settings as a manifest keeps them: without where the run lies and how far one command went."""
        return self.model_dump(mode="json", exclude=set(self.not_recorded))

    def run_key(self, identity: dict[str, Any]) -> str:
        """Names the run by what shapes its rows; a row's id is made of this and its number."""
        shaping = self.shaping() | {"model": identity}
        return hashlib.sha256(orjson.dumps(shaping, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


class MagpieConfig(RunConfig):
    """Settings of `synthesize_magpie`; `rows` counts sampled instructions, of which rules drop some.

    `system` is a domain ("@math", "@code", "@translation") or a text, of which an empty one is none; `language` a code
    such as "de". `grid` is a
    preset ("default", "air", "pro", "plain") or "T:P,T:P". `ban_first` and `first_temperature` are Magpie's two rules
    on an instruction's first token. Caps are in tokens.

    `turns`: the most turns of a user; conversations end earlier where a follow-up is no good, or where the whole of
    one would pass `max_total_tokens`. `responses`: answers to each instruction; several are drawn at a temperature of
    0.8 unless `response_temperature` is given, a single one at 0. `personas`: a file, one of whose personas is in each
    row's system turn.

    Made with a value out of range, it raises UsageError.
    """

    growing: ClassVar[frozenset[str]] = frozenset(
        {
            "rows",
            "turns",
            "responses",
            "max_instruction_tokens",
            "max_response_tokens",
            "max_total_tokens",
        }
    )
    judges: ClassVar[tuple[str, ...]] = (
        "similarity/text.py",
        "similarity/rows.py",
        "_grams.py",
        "synthesize/magpie.py",
        "synthesize/turns.py",
        "synthesize/rows.py",
        "rules",
    )

    rows: int = Field(ge=1, le=100_000_000)
    system: str | None = None
    language: str | None = None
    personas: Path | None = None
    grid: str = "default"
    turns: int = Field(default=1, ge=1, le=20)
    responses: int = Field(default=1, ge=1, le=1_000)
    max_instruction_tokens: int = Field(default=256, ge=1, le=1_000_000)
    max_response_tokens: int = Field(default=512, ge=1, le=1_000_000)
    max_total_tokens: int = Field(default=4096, ge=1, le=10_000_000)
    response_temperature: float | None = Field(default=None, ge=0, lt=100, validate_default=True)
    response_top_p: float = Field(default=1.0, gt=0, le=1)
    response_repetition_penalty: float = Field(default=1.0, gt=0, lt=100)
    first_temperature: float | None = Field(default=None, ge=0, lt=100)
    ban_first: tuple[str, ...] = ()

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

    @field_validator("personas")
    @classmethod
    def _personas_are_there(cls, personas: Path | None) -> Path | None:
        if personas is not None and not personas.exists():
            raise ValueError("there is no such file")
        return personas

    @field_validator("response_temperature")
    @classmethod
    def _several_answers_differ(cls, temperature: float | None, info: ValidationInfo) -> float:
        if temperature is not None:
            return temperature
        return SAMPLED_TEMPERATURE if info.data.get("responses", 1) > 1 else 0.0

    @property
    def cells(self) -> Grid:
        """The grid's (temperature, top-p) pairs; row n takes pair n modulo their number."""
        return parse_grid(self.grid)

    @property
    def system_text(self) -> str | None:
        """The system turn of domain and language, None for the model's own."""
        return system_text(self.system, self.language)

    @property
    def most_turns(self) -> int:
        return self.turns

    @functools.cached_property
    def persona_list(self) -> PersonaList | None:
        """The personas of the file. Raises InputRefused if it cannot be read."""
        return read_personas(self.personas) if self.personas else None

    def persona(self, row: int) -> str | None:
        """The persona of a row."""
        return self.persona_list.of_row(row, self.seed) if self.persona_list else None

    def system_of(self, persona: str | None) -> str | None:
        """The system turn of a row with this persona."""
        return self.system_text if persona is None else persona_turn(persona, self.system_text)

    @property
    def response_sampling(self) -> Sampling:
        return Sampling(
            temperature=self.response_temperature or 0.0,
            top_p=self.response_top_p,
            repetition_penalty=self.response_repetition_penalty,
        )

    def shaping(self) -> dict[str, Any]:
        """The settings that shape a row's text, as JSON values; of personas what they are, not where they lie."""
        values = super().shaping()
        del values["personas"]
        return values | ({"personas": self.persona_list.sha256} if self.persona_list else {})

    def recorded(self) -> dict[str, Any]:
        listed = self.persona_list
        personas = {"sha256": listed.sha256, "personas": len(listed.texts)} if listed else None
        cells = [list(cell) for cell in self.cells]
        return super().recorded() | {"personas": personas, "system_text": self.system_text, "cells": cells}


class PersonasConfig(RunConfig):
    """Settings of `synthesize_personas`. `source`: a file or a folder of texts; `texts`: how many excerpts of it to
    take, all by default. `rounds` of persona-to-persona follow (0: none), in which each persona gets `relatives` more.

    Made with a value out of range, it raises UsageError.
    """

    not_recorded: ClassVar[frozenset[str]] = RunConfig.not_recorded | {"source_sha256"}
    not_shaping: ClassVar[frozenset[str]] = RunConfig.not_shaping | {"source_sha256"}
    growing: ClassVar[frozenset[str]] = frozenset({"rounds", "max_tokens"})
    judges: ClassVar[tuple[str, ...]] = (
        "similarity/text.py",
        "similarity/rows.py",
        "_grams.py",
        "synthesize/personas.py",
        "rules",
    )

    source: Path
    texts: int | None = Field(default=None, ge=1, le=10_000_000)
    rounds: int = Field(default=1, ge=0, le=MOST_ROUNDS)
    relatives: int = Field(default=1, ge=1, le=MOST_RELATIVES)
    max_tokens: int = Field(default=128, ge=1, le=100_000)
    temperature: float = Field(default=0.7, ge=0, lt=100)
    top_p: float = Field(default=0.95, gt=0, le=1)

    @field_validator("source")
    @classmethod
    def _source_is_there(cls, source: Path) -> Path:
        if not source.exists():
            raise ValueError("there is no such file or folder")
        return source

    @functools.cached_property
    def excerpts(self) -> tuple[Excerpt, ...]:
        """The texts that are read. Raises InputRefused if they cannot be."""
        return read_excerpts(self.source, self.texts)

    @computed_field
    @functools.cached_property
    def source_sha256(self) -> str:
        """A hash of the texts, so that a changed source is a changed setting."""
        return sha256_of(self.excerpts)

    @property
    def most_rows(self) -> int:
        """As many rows as there are if every persona is kept: each then adds its relatives, in each round."""
        return len(self.excerpts) * sum(self.relatives**number for number in range(self.rounds + 1))

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    def shaping(self) -> dict[str, Any]:
        return super().shaping() | {"source": self.source_sha256, "texts": len(self.excerpts)}

    def recorded(self) -> dict[str, Any]:
        return super().recorded() | {"source": self.source_sha256, "texts": len(self.excerpts)}
