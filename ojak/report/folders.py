"""Looking into folders that somebody else may have written: a manifest of any form, and places that stay inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ojak._manifest import read_manifest
from ojak.errors import OjakError


def peek(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`; empty where there is none, or none that is a JSON object in a file of its own."""
    try:
        found = json.loads(read_manifest(folder), parse_constant=lambda name: None)
    except (OjakError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def inside(root: Path, name: str) -> Path | None:
    """The folder `name` below `root`, given from `root` or from the folder around it; None if it is none."""
    for start in (root, root.parent):
        try:
            found = (start / name).resolve()
            if found.is_dir() and found != root.resolve() and found.is_relative_to(root.resolve()):
                return found
        except (OSError, ValueError):  # a name with a NUL, or longer than the system takes
            continue
    return None
