"""Detectors read hostile text: their time grows with its length, not with its square."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ojak.rules.contamination import Contamination
from ojak.rules.privacy import find_personal_data
from ojak.rules.secrets import find_secrets

LENGTH = 100_000
SECONDS = 1.0  # measured at 0.1 s or less; a quadratic pattern takes minutes
BRICKS = {
    "digits": "7",
    "digit groups": "4 ",
    "card groups": "4111 ",
    "hyphens": "1-",
    "brackets": "(0",
    "plus": "+1 ",
    "dots": "1.",
    "colons": "1:",
    "hex": "ab:cd::",
    "local parts": "a.b-c_d+",
    "ats": "a@b.",
    "labels": "a@" + "b-c." * 7,
    "account numbers": "DE89 3704 ",
    "capitals": "GB29NWBK",
    "residents": "900101-",
    "wide digits": "\uff10\uff11-",
    "key heads": "-----BEGIN PRIVATE KEY-----\n",
    "half heads": "-----BEGIN A B C ",
    "prefixes": "sk-",
    "token parts": "eyJaaaaaaaaaaaa.",
    "long tokens": "eyJ" * 1000 + ".",
    "settings": "token_key token=",
    "addresses": "ab://c:d",
    "bearers": "Bearer  ",
    "keys": "api key - api.key ",
}
WORDS = Contamination(["one two three four five six seven eight nine ten eleven twelve thirteen"])


@pytest.mark.parametrize("brick", BRICKS)
@pytest.mark.parametrize("detector", [find_personal_data, find_secrets, WORDS.find])
def test_a_long_text_is_read_in_time(detector: Callable[[str], object], brick: str) -> None:
    for end in ("", "x", "!", " 1", "\n-----END"):
        text = BRICKS[brick] * (LENGTH // len(BRICKS[brick])) + end
        start = time.thread_time()
        detector(text)
        assert time.thread_time() - start < SECONDS
