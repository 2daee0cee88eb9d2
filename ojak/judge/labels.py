"""The labels that a tag may have, and reading one from what a model wrote.

The sets are those of Magpie (arXiv 2406.08464, section 3 and its code). Where labels have an order, they stand from the
worst to the best, or from the easiest to the hardest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

DIFFICULTY = ("very easy", "easy", "medium", "hard", "very hard")
INPUT_QUALITY = ("very poor", "poor", "average", "good", "excellent")
TASK_CATEGORY = (
    "Information seeking", "Reasoning", "Planning", "Editing", "Coding & Debugging", "Math", "Role playing",
    "Data analysis", "Creative writing", "Advice seeking", "Brainstorming", "Others",
)  # fmt: skip
SAFETY = ("unsafe", "safe")

LABELS: dict[str, tuple[str, ...]] = {
    "difficulty": DIFFICULTY,
    "input_quality": INPUT_QUALITY,
    "task_category": TASK_CATEGORY,
    "safety": SAFETY,
}
TAG_FIELDS = ("difficulty", "input_quality", "task_category", "safety", "language")
UNPARSED = "unparsed"

# What models write for a label, and what it is called here. Magpie's own whitelist says "Other" where its prompt says
# "Others", which loses every such row.
ALIASES = {
    "other": "Others",
    "coding": "Coding & Debugging",
    "coding and debugging": "Coding & Debugging",
    "debugging": "Coding & Debugging",
    "information-seeking": "Information seeking",
    "role-playing": "Role playing",
    "roleplay": "Role playing",
    "mathematics": "Math",
    "maths": "Math",
}
_AROUND = re.compile(r"^[\s\"'`*_\[({<:.-]+|[\s\"'`*_\])}>:.,;!-]+$")


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that the first line of `text` is: case, quotes, markup and a remark in brackets do not matter.

    None where the line is anything else; a label that is only mentioned in a sentence does not count.
    """
    line = unicodedata.normalize("NFKC", text).strip().partition("\n")[0]
    known = {label.casefold(): label for label in labels}
    known |= {alias: label for alias, label in ALIASES.items() if label in labels}
    for candidate in (line, line.partition("(")[0], line.partition(" - ")[0]):
        found = _AROUND.sub("", candidate).casefold()
        if found in known:
            return known[found]
    return None


def read_fields(text: str, names: Sequence[str]) -> dict[str, str]:
    """The values of the lines "Name: value" in `text`: the first line of each name, up to its end."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        bare = _AROUND.sub("", name).casefold()
        for wanted in names:
            if colon and bare == wanted.casefold() and wanted not in found:
                found[wanted] = value.strip()
    return found
