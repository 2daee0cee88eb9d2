"""A folder that a run is to work in: is it another's, and if a run is finished there, is its model what it was?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ojak._files import sha256_file
from ojak.errors import TargetExists, VerificationFailed

MANIFEST = "manifest.json"
ANOTHER = "remove the folder to train again, or choose another --out"


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest in a run's folder, None where there is none. Raises VerificationFailed where it is damaged."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{path} is damaged", why=str(error), fix=ANOTHER) from error
    if not isinstance(manifest, dict):
        raise VerificationFailed(f"{path} is damaged", why="it is no object", fix=ANOTHER)
    return manifest


def check_files(out: Path, manifest: dict[str, Any]) -> None:
    """Raise VerificationFailed unless the files of a finished run are those that its manifest tells of."""
    try:
        hashes = {str(entry["path"]): entry["sha256"] for entry in manifest["files"]}
    except (KeyError, TypeError) as error:
        raise VerificationFailed(
            f"{out / MANIFEST} is damaged", why=f"files: {error}", fix=ANOTHER
        ) from error
    for name, sha256 in hashes.items():
        path = out / name
        if not path.is_file():
            raise VerificationFailed(
                f"{path} is missing", why="the run that made it is finished", fix=ANOTHER
            )
        if sha256_file(path) != sha256:
            raise VerificationFailed(
                f"{path} has changed", why="its SHA-256 is not the manifest's", fix=ANOTHER
            )


def check_own(folder: Path, traces: tuple[Path, ...]) -> None:
    """Raise TargetExists if something is in the place of a run's model, and no trace of a run says that one began."""
    if folder.is_symlink() or (folder.exists() and not any(trace.exists() for trace in traces)):
        raise TargetExists(
            f"{folder} is there already",
            why="no run of ojak made it, and the trained model would take its place",
            fix="choose another --out",
        )
