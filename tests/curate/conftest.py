"""Lets the tests of this folder import the scripted judges and the tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("judge", "model")]
