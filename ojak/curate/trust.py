"""Which rules may be applied: those whose values are there, and whose judge has earned its vote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ojak.curate.filters import EMBEDDED, REWARDS, is_judged
from ojak.curate.recipe import QUOTAS, FilterRecipe
from ojak.curate.shards import UNKNOWN, Survey

CALIBRATE = "`ojak judge calibrate --model NAME` measures one"
CALIBRATE_REWARD = "`ojak judge calibrate --reward-model NAME` measures one"


def not_applied(
    recipe: FilterRecipe, survey: Survey, absent: Mapping[str, str], *, trust_anyway: bool
) -> dict[str, str]:
    """The rules of a recipe (and "quotas") that cannot be applied to the rows that were counted: name -> why.

    absent: the values that nobody could give here, each with the reason.
    """
    wanted: dict[str, tuple[str, ...]] = {rule.name: rule.needs for rule in recipe.rules}
    wanted |= {QUOTAS: (f"tags.{recipe.quotas.tag}",)} if recipe.quotas else {}
    found: dict[str, str] = {}
    for name, needs in wanted.items():
        reasons = (
            _lacking(need, survey, absent, recipe.max_missing)
            or ("" if trust_anyway else _untrusted(need, survey))
            for need in needs
        )
        reason = next(filter(None, reasons), None)
        if reason:
            found[name] = reason
    return found


def calibrations(survey: Survey) -> list[dict[str, Any]]:
    """What is known of the judges whose tags and scores the rows carry, as JSON values."""
    makers = {maker for need, found in survey.makers.items() if is_judged(need) for maker in found}
    from ojak.judge import load_calibration

    found = (load_calibration(json.loads(maker)) for maker in sorted(makers - {UNKNOWN}))
    return [calibration.to_dict() for calibration in found if calibration]


def _lacking(need: str, survey: Survey, absent: Mapping[str, str], most: float) -> str:
    """Why a value is not there for enough rows; empty if it is."""
    if not survey.rows or (need in EMBEDDED and need not in absent):
        return ""  # what comes from embeddings is there for all rows, once all were annotated
    missing = 1 - survey.having[need] / survey.rows
    label = need.partition(".")[2]
    if not survey.having[need]:
        return absent.get(need, f"no row has {label}")
    if missing > most:
        why = f"; {absent[need]}" if need in absent else ""
        return f"{missing:.0%} of the rows have no {label}, more than {most:.0%}{why}"
    return ""


def _untrusted(need: str, survey: Survey) -> str:
    """Why the judges of a value have no vote; empty if all have, or none was needed."""
    if not is_judged(need):
        return ""
    name = need.partition(".")[2]
    return next(filter(None, (_doubt(maker, name) for maker in sorted(survey.makers.get(need, ())))), "")


def _doubt(maker: str, of: str) -> str:
    """Why one judge has no vote on a tag or score; empty if it has."""
    how = CALIBRATE_REWARD if of in REWARDS else CALIBRATE
    if maker == UNKNOWN:
        return f"nobody knows which model judged it; {how}"
    return doubt(json.loads(maker), of)


def doubt(identity: Mapping[str, Any], of: str) -> str:
    """Why the model with this identity (`Engine.identity`) has no vote on a tag or score; empty if it has."""
    how = CALIBRATE_REWARD if of in REWARDS else CALIBRATE
    from ojak.judge import load_calibration

    name = str(identity.get("model", "?"))[:80]
    calibration = load_calibration(identity)
    if calibration is None:
        return f"its judge {name} has not been calibrated; {how}"
    if calibration.may_filter(of):
        return ""
    return f"its judge {name} did not pass its calibration: it may tag, not filter"
