"""Lets the tests of this folder import the helpers beside them, one folder up, in tests/model and tests/train."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "model"), str(HERE.parent / "train")]
