"""A model as tagger and judge, and the calibration that says how far to trust it."""

from __future__ import annotations

from ojak.judge.kept import Calibration, load_calibration
from ojak.judge.labels import LABELS, TAG_FIELDS
from ojak.judge.scores import Judge
from ojak.judge.tagger import Tagger

__all__ = ["LABELS", "TAG_FIELDS", "Calibration", "Judge", "Tagger", "load_calibration"]
