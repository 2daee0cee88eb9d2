"""The form in which texts are compared, against the same rules written one after another."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.similarity import normalize

VANISHING = re.compile("['`\u2018\u2019\u02bc\u00ad\u200b-\u200f\u2060\ufeff]")
PLAIN = re.compile(
    r"""[\s"()\[\]{};!?_\u2010-\u2015\u2026\u201c-\u201f\u00a1\u00ab\u00bb\u00bf\u00b7\u0964\u3000-\u303f\u30fb]
    | ^[-*+\u2022][ ]
    | \*{2,} | (?<!\S)\*(?=[^\s\d]) | (?<=[^\s\d])\*(?!\S)
    | (?<=[^\W\d])-(?=[^\W\d]) | -{2,} | [.,:](?!\d) | (?<!\w)\#""",
    re.VERBOSE | re.MULTILINE,
)
SIGNS = " \n\t\r-*+\u2022#.,:;a1b2_\"'()\u2014\u2026\u30fb\u3042\u00e9\x1c\x85\u2028"


def plainly(text: str) -> str:
    folded = VANISHING.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(PLAIN.sub(" ", folded).split() or unicodedata.normalize("NFKC", text).casefold().split())


@settings(max_examples=1000, deadline=None)
@given(st.text(alphabet=SIGNS, max_size=14))
def test_the_fast_pattern_says_what_the_plain_one_says(text: str) -> None:
    assert normalize(text) == plainly(text)
