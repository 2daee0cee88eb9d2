"""What is known of a judge, kept in the cache: one file for each model and each way of asking it."""

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
from ojak._interval import Estimate
from ojak.judge.reward import ENGINE
from ojak.model.files import home
from ojak.records import dump_json

LEAST_AUROC = 0.70
LEAST_LOW = 0.60
# What shapes a score, of a judge that is asked and of a reward model (told by the engine that its identity names).
CODE = ("judge/ask.py", "judge/labels.py", "judge/prompts.py", "judge/scores.py")
REWARD_CODE = ("judge/reward.py",)
MOST_BYTES = 4 << 20


def is_usable(estimate: Estimate) -> bool:
    """Whether a filter may go by it: 0.70 or more, and with 95 % of certainty above 0.60."""
    return estimate[0] >= LEAST_AUROC and estimate[1] > LEAST_LOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well a model tells good rows from planted bad ones. Estimates are (value, low, high), 95 %.

    auroc: of the score, by corruption; overall: their mean. measures: the same for other scores (the judge with another
    wording, likelihoods, a reward model's differences, length as the check of balance). tags: AUROC of tags on planted
    instructions. position: of pairwise verdicts. length_bias: rank correlation of score and length over good rows.
    agreement: rank correlation of the judge's two wordings. correlation: with published scores. pairs: rows of each
    kind compared.
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

    @property
    def score(self) -> str:
        """What `auroc` and `overall` are of: "judge_score", or "reward"."""
        return "reward" if is_reward(self.identity) else "judge_score"

    def may_filter(self, name: str) -> bool:
        """Whether rows may be dropped by this tag or score: "judge_score", "input_quality", "reward_difference", ..."""
        if name == self.score:
            return self.usable
        found = self.tags.get(name) or self.measures.get(name) or {}
        return bool(found.get("usable"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what is not a number is null."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        known = {name: value[name] for name in (item.name for item in fields(cls)) if name in value}
        for name in ("overall", "length_bias", "agreement"):
            known[name] = _estimate(known[name])
        for name in ("auroc", "position"):
            known[name] = {key: _estimate(found) for key, found in known[name].items()}
        return cls(**known)


def is_reward(identity: Mapping[str, Any]) -> bool:
    """Whether this is the identity of a reward model, not of an engine."""
    return identity.get("engine") == ENGINE


def judge_code() -> str:
    """The state of the questions and of how their answers are read; a calibration holds for one."""
    return code_sha256(CODE)[:16]


def reward_code() -> str:
    """The state of how a reward model is shown a row."""
    return code_sha256(REWARD_CODE)[:16]


def calibration_path(identity: Mapping[str, Any], reason_tokens: int | None = None) -> Path:
    """Where the calibration of a model is kept: by its hash, or by all that is known of it where there is none.

    reason_tokens: how many it was given before a label, None for the questions' own number. Curation asks with that.
    """
    model = identity.get("model_sha256") or dump_json(dict(identity))
    code = reward_code() if is_reward(identity) else judge_code()
    asked = "" if reason_tokens is None else f"\0{reason_tokens}"
    name = hashlib.sha256(f"{model}\0{code}{asked}".encode()).hexdigest()[:32]
    return home() / "calibration" / f"{name}.json"


def requests_path(identity: Mapping[str, Any], reason_tokens: int | None = None) -> Path:
    """Where the finished requests of a calibration are kept until it is whole."""
    return calibration_path(identity, reason_tokens).with_suffix(".sqlite")


def keep_calibration(calibration: Calibration, reason_tokens: int | None = None) -> Path:
    """Write it to the cache, whole or not at all; an older one of the same way of asking is replaced."""
    path = calibration_path(calibration.identity, reason_tokens)
    write_atomic(path, json.dumps(calibration.to_dict(), indent=1).encode())
    return path


def load_calibration(identity: Mapping[str, Any]) -> Calibration | None:
    """The calibration of the model with this identity (`Engine.identity`), asked as curation asks; None without."""
    path = calibration_path(identity)
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        return Calibration.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _estimate(value: Any) -> Estimate:
    found, low, high = (math.nan if part is None else float(part) for part in value)
    return found, low, high


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
