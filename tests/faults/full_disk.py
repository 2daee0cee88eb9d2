"""A disk that is full at one moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the `step`-th sync, rename or new folder find no room, and only that one."""
    done: list[str] = []

    def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            done.append(function.__name__)
            if len(done) == step + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **options)

        return call

    for name in ("replace", "rename", "link", "mkdir", "fsync"):
        monkeypatch.setattr(os, name, hooked(getattr(os, name)))
    return done
