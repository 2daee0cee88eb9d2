"""The last step: of the rows that passed, which are kept, and in what order they are written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ojak.curate.decide import Decisions
from ojak.curate.recipe import QUOTAS, FilterRecipe, Pick

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

NOT_PICKED = "not_picked"
OVER_QUOTA = "over_quota"


def pick(
    found: Decisions, recipe: FilterRecipe, keep: int | None, skipped: Collection[str]
) -> tuple[Rows, Rows]:
    """Drop the rows that are not kept, and count them in the funnel.

    Gives (the rows kept in the order in which they are written, [rows] the rank of each row that passed the rules,
    from 1, in the order of the pick; 0 for others). Rows of equal rank keep their order. A share or a quota is a
    ceiling: places that a group cannot fill stay empty.
    """
    import numpy as np

    order = _ordered(found, recipe.pick)
    ranks = np.zeros(len(found.code), dtype=np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    asked = keep or recipe.pick.rows(len(found.code))
    number = len(order) if asked is None else min(asked, len(order))
    for rule in recipe.shares:
        if rule.name not in skipped:
            caps = [int(group.share * (asked or number) + 0.5) for group in rule.groups]
            order = _cap(found, order, found.groups[rule.name], caps, rule.name)
    if recipe.quotas and QUOTAS not in skipped:
        most = recipe.quotas.most.values()
        caps = [int(cap * (asked or number) + 0.5) if cap < 1 else int(cap) for cap in most]
        order = _cap(found, order, found.groups[QUOTAS], caps, OVER_QUOTA)
    before = len(order)
    found.code[order[number:]] = found.code_of(NOT_PICKED)
    if asked is not None:
        found.count(NOT_PICKED, before)
    return _written(order[:number], recipe.pick), ranks


def _ordered(found: Decisions, how: Pick) -> Rows:
    """The rows that passed, the ones to be taken first in front."""
    import numpy as np

    rows = found.passed()
    if how.by == "longest":
        return rows[np.argsort(-found.length[rows], kind="stable")]
    return np.random.default_rng(how.seed).permutation(rows) if how.by == "random" else rows


def _written(order: Rows, how: Pick) -> Rows:
    """The rows as they are written: in the order of the input, or shuffled as `datasets` shuffles with that seed."""
    import numpy as np

    rows = np.sort(order)
    if how.shuffle is None:
        return rows
    ranked = order if how.by == "longest" else rows
    return ranked[np.random.default_rng(how.shuffle).permutation(len(ranked))]


def _cap(found: Decisions, order: Rows, groups: NDArray[np.int32], caps: Sequence[int], reason: str) -> Rows:
    """The rows of `order` without those that come after the first `caps[g]` of their group."""
    import numpy as np

    over = np.zeros(len(order), dtype=bool)
    of_order = groups[order]
    for group, cap in enumerate(caps):
        over[np.flatnonzero(of_order == group)[cap:]] = True
    found.code[order[over]] = found.code_of(reason)
    found.funnel.append({"rule": f"{reason} (pick)", "in": len(order), "rejected": int(over.sum())})
    return order[~over]
