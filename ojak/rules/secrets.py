"""Credentials in text: keys and tokens of well-known services, private keys, passwords in addresses and settings.

Most services give their keys a form of their own; a key in that form is reported whatever it looks like otherwise,
since a false alarm costs a look and a published key costs more. Values of settings ("api_key = ...") have no form:
they are reported where they look random. Every pattern takes time linear in the text.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from ojak.rules.found import Found, redacted, without_overlaps

__all__ = ["KINDS", "Found", "find_secrets", "redact"]

# kind: (texts of which one is in every such key, its form). Looking for a text is a hundred times as fast as a pattern.
_FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "anthropic_key": (("sk-ant-",), r"sk-ant-[A-Za-z0-9_-]{20,300}"),
    "openai_key": (("sk-",), r"sk-(?:proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{20,300}"),
    "huggingface_token": (("hf_", "api_org_"), r"(?:hf_|api_org_)[A-Za-z0-9]{30,60}"),
    "github_token": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
    ),
    "gitlab_token": (("gl",), r"gl(?:pat|dt|rt|ptt|oas|soat)-[A-Za-z0-9_-]{20,120}"),
    "aws_access_key": (
        ("AKIA", "ASIA", "ABIA", "ACCA"),
        r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    ),
    "google_key": (("AIza",), r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "google_oauth": (("ya29.", "GOCSPX-"), r"(?:ya29\.[A-Za-z0-9_-]{20,300}|GOCSPX-[A-Za-z0-9_-]{28})"),
    "slack_token": (
        ("xox", "xapp-"),
        r"(?:xox[abceoprs]-[A-Za-z0-9-]{10,250}|xapp-[0-9]-[A-Za-z0-9-]{20,250})",
    ),
    "slack_webhook": (
        ("hooks.slack.com",),
        r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9_/-]{20,200}",
    ),
    "stripe_key": (("k_live_", "k_test_", "whsec_"), r"(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,250}"),
    "npm_token": (("npm_",), r"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    "pypi_token": (("pypi-",), r"pypi-[A-Za-z0-9_-]{50,300}"),
    "sendgrid_key": (("SG.",), r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    "mailgun_key": (("key-",), r"key-[0-9a-f]{32}(?![A-Za-z0-9])"),
    "telegram_token": ((":AA",), r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),
    "digitalocean_token": (("_v1_",), r"do[oprt]_v1_[0-9a-f]{64}"),
    "databricks_token": (("dapi",), r"dapi[0-9a-f]{32}"),
    "shopify_token": (("shp",), r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    "groq_key": (("gsk_",), r"gsk_[A-Za-z0-9]{40,80}"),
    "replicate_token": (("r8_",), r"r8_[A-Za-z0-9]{37}(?![A-Za-z0-9])"),
    "age_key": (("AGE-SECRET-KEY-1",), r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
    "jwt": (("eyJ",), r"eyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}"),
    "bearer_token": (("earer ",), r"[Bb]earer[ ]{1,4}[A-Za-z0-9._~+/-]{20,2000}={0,2}"),
}
# A key starts where a word starts, so that a long word is read once.
_PATTERNS = {kind: re.compile(r"(?<![A-Za-z0-9_-])" + form, re.ASCII) for kind, (_, form) in _FORMS.items()}
_KEY_BEGINS = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_ENDS = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_MOST_OF_A_KEY = 20_000  # characters of a private key
_IN_URL = re.compile(
    r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/@\"'<>]{0,100}:([^\s/@\"'<>]{3,200})@[A-Za-z0-9\[]"
)
_SETTING = re.compile(
    r"""(?:api[_ -]?key|access[_ -]?key|secret|token|passw(?:or)?d|credential)[A-Za-z0-9_.-]{0,20}["']?
    [ \t]{0,4}(?::=|=>|=|:)[ \t]{0,4}
    (?:["'`]([^\s"'`]{12,200})["'`]|([A-Za-z0-9+/_.~-]{20,200}={0,2})(?![^\s,;"'`)}\]]))""",
    re.VERBOSE | re.IGNORECASE,
)
_STAND_IN = re.compile(
    r"\A[<${%\[]|x{4}|\*{3}|\.{3}|your|example|change|placeholder|redacted|dummy|sample|env[.\[(]|getenv|environ",
    re.IGNORECASE,
)
_RANDOM_BITS = 3.0  # entropy of a character: English words have less over so few characters
KINDS = ("private_key", *_PATTERNS, "url_password", "setting")


def find_secrets(text: str) -> list[Found]:
    """Where `text` holds credentials, in order of place, without overlaps. Kinds are those of `KINDS`.

    A finding holds the place, never the secret itself, and may be logged.
    """
    return without_overlaps(chain(_private_keys(text), _known(text), _url_passwords(text), _settings(text)))


def _known(text: str) -> Iterator[Found]:
    for kind, (marks, _) in _FORMS.items():
        if any(mark in text for mark in marks):
            yield from (Found(kind, *match.span()) for match in _PATTERNS[kind].finditer(text))


def redact(text: str) -> str:
    """`text` with each credential replaced by its kind in brackets, "[openai_key]"."""
    return redacted(text, find_secrets(text))


def _private_keys(text: str) -> Iterator[Found]:
    """From the first line of a key to its last, or, where that is missing, the first line."""
    for begin in _KEY_BEGINS.finditer(text):
        end = _KEY_ENDS.search(text, begin.end(), begin.end() + _MOST_OF_A_KEY)
        yield Found("private_key", begin.start(), end.end() if end else begin.end())


def _url_passwords(text: str) -> Iterator[Found]:
    return (
        Found("url_password", *match.span(1))
        for match in _IN_URL.finditer(text)
        if not _STAND_IN.search(match[1])
    )


def _settings(text: str) -> Iterator[Found]:
    for match in _SETTING.finditer(text):
        group = 1 if match[1] is not None else 2
        if _looks_random(match[group]):
            yield Found("setting", *match.span(group))


def _looks_random(value: str) -> bool:
    """Letters and digits mixed, hardly any repeated, and none of the words that stand in for a secret."""
    mixed = any(sign.isdigit() for sign in value) and any(sign.isalpha() for sign in value)
    return mixed and not _STAND_IN.search(value) and _entropy(value) >= _RANDOM_BITS


def _entropy(value: str) -> float:
    """Bits a character, from the frequencies of the characters (C. Shannon, 1948)."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)
