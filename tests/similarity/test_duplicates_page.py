"""The page about duplicates shows code that runs, and says what it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "duplicates.md"


def test_the_page_s_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (body,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(body, PAGE.name, "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "[0, 0, 2] [True, False, True]",
        "[('email', 'ann@example.org'), ('phone', '+1 415-555-2671')]",
        "explain how a magpie finds its way home at night",
    ]
