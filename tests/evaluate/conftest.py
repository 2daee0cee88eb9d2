"""Lets the tests of this folder import the tiny models, and the helpers one folder up."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "model"), str(Path(__file__).parent.parent)]
