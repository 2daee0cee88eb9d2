"""The settings of a curation."""

from __future__ import annotations

import hashlib
import json

from pydantic import Field, computed_field, field_validator

from ojak._settings import Settings
from ojak.curate.recipe import FilterRecipe, load_recipe
from ojak.engines.open import EngineName, EngineUrl
from ojak.errors import UsageError


class CurateConfig(Settings):
    """recipe: the name of a preset, or the path of a file. model, engine, url: who tags and reads probabilities.

    keep: how many rows, instead of what the recipe's pick says. strict: refuse where a rule could not be applied.
    trust_anyway: let a judge filter that was never calibrated, or did not pass.

    reward_model: a folder or a name. reward_base: the base model whose answers the reward difference compares with;
    reward_base_url: the server that runs it, if ojak does not; reward_base_tokens: the cap of its answers.

    guard: a guard model that gives the tag `safety` instead of the rules; guard_url: the server that runs it, if any.
    """

    recipe: str = Field(default="default", min_length=1)
    model: str | None = Field(default=None, min_length=1)
    engine: EngineName = "native"
    url: EngineUrl = None
    keep: int | None = Field(default=None, ge=1)
    strict: bool = False
    trust_anyway: bool = False
    reward_model: str | None = Field(default=None, min_length=1)
    reward_base: str | None = Field(default=None, min_length=1)
    reward_base_url: EngineUrl = None
    reward_base_tokens: int = Field(default=512, ge=1, le=8192)
    guard: str | None = Field(default=None, min_length=1)
    guard_url: EngineUrl = None

    @field_validator("recipe")
    @classmethod
    def _recipe_reads(cls, recipe: str) -> str:
        try:
            load_recipe(recipe)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return recipe

    @computed_field
    @property
    def recipe_sha256(self) -> str:
        """A hash of what the recipe says, so that a changed file is a changed setting."""
        text = json.dumps(self.loaded().resolved(), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def loaded(self) -> FilterRecipe:
        """The recipe; raises UsageError for one that is not there or wrong."""
        return load_recipe(self.recipe)
