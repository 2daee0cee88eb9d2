"""The language of a text, by py3langid: a table of byte sequences, no model that generates."""

from __future__ import annotations

import functools
from typing import Any

LEAST_SURE = 0.5
MOST_CHARS = 4000  # of a text that are looked at
UNKNOWN = "und"  # the code of ISO 639-2 for "undetermined"


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, how sure, in [0, 1]) of the text's likeliest language; "und" and 0 where it has no letters."""
    return _identified(text[:MOST_CHARS].encode("utf-8", "replace").decode("utf-8"))


# Who makes something of a text, and who checks or writes it, ask about the same one in turn.
@functools.lru_cache(maxsize=64)
def _identified(text: str) -> tuple[str, float]:
    if not any(char.isalpha() for char in text):
        return UNKNOWN, 0.0
    code, sure = _identifier().classify(text)
    return str(code), float(sure)


def known_languages() -> frozenset[str]:
    """The codes that `identify` may give."""
    return frozenset(map(str, _identifier().nb_classes))


def language(text: str) -> str:
    """The ISO 639-1 code of the text's language, "und" where there is too little to tell."""
    code, sure = identify(text)
    return code if sure >= LEAST_SURE else UNKNOWN
