"""Text and numbers for the page: hidden characters made visible, code blocks, units.

Generated text is hostile: nothing here returns markup but `visible`, which escapes whatever it does not write itself.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from ojak._visible import JOINERS, UNUSUAL, is_hidden, picture, plain

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]{0,20})[^`\n]*$")
MAX_SHOWN_CHARS = 12_000
MAX_BOXES = 50


def _name(char: str) -> str:
    code = f"U+{ord(char):04X}"
    return f"{code} {unicodedata.name(char, '')}".strip()


def visible(text: object) -> Markup:
    """`text` escaped, each hidden character (NUL, ESC, bidirectional override, ...) as a small labelled box.

    After 50 of them the rest goes without boxes (and stays visible): a text of nothing else would swell the page.
    """
    parts, end, source = [], 0, str(text)
    hidden = (m for m in UNUSUAL.finditer(source) if is_hidden(m[0]) and m[0] not in JOINERS)
    for match in itertools.islice(hidden, MAX_BOXES):
        box = Markup('<span class="hidden-char" title="{}">{}</span>').format(
            _name(match[0]), picture(match[0])
        )
        parts += [escape(source[end : match.start()]), box]
        end = match.end()
    return Markup("").join([*parts, escape(plain(source[end:]))])


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a message: running text, or code with the language that its fence names."""

    text: str
    code: bool = False
    language: str = ""


def blocks(text: str) -> list[Block]:
    """Split a message into text and fenced code; white space stays as it is, a fence never closed runs to the end."""
    found: list[Block] = []
    lines: list[str] = []
    fence, language = "", ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        closes = bool(fence and match and match[1].startswith(fence) and not match[2])
        if closes or (match and not fence):
            found.append(Block("\n".join(lines), bool(fence), language))
            fence, language = ("", "") if closes or match is None else (match[1], match[2])
            lines = []
        else:
            lines.append(line)
    found.append(Block("\n".join(lines), bool(fence), language))
    return [block for block in found if block.text.strip() or block.code]


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as the page shows it."""

    role: str
    blocks: list[Block]
    left_off: int


def turn(role: str, content: str, room: int) -> Turn:
    """A message of which at most `room` characters are shown."""
    shown, left_off = shorten(content, room)
    return Turn(role[:40], blocks(shown), left_off)


def shorten(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters of `text`, and how many were left off."""
    return text[:limit], max(0, len(text) - limit)


def one_line(text: str, limit: int = 180) -> str:
    """`text` on one line, white space collapsed, cut at a word near `limit` characters."""
    flat = " ".join(text[: 4 * limit].split())
    if len(flat) <= limit:
        return flat
    head = flat[:limit]
    return (head.rsplit(" ", 1)[0] if " " in head else head).rstrip(",;:. ") + " \u2026"


def humanize(code: str) -> str:
    """A reason code as words: `near_duplicate` -> `near duplicate`."""
    return " ".join(re.split(r"[_\-\s]+", plain(code))).strip()[:80] or "no reason given"


def number(value: float) -> str:
    """`12345.0` -> `12,345`; one decimal below 100 where it says something."""
    if value >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}"


def fixed(value: float, digits: int) -> str:
    """A measured number with so many decimals and a true minus sign; a rounded 0 has none: `\u22120.310`."""
    shown = f"{abs(value):,.{digits}f}" if abs(value) < 1e6 else f"{abs(value):.3g}"
    return f"\u2212{shown}" if value < 0 and _says_more_than_0(shown) else shown


def tick(value: float, digits: int) -> str:
    """A number beside an axis, in thousands or millions where it would be too long for its place: `20k`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{fixed(value / size, 3).rstrip('0').rstrip('.')}{unit}"
    return fixed(value, digits)


def signed(shown: str, value: float) -> str:
    """What stands for a difference's size, with its sign before it; a rounded 0 has none."""
    return f"{'+' if value > 0 else chr(0x2212)}{shown}" if _says_more_than_0(shown) else shown


def _says_more_than_0(shown: str) -> bool:
    return any(digit in shown for digit in "123456789")


def setting(value: float) -> str:
    """A sampling setting: `1.0`, `0.995`."""
    return f"{value:.1f}" if float(value).is_integer() else f"{value:g}"


def percent(share: float) -> str:
    """`0.7412` -> `74 %`, `0.031` -> `3.1 %`; a share above nothing is never shown as nothing."""
    value = 100 * share
    if 0 < value < 0.05:
        return "< 0.1\u00a0%"
    rounded = f"{value:.1f}" if 0 < value < 9.95 or 99.5 <= value < 99.95 else f"{value:.0f}"
    return f"{rounded}\u00a0%"


def duration(seconds: float) -> str:
    """Seconds in the two units a reader would use: `3 min 20 s`, `2 h 41 min`."""
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    total = round(seconds)
    if total < 60:
        return f"{total}\u00a0s"
    if total < 3600:
        return f"{total // 60}\u00a0min {total % 60:02d}\u00a0s"
    if total < 48 * 3600:
        return f"{total // 3600}\u00a0h {total % 3600 // 60:02d}\u00a0min"
    return f"{total / 86400:.1f}\u00a0days"


def size(count: float) -> str:
    """Bytes in a unit that fits: `48.2 kB` (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f}\u00a0{unit}" if unit == "bytes" else f"{count:.1f}\u00a0{unit}"
        count /= 1000
    return f"{count:.1f}\u00a0TB"


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) lines; a list of plain values stays on one line, nothing is left out."""
    if isinstance(value, dict) and value:
        return [
            line
            for key, item in value.items()
            for line in flatten(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if value is None or value in ({}, [], ""):
        return [(prefix, "\u2013")]
    return [(prefix, str(value))]
