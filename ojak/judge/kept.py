"""What is known of a judge, kept in the cache: one file for each model and each state of the questions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ojak._code import code_sha256
from ojak._files import write_atomic
from ojak.model.files import home
from ojak.records import dump_json

LEAST_AUROC = 0.70
LEAST_LOW = 0.60
CODE = ("judge/ask.py", "judge/labels.py", "judge/prompts.py", "judge/scores.py")  # what shapes a score
MOST_BYTES = 4 << 20

Estimate = tuple[float, float, float]


def is_usable(estimate: Estimate) -> bool:
    """Whether a filter may go by it: 0.70 or more, and with 95 % of certainty above 0.60."""
    return estimate[0] >= LEAST_AUROC and estimate[1] > LEAST_LOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well a model tells good rows from planted bad ones. Estimates are (value, low, high), 95 %.

    auroc: of the judge's score, by corruption; overall: their mean. measures: the same for other scores (the judge with
    another wording, likelihoods, length as the check of balance). tags: AUROC of tags on planted instructions.
    position: of pairwise verdicts. length_bias: rank correlation of score and length over good rows. agreement: rank
    correlation of the judge's two wordings. correlation: with published scores. pairs: rows of each kind compared.
    """

    identity: dict[str, Any]
    code: str
    source: str
    rows: int
    seed: int
    auroc: dict[str, Estimate]
    overall: Estimate
    usable: bool
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: dict[str, dict[str, Any]] = field(default_factory=dict)
    position: dict[str, Estimate] = field(default_factory=dict)
    length_bias: Estimate = (math.nan, math.nan, math.nan)
    agreement: Estimate = (math.nan, math.nan, math.nan)
    correlation: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    unparsed: float = 0.0
    speed: dict[str, float] = field(default_factory=dict)

    def may_filter(self, name: str) -> bool:
        """Whether rows may be dropped by this tag or score: "judge_score", "input_quality", "instruction_gain", ..."""
        if name in ("judge", "judge_score"):
            return self.usable
        found = self.tags.get(name) or self.measures.get(name) or {}
        return bool(found.get("usable"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what is not a number is null."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`. Raises TypeError or ValueError for anything else."""
        known = {name: value[name] for name in (item.name for item in fields(cls)) if name in value}
        for name in ("overall", "length_bias", "agreement"):
            known[name] = _estimate(known[name])
        for name in ("auroc", "position"):
            known[name] = {key: _estimate(found) for key, found in known[name].items()}
        return cls(**known)


def judge_code() -> str:
    """The state of the questions and of how their answers are read; a calibration holds for one."""
    return code_sha256(CODE)[:16]


def calibration_path(identity: Mapping[str, Any]) -> Path:
    """Where the calibration of a model is kept: by its hash, or by all that is known of it where there is none."""
    model = identity.get("model_sha256") or dump_json(dict(identity))
    name = hashlib.sha256(f"{model}\0{judge_code()}".encode()).hexdigest()[:32]
    return home() / "calibration" / f"{name}.json"


def keep_calibration(calibration: Calibration) -> Path:
    """Write it to the cache, whole or not at all; an older one is replaced."""
    path = calibration_path(calibration.identity)
    write_atomic(path, json.dumps(calibration.to_dict(), indent=1).encode())
    return path


def load_calibration(identity: Mapping[str, Any]) -> Calibration | None:
    """The calibration of the model with this identity (`Engine.identity`), if there is a sound one."""
    path = calibration_path(identity)
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        return Calibration.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _estimate(value: Any) -> Estimate:
    low, middle, high = (math.nan if part is None else float(part) for part in value)
    return low, middle, high


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
