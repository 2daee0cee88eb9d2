"""Lets the tests of this folder import the helpers that lie beside them and one folder up."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
