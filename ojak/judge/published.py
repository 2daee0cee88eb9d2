"""Published scores of other judges for the same answers.

They are those of the evaluation set of "Build a Large Language Model (From Scratch)", chapter 7: 100 instructions with
a reference, two models' answers, and integer scores of 0 to 100 by GPT-4 and by Llama 3 8B. The files are not part of
ojak.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ojak.errors import InputRefused
from ojak.judge.prompts import Row

ROWS = "eval-example-data.json"
ANSWER = "model 1 response"
SCORES = {
    "gpt4": "scores_gpt4-model-1-response.json",
    "llama3_8b": "scores_llama3-8b-model-1-response.json",
}
MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """Rows and, by the judge's name, a score for each."""

    rows: list[Row]
    scores: dict[str, list[float]]


def read_published(folder: Path) -> Published:
    """The rows and scores in `folder`. Raises InputRefused for files that are not there or of another form.

    The scores for the second model's answers are one short of the rows, and cannot be told which; they are not read.
    """
    rows = [_row(item) for item in _list(folder / ROWS)]
    scores = {name: [_number(item) for item in _list(folder / file)] for name, file in SCORES.items()}
    for name, found in scores.items():
        if len(found) != len(rows):
            raise InputRefused(f"{folder / SCORES[name]}: {len(found)} scores for {len(rows)} rows")
    return Published(rows, scores)


def _list(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("too large")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputRefused(
            f"{path} cannot be read", why=str(error)[:200], fix="give the folder of the evaluation set"
        ) from error
    if not isinstance(found, list):
        raise InputRefused(f"{path} is not a list")
    return found


def _row(item: Any) -> Row:
    names = ("instruction", "input", "output", ANSWER)
    texts = [item.get(name) if isinstance(item, dict) else None for name in names]
    if not all(isinstance(text, str) for text in texts):
        raise InputRefused(f"{ROWS}: a row lacks one of {', '.join(names)}")
    asked, given, reference, answer = (str(text).strip() for text in texts)
    return Row(f"{asked}\n{given}" if given else asked, answer, reference=reference)


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise InputRefused(f"a score is no number: {str(item)[:40]!r}")
    return float(item)
