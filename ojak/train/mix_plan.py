"""Which texts of a source a mix takes, and in which form: a pure function of their sizes in tokens.

Texts are taken in an order that the seed draws, each pass over the source in another one, until the next text would
go beyond the budget. So all arms take the same texts first, and a source is read twice only where it is too small.
Each text is taken as it is or with its pairs, whichever brings the share of the latter nearer to the one asked for: the
share is never off by more than one text, as long as there are texts with pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ojak.errors import InputRefused
from ojak.train.rows import shuffled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.train.mix_units import Sizes

NOT, PLAIN, AUGMENTED = 0, 1, 2  # what is taken of a unit
MOST_PASSES = 1_000
SHORTEST = 8  # tokens from which on it is worth to take a piece of a long text


@dataclass(frozen=True, slots=True)
class End:
    """The unit that did not fit whole, in the last pass: its form, how many of its documents did, and the tokens that
    were left for the beginning of the next one (of the whole, where it is augmented); 0: nothing of it."""

    unit: int
    form: int
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Taken:
    """passes: what each pass takes of each unit, int8[units]. `plain` and `augmented`: tokens of whole texts.

    passed: how often the source was read, the last pass as the share of its units.
    """

    passes: tuple[NDArray[np.int8], ...]
    end: End | None
    plain: int
    augmented: int
    passed: float

    @property
    def tokens(self) -> int:
        return self.plain + self.augmented


def take(sizes: Sizes, budget: int, *, ratio: float, key: tuple[object, ...], max_len: int) -> Taken:
    """Takes at most `budget` tokens, and fewer by less than the next row of training (of at most `max_len`) at most.

    ratio: the share of augmented tokens. key: what the order follows from. Raises InputRefused for a source without a
    token, or one that would have to be read more than MOST_PASSES times.
    """
    plain = np.add.reduceat(np.append(sizes.texts, 0), sizes.starts[:-1]) if len(sizes.augmented) else []
    units, has_some = len(sizes.augmented), bool(np.any(sizes.texts) or np.any(sizes.augmented))
    if not has_some:
        raise InputRefused("there is no text to take tokens from")
    whole, extra = np.asarray(plain, np.int64).tolist(), sizes.augmented.tolist()
    passes: list[NDArray[np.int8]] = []
    totals = [0, 0, 0]  # by form
    while len(passes) < MOST_PASSES:
        forms = np.zeros(units, np.int8)
        passes.append(forms)
        for place, unit in enumerate(shuffled(units, *key, len(passes) - 1).tolist()):
            form = _form(whole[unit], extra[unit], totals, ratio)
            size = whole[unit] if form == PLAIN else extra[unit]
            left = budget - totals[PLAIN] - totals[AUGMENTED]
            if size > left:
                end, more = _end(sizes, unit, form, left, max_len)
                totals[PLAIN] += more
                passed = len(passes) - 1 + place / units
                return Taken(tuple(passes), end, totals[PLAIN], totals[AUGMENTED], passed)
            forms[unit] = form
            totals[form] += size
        if sum(totals) == budget:
            return Taken(tuple(passes), None, totals[PLAIN], totals[AUGMENTED], float(len(passes)))
    raise InputRefused(
        f"{budget:,} tokens would need more than {MOST_PASSES:,} passes over a source",
        why=f"it has {sum(totals) // MOST_PASSES:,} tokens",
        fix="give more text, or lower the tokens or its share",
    )


def _form(plain: int, augmented: int, totals: list[int], ratio: float) -> int:
    """The form that brings the share of augmented tokens nearer to `ratio`."""
    if not augmented:
        return PLAIN
    beyond = totals[AUGMENTED] - ratio * (totals[PLAIN] + totals[AUGMENTED])
    return AUGMENTED if abs(beyond + (1 - ratio) * augmented) < abs(beyond - ratio * plain) else PLAIN


def _end(sizes: Sizes, unit: int, form: int, left: int, max_len: int) -> tuple[End | None, int]:
    """What is still taken of the unit that does not fit, and the tokens of its documents that do."""
    texts = [int(sizes.augmented[unit])]
    if form == PLAIN:
        texts = sizes.texts[sizes.starts[unit] : sizes.starts[unit + 1]].tolist()
    documents = taken = 0
    while texts[documents] <= left - taken:
        taken += texts[documents]
        documents += 1
    left -= taken
    rest = left if texts[documents] > max_len and left >= SHORTEST else 0
    return (End(unit, form, documents, rest) if documents or rest else None), taken
