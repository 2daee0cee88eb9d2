"""What two texts share: the form in which texts are compared, their n-grams, and the odds of finding a near pair.

Two texts are exact duplicates when they are equal after `normalize`, and near duplicates when the Jaccard
similarity of their sets of n-grams reaches a threshold. Candidates come from MinHash signatures (A. Broder, "On the
resemblance and containment of documents", 1997) cut into bands (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 3.4); every candidate is then checked against the true Jaccard similarity, so a reported near
duplicate always is one, while banding may miss one near the threshold (2 % of those exactly at it; see `bands_for`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from ojak._grams import GOLDEN, code_points, mixed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

# Apostrophes and invisible characters vanish ("don't" = "dont"); other prose punctuation separates words.
_VANISHING = re.compile("['`\u2018\u2019\u02bc\u00ad\u200b-\u200f\u2060\ufeff]")
# Signs that carry meaning stay: operators, the hyphen of "-3", the point of "3.5", the "#" of "C#", not of "# Title".
# White space separates, too: `normalize` splits there. Every match begins with one character of one set, and only then
# looks around it, so that the text between is passed over at once (six times as fast as an alternation of lookarounds).
_ALWAYS = (
    r"\"()\[\]{};!?_\u2010-\u2015\u2026\u201c-\u201f\u00a1\u00ab\u00bb\u00bf\u00b7\u0964\u3000-\u303f\u30fb"
)
_SEPARATING = re.compile(
    rf"""[{_ALWAYS}*+\-.,:\#\u2022](?:
      (?<=[{_ALWAYS}])
    | (?<=^[-*+\u2022])[ ]  # a bullet
    | (?<=\*)\*+ | (?<=\*)(?<!\S\*)(?=[^\s\d]) | (?<=[^\s\d]\*)(?!\S)  # emphasis
    | (?<=[^\W\d]-)(?=[^\W\d]) | (?<=-)-+ | (?<=[.,:])(?!\d) | (?<=\#)(?<!\w\#))""",
    re.VERBOSE | re.MULTILINE,
)
_MOST_VALUES = 12  # per band: five bits of each are left in a key


def normalize(text: str) -> str:
    """`text` as it is compared: compatibility forms folded (NFKC), case folded, prose punctuation and markdown
    emphasis dropped, white space collapsed. Operators and signs beside digits stay, as they change the meaning.
    A text of nothing but punctuation is kept as it is, so that "?" and "!" differ."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    folded = text.casefold()
    words = _SEPARATING.sub(" ", _VANISHING.sub("", folded)).split()
    return " ".join(words or folded.split())


def shingles(text: str, size: int = 5) -> Hashes:
    """Sorted distinct 64-bit hashes of the character `size`-grams of `text` (taken as it is; shape: [count]).

    A space is put before and after, so that the first and last words count as much as the others; a text with
    fewer characters than `size` is one shingle.
    """
    import numpy as np

    return np.unique(shingles_in_order(text, size))


def shingles_in_order(text: str, size: int) -> Hashes:
    """The hashes of `shingles` in the order of the text, repeated ones repeated."""
    import numpy as np

    codes = code_points(f" {text} ")
    width = min(size, len(codes))
    count = len(codes) - width + 1
    hashes = np.full(count, width, dtype=np.uint64)
    for offset in range(width):
        hashes = hashes * np.uint64(GOLDEN) + codes[offset : offset + count]
    return mixed(hashes)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Size of the intersection over the size of the union of two sorted sets from `shingles`."""
    import numpy as np

    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def bands_for(threshold: float, permutations: int, recall: float = 0.98) -> tuple[int, int]:
    """(bands, values per band): as many values per band as let a pair that is exactly at `threshold` become a
    candidate with probability at least `recall`, 1 - (1 - threshold^values)^bands. More values, fewer candidates."""
    best = (permutations, 1)
    for values in range(2, _MOST_VALUES + 1):
        bands = permutations // values
        if 1 - (1 - threshold**values) ** bands < recall:
            break
        best = (bands, values)
    return best
