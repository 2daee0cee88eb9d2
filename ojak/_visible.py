"""Characters that show nothing, or act on a terminal or on the order of a text, as signs that can be seen.

Generated text and other people's files are hostile: what a page, a card or a terminal shows of them goes through here.
"""

from __future__ import annotations

import functools
import re
import unicodedata

UNUSUAL = re.compile(r"[^\t\n -~]")
# Control and format characters, halves of surrogate pairs, private use, unassigned; line ends by surprise.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that show nothing: fillers, selectors of variants (but those that emoji use), the blank of Braille.
_HIDDEN_OTHERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]"
)
JOINERS = "\u200c\u200d"  # emoji, Persian and Indic text need them


def picture(char: str) -> str:
    """What stands for a hidden character: the control picture where Unicode has one, otherwise its number."""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"U+{code:04X}"


@functools.lru_cache(maxsize=4096)
def is_hidden(char: str) -> bool:
    """Whether the character shows nothing by itself, or acts on what stands around it."""
    return unicodedata.category(char) in _HIDDEN_CATEGORIES or _HIDDEN_OTHERS.match(char) is not None


def plain(text: object, *, keep: str = JOINERS) -> str:
    """`text` with hidden characters but `keep`, tab and line feed replaced by visible ones.

    For places that hold no markup (titles, attributes, a terminal).
    """

    def shown(match: re.Match[str]) -> str:
        return picture(match[0]) if is_hidden(match[0]) and match[0] not in keep else match[0]

    return UNUSUAL.sub(shown, str(text))
