"""Exact and near duplicates among texts, decided in row order.

`rows` decides row by row, as rows come; `minhash` clusters up to a million rows at once; `embedding` compares what
texts mean. What two texts share is measured in one place, `text`. Nothing here depends on Python's `hash`, on the
platform or on the process: the same rows give the same decisions everywhere (`embedding` up to the rounding of a
processor's products). numpy is imported on first use, not at import.
"""

from __future__ import annotations

from ojak.similarity.rows import Duplicate, DuplicateIndex
from ojak.similarity.text import bands_for, jaccard, normalize, shingles

__all__ = ["Duplicate", "DuplicateIndex", "bands_for", "jaccard", "normalize", "shingles"]
