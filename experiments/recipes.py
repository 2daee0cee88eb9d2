"""A recipe with other arms: what a factor of an experiment changes, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def with_arms(recipe: Path, out: Path, arms: Mapping[str, Mapping[str, Any]]) -> Path:
    """The recipe with these arms of `pretrain-mix`, each trained on, written to the file `out`."""
    found = yaml.safe_load(recipe.read_text("utf-8"))
    found["stages"]["pretrain-mix"]["arms"] = {name: dict(settings) for name, settings in arms.items()}
    found["stages"]["train"]["arms"] = {name: {"data": [f"@pretrain-mix:{name}"]} for name in arms}
    out.write_text(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), "utf-8")
    return out
