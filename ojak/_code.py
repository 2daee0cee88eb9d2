"""Which ojak this is: its version, and hashes of parts of its source. Results record both."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent
SOURCES = ("*.py", "*.jinja", "*.css", "*.yaml")


def version() -> str:
    """The version that is installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("ojak")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


@functools.cache
def code_sha256(code: tuple[str, ...]) -> str:
    """A hash over source files and folders of this package: when it changes, what they make may, too."""
    digest = hashlib.sha256()
    for path in sorted({path for name in code for path in _sources(PACKAGE / name)}):
        name = path.relative_to(PACKAGE).as_posix()
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()


def _sources(path: Path) -> list[Path]:
    return [found for pattern in SOURCES for found in path.rglob(pattern)] if path.is_dir() else [path]
